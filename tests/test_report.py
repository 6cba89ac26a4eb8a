"""Laws of the report: what is measured is what is shown, saved and read back."""

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from thrifty.errors import DataError, OutputError
from thrifty.report import Column, Exchange, Plot, Report, Series, load, provenance

ROWS = [
    {"codec": "plain", "ppl": 14.21, "top1": 1.0, "is_exact": True, "bytes_per_token": {512: 14868, 2048: 12902}},
    {"codec": "hack", "ppl": 14.28, "top1": math.nan, "is_exact": False, "bytes_per_token": {512: 4491, 2048: 3898}},
]
COLUMNS = [
    Column("codec", "Cache"),
    Column("ppl", "Perplexity", ".2f", "lower"),
    Column("top1", "Same top token", ".1%", "higher"),
    Column("bytes_per_token.2048", "Bytes per token", ",.0f", "lower"),
]


def report(**changes) -> Report:
    series = [Series("plain", [512, 2048], [14868, 12902]), Series("hack", [512, 2048], [4491, 3898])]
    whole = Report(
        title="A smaller cache",
        kind="kv",
        rows=ROWS,
        columns=COLUMNS,
        headline="HACK keeps 30.2% of the bytes.",
        plots=[Plot("Bytes", "context, tokens", "bytes per token", series, log_x=True)],
        exchanges=[Exchange("Where is the key?", {"plain": "In Lisbon.", "hack": "In Lisbon!"})],
        notes=["50 prompts only."],
        provenance={"command": "thrifty kv tiny", "seconds": 192.4, "versions": {"python": "3.11.7", "torch": None}},
    )
    return replace(whole, **changes)


def printed(shown: Report, width: int = 80, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    shown.print(Console(file=stream, width=width))
    stream.flush()
    return raw.getvalue().decode(encoding)


class Outline(HTMLParser):
    """Collects the elements of a page and the addresses in their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.addresses.append(value or "")


def test_results_read_back_are_the_results_saved(tmp_path: Path) -> None:
    report().save_json(tmp_path / "kv.json")
    again = load([tmp_path / "kv.json"])
    assert again.kind == "kv"
    assert again.provenance == report().provenance
    assert json.loads(again.json()) == json.loads(report().json())


def test_one_row_is_saved_flat_and_several_as_a_list() -> None:
    one = json.loads(report(rows=ROWS[:1]).json())
    assert one["codec"] == "plain"
    assert one["kind"] == "kv"
    assert one["provenance"]["command"] == "thrifty kv tiny"
    assert set(json.loads(report().json())) == {"kind", "rows", "provenance"}


def test_what_is_not_finite_becomes_null_and_reads_as_a_dash() -> None:
    for value in (math.nan, math.inf, -math.inf, None):
        shown = report(rows=[{"codec": "hack", "ppl": value}])
        assert json.loads(shown.json(), parse_constant=pytest.fail)["ppl"] is None
        assert shown.cells()[0][1] == ("–", False)


def test_numbers_of_other_libraries_become_plain_numbers() -> None:
    import numpy as np

    row = {"loss": np.float32(0.5), "count": np.int64(3), "sizes": np.array([1, 2]), "path": Path("out")}
    assert (
        json.loads(report(rows=[row]).json()).items()
        >= {"loss": 0.5, "count": 3, "sizes": [1, 2], "path": "out"}.items()
    )


def test_a_dotted_key_reaches_into_nested_results() -> None:
    assert Column("bytes_per_token.2048", "").value(ROWS[1]) == 3898
    assert Column("a.b.c", "").value({"a": {"b.c": 1}}) == 1
    assert Column("a.b", "").value({"a": 3}) is None


def test_only_the_best_value_of_a_column_is_bold() -> None:
    cells = report().cells()
    assert [best for _, best in cells[0]] == [False, True, False, False]  # one measured value is no contest
    assert cells[1][3] == ("3,898", True)
    assert "**3,898**" in report().markdown()


def test_values_that_read_the_same_are_equally_best() -> None:
    rows = [{"ppl": 14.201}, {"ppl": 14.202}, {"ppl": 15.0}]
    shown = report(rows=rows, columns=[Column("ppl", "Perplexity", ".1f", "lower")])
    assert [row[0] for row in shown.cells()] == [("14.2", True), ("14.2", True), ("15.0", False)]


def test_page_escapes_untrusted_text() -> None:
    evil = "</svg><script>alert(1)</script><img src=x onerror=alert(1)> $x$ & \" '"
    plot = Plot(evil, evil, evil, [Series(evil, [1], [2]), Series("b", [2, 3], [2, 3], [evil, evil])], caption=evil)
    page = report(
        title=evil,
        headline=evil,
        rows=[{"codec": evil}],
        columns=[Column("codec", evil)],
        plots=[plot, replace(plot, kind="scatter")],
        exchanges=[Exchange(evil, {evil: evil})],
        notes=[evil],
        provenance={"command": evil, evil: {evil: evil}},
    ).page()
    outline = Outline(page)
    assert "script" not in outline.tags
    assert "img" not in outline.tags
    assert "onerror" not in outline.attributes


def test_what_stands_between_backticks_is_code_and_escaped_all_the_same() -> None:
    page = report(notes=["Run `thrifty <b>`, then 5 ` more."]).page()
    assert "Run <code>thrifty &lt;b&gt;</code>, then 5 ` more." in page


def test_page_needs_nothing_from_elsewhere() -> None:
    page = report().page()
    outline = Outline(page)
    assert "http:" not in page
    assert "https:" not in page
    assert "//" not in page
    assert "@import" not in page
    assert "url(" not in page.replace("url(#", "")
    assert all(address.startswith("#") for address in outline.addresses)
    assert not {"script", "link", "iframe"} & set(outline.tags)


def test_page_has_no_clashing_ids() -> None:
    plot = report().plots[0]
    outline = Outline(report(plots=[plot, replace(plot, title="Again", kind="scatter")]).page())
    assert len(outline.ids) == len(set(outline.ids))


def test_page_without_rows_or_plots_still_stands() -> None:
    bare = Report("Nothing yet", "kv", rows=[], columns=[])
    assert "<h1>Nothing yet</h1>" in bare.page()
    assert "<svg" not in bare.page()
    assert "Nothing yet" in printed(bare)
    assert report(rows=[]).page()
    assert printed(report(rows=[]))
    assert report(rows=[]).markdown()


def test_saving_writes_page_and_results_and_refuses_to_overwrite(tmp_path: Path) -> None:
    page = report().save_page(tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    assert load([tmp_path / "out"]).rows == json.loads(report().json())["rows"]
    with pytest.raises(OutputError, match="already holds files"):
        report().save_page(tmp_path / "out")
    assert report(title="Second").save_page(tmp_path / "out", overwrite=True).read_text().count("Second") == 2
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize("width", [1, 10, 20, 40, 80, 200])
def test_terminal_shows_every_value_or_folds_it(width: int) -> None:
    text = printed(report(), width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 40:
        assert all(value in text for row in report().cells() for value, _ in row)


def test_wide_table_continues_with_its_first_column_repeated() -> None:
    columns = [Column("codec", "Cache"), *(Column("ppl", f"Perplexity {n}", ".6f") for n in range(12))]
    text = printed(report(columns=columns))
    assert len(re.findall(r"^plain ", text, re.MULTILINE)) > 1
    assert text.count("14.210000") == 12


def test_terminal_without_unicode_gets_ascii() -> None:
    text = printed(report(exchanges=[Exchange("Où?", {"plain": "日本 ✓"})]), encoding="ascii")
    assert "Perplexity v" in text


def test_answers_cannot_steer_the_terminal_or_its_markup() -> None:
    text = printed(report(exchanges=[Exchange("[bold]q[/]", {"plain": "\x1b[2J\x07[/red] :smile:"})]))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]q[/]" in text
    assert "[/red] :smile:" in text


def test_markdown_keeps_a_cell_in_its_cell() -> None:
    shown = report(rows=[{"codec": "a|b\n<i>*c*"}], columns=COLUMNS[:1])
    assert "| a\\|b \\<i\\>\\*c\\* |" in shown.markdown()


def test_provenance_names_command_versions_machine_and_time() -> None:
    about = provenance("thrifty kv tiny", 12.34567)
    assert about["command"] == "thrifty kv tiny"
    assert about["seconds"] == 12.346
    assert set(about["versions"]) == {"python", "thrifty", "torch", "transformers"}
    assert about["machine"]["cpu"]
    assert about["machine"]["cores"] >= 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", about["date"])
    assert dict(report(provenance=about).origin())["Took"] == "12.3 s"
    json.dumps(about, allow_nan=False)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (59.99, "60.0 s"), (192.4, "3 min 12 s"), (7260, "2 h 1 min")]
)
def test_time_reads_as_people_say_it(seconds: float | int, text: str) -> None:
    assert dict(report(provenance={"seconds": seconds}).origin())["Took"] == text


def test_several_files_stand_side_by_side_and_their_seconds_add_up(tmp_path: Path) -> None:
    report(rows=ROWS[:1]).save_json(tmp_path / "plain.json")
    report(rows=ROWS[1:], provenance={"command": "thrifty kv other", "seconds": 7.6}).save_json(tmp_path / "hack.json")
    both = load([tmp_path / "plain.json", tmp_path / "hack.json"])
    assert [row["codec"] for row in both.rows] == ["plain", "hack"]
    assert both.provenance["command"] == ["thrifty kv tiny", "thrifty kv other"]
    assert both.provenance["seconds"] == 200.0
    assert both.page()
    assert both.markdown()
    assert printed(both)


def test_json_lines_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "kv.jsonl"
    path.write_text("\n".join([report(rows=ROWS[:1]).json(), "", report(rows=ROWS[1:]).json(), ""]))
    loaded = load([path])
    assert [row["codec"] for row in loaded.rows] == ["plain", "hack"]
    assert [column.key for column in loaded.columns] == ["codec", "ppl", "top1", "is_exact"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\x89PNG\xff", "not text"),
        (b"hello", "line 1, is not JSON"),
        (b'{"kind": "kv", "provenance": {}, "a": 1}\n{"kind": "k', "line 2, is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1, 2]", "no thrifty result"),
        (b'{"name": "package", "version": "1.0"}', "no thrifty result"),
        (b'{"kind": "kv", "provenance": {}, "rows": [1]}', "no thrifty result"),
        (b'{"kind": "kv", "provenance": {}, "rows": []}', "no thrifty result"),
        (b'{"kind": 3, "provenance": {}, "a": 1}', "no thrifty result"),
    ],
)
def test_foreign_files_are_refused_with_a_reason(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load([path])
    assert str(path) in str(caught.value)
    assert ";" in str(caught.value)


def test_missing_files_mixed_kinds_and_no_files_are_refused(tmp_path: Path) -> None:
    report().save_json(tmp_path / "kv.json")
    report(kind="prune").save_json(tmp_path / "prune.json")
    with pytest.raises(DataError, match="No such file"):
        load([tmp_path / "gone.json"])
    with pytest.raises(DataError, match="one kind only"):
        load([tmp_path / "kv.json", tmp_path / "prune.json"])
    with pytest.raises(DataError, match="no result file"):
        load([])


def test_lines_of_one_run_count_its_seconds_once(tmp_path: Path) -> None:
    path = tmp_path / "kv.jsonl"
    path.write_text("\n".join(report(rows=[row]).json() for row in ROWS))
    assert load([path]).provenance == report().provenance
