"""Laws of the plots: readable ticks, no label on another, nothing drawn that was not measured."""

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from thrifty.plots import Plot, Series, draw, tick_labels


def scatter(series: list[Series], **settings) -> Plot:
    return Plot("What each byte buys", "bytes per token", "perplexity ratio", series, "scatter", **settings)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


@pytest.mark.parametrize(
    ("ticks", "log", "labels"),
    [
        ([512, 1024, 2048, 8192, 131072], True, ["512", "1k", "2k", "8k", "128k"]),
        ([1000, 2000, 128_000], True, ["1k", "2k", "128k"]),
        ([0.01, 0.1, 1, 10], True, ["0.01", "0.1", "1", "10"]),
        ([1e6, 2e9], True, ["1M", "2G"]),
        ([0.0, 0.5, 1.0], False, ["0.0", "0.5", "1.0"]),
        ([-1, 0, 1], False, ["-1", "0", "1"]),
        ([0, 500, 1500], False, ["0", "500", "1,500"]),
        ([0, 10_000, 20_000], False, ["0", "10k", "20k"]),
        ([], False, []),
    ],
)
def test_ticks_read_as_people_write_them(ticks: list[float | int], log: bool, labels: list[str]) -> None:
    assert tick_labels(ticks, log) == labels


def test_log_axis_is_labelled_where_it_was_measured() -> None:
    plot = Plot("Overhead", "context, tokens", "bytes", [Series("a", [512, 2048, 8192], [3, 2, 1])], log_x=True)
    assert {"512", "2k", "8k"} <= set(texts(draw(plot)))


@pytest.mark.parametrize("kind", ["line", "scatter"])
@pytest.mark.parametrize("log", [False, True])
def test_every_kind_draws_any_number_of_points(kind, log: bool) -> None:
    for x in ([], [1.0], [1.0, 1.0], [0.0, -1.0], [math.nan, 2.0], [1e-9, 1e12], [float(n) for n in range(40)]):
        series = [Series("a", x, x), Series("b", x, [3.0] * len(x), ["p"] * len(x))]
        svg = draw(Plot("t", "x", "y", series, kind, log, log))
        assert ElementTree.fromstring(svg).get("viewBox")


def test_what_was_not_measured_is_said_not_drawn() -> None:
    assert "nothing was measured" in texts(draw(scatter([Series("a", [math.nan], [1.0])])))
    assert texts(draw(scatter([]))).count("nothing was measured") == 1


def test_colours_and_font_are_the_page_s() -> None:
    svg = draw(scatter([Series("a", [1, 2], [1, 2]), Series("b", [1], [3])]))
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "font-family" not in svg
    assert "currentColor" in svg
    assert "<style" not in svg
    assert "http" not in svg


def test_a_name_has_one_colour_in_all_plots() -> None:
    names = ["plain", "hack"]
    alone = draw(scatter([Series("hack", [1, 2], [1, 2])]), names)
    assert "--series-2" in alone
    assert "--series-1" not in alone


def test_names_are_shown_as_they_are_written() -> None:
    name = "a$_b$ <c> & \\frac"
    assert name in texts(draw(scatter([Series(name, [1], [1]), Series("d", [2], [2])])))


@pytest.mark.parametrize("kind", ["line", "scatter"])
def test_labels_do_not_lie_on_each_other(kind) -> None:
    series = [Series(f"name {n}", [4000.0 + n], [1.0 + n / 1000]) for n in range(6)] + [Series("far", [12000], [1.1])]
    svg = draw(Plot("t", "x", "y", series, kind))
    places = []
    for element in ElementTree.fromstring(svg).iter():
        if element.tag.endswith("text") and (element.text or "").startswith(("name", "far")):
            anchor = re.search(r"text-anchor: (\w+)", element.get("style", ""))
            shift = {"start": 0.0, "middle": -15.0, "end": -30.0}[anchor.group(1) if anchor else "start"]
            places.append((float(element.get("x", 0)) + shift, float(element.get("y", 0))))
    assert len(places) == 7
    for number, (x, y) in enumerate(places):
        for other_x, other_y in places[:number]:
            assert abs(x - other_x) > 26 or abs(y - other_y) > 7


def test_reports_are_imported_without_matplotlib_or_torch() -> None:
    code = "import sys, thrifty.report; print({'torch', 'matplotlib', 'jinja2', 'rich', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
