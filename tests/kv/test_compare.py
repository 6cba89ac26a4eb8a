"""A comparison: rows that can be told apart, and a report that shows the plain cache first."""

import random

import pytest

from thrifty.errors import SettingError
from thrifty.kv import compare, measure
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.kivi import Kivi
from thrifty.kv.codecs.plain import Plain
from thrifty.kv.measure import Protocol
from thrifty.kv.methods.uniform import Uniform
from thrifty.progress import silent

SHORT = Protocol(
    windows=2, window=150, chunk=64, passkey_tokens=(450,), depths=(0.5,), contexts=(100, 300), ratio_context=300,
    speed_context=50, speed_tokens=2,
)  # fmt: skip


def entry(reader, codec, **method):
    return compare.entry(reader, type(codec).__name__.lower(), codec, Uniform(**method))


@pytest.fixture(scope="module")
def results(reader):
    text = "".join(random.Random(0).choices("abcdefghij ", k=400))
    entries = [entry(reader, codec) for codec in (Plain(), Hack(k_bits=4), Kivi(residual=32))]
    return compare.rows(reader, entries, measure.windows_of(reader, text, "abc", SHORT), "abc", SHORT, silent)


def test_a_label_tells_codec_choices_and_bits(reader) -> None:
    assert entry(reader, Plain()).label == "plain"
    assert entry(reader, Plain(dtype="float16")).label == "plain float16"
    assert entry(reader, Hack(k_bits=4)).label == "hack 4/2"
    assert entry(reader, Hack(layout="v1", qp_bits="exact")).label == "hack v1 exact 2/2"
    assert entry(reader, Hack(weights="published", sinks=4)).label == "hack published 2/2"
    assert entry(reader, Kivi(group=64, residual=64)).label == "kivi group=64 residual=64 2/2"
    assert entry(reader, Hack(), skip_layers=(0,)).label == "hack 2/2, 16/16"


def test_the_plain_codec_measures_as_the_plain_cache(results) -> None:
    plain = results[0]
    assert plain["ppl_ratio"] == pytest.approx(1, abs=1e-6)
    assert plain["kl"] == pytest.approx(0, abs=1e-6)
    assert plain["top1"] == 1
    assert plain["bytes_ratio"] == 2  # float32


def test_every_row_holds_what_it_was_measured_on(results) -> None:
    for row in results:
        assert (row["model"], row["text"], row["windows"], row["window"]) == ("tiny", "abc", 2, 150)
        assert row["predictions"] == 2 * 149
        assert row["tokens_per_second"] > 0


def test_the_report_begins_with_the_plain_cache_and_shows_both_plots(results) -> None:
    report = compare.report("title", "kv", results, {})
    assert [row["label"] for row in report.rows] == ["plain", "plain", "hack 4/2", "kivi residual=32 2/2"]
    assert [plot.title for plot in report.plots] == ["Quality against size", "Size against context"]
    assert "hack 4/2" in report.page()
    assert str(results[0]["predictions"]) in report.notes[0]


def test_two_entries_that_look_alike_are_refused(reader) -> None:
    alike = [entry(reader, Hack()), entry(reader, Hack())]
    with pytest.raises(SettingError, match="alike"):
        compare.rows(reader, alike, measure.windows_of(reader, "a" * 300, "a", SHORT), "a", SHORT, silent)
