"""Good rows, bad rows, ids, signs in words, times."""

import polars as pl
import pytest

from thrifty.graph.edge_table import EdgeTable
from thrifty.graph.policies import Policies
from thrifty.graph.rows import counted, number_of, parse, tidy, time_of, whole_numbers


def test_signs_are_numbers_or_words() -> None:
    column = pl.Series(["1", " -1", "+1", "+", "-", "Positive", "oppose", "abstain", "nan", "huh", None])
    assert number_of(column).to_list() == [1, -1, 1, 1, -1, 1, -1, 0, None, None, None]
    assert number_of(pl.Series(["\u22121", "\u2212", "\u2013 1", " \u20132.5"])).to_list() == [-1, -1, None, -2.5]
    assert number_of(pl.Series([True, False])).to_list() == [1, -1]


def test_times_are_seconds_or_dates() -> None:
    texts = pl.Series(["1407470400.5", "2014-08-08", "2014-08-08 04:00:00", "2014-08-08T04:00:00Z", "soon"])
    assert time_of(texts).to_list() == [1407470400.5, 1407456000, 1407470400, 1407470400, None]
    zones = pl.Series(["2014-08-08T06:00:00+02:00", "2014-08-08 04:00:00.5+00", "2014-08-07 23:00:00-0500"])
    assert time_of(zones).to_list() == [1407470400, 1407470400.5, 1407470400]
    moments = texts[1:2].str.to_datetime("%Y-%m-%d")
    assert time_of(moments).to_list() == [1407456000]


def test_ids_that_are_other_texts_stay_other_ids() -> None:
    column = tidy(pl.Series([" 7", "007", "+7", "-0", "0", "-3", "", "x", None]))
    assert whole_numbers(column).to_list() == [7, None, None, None, 0, -3, None, None, None]


def test_whole_floats_are_ids_without_a_point() -> None:
    assert tidy(pl.Series([1.0, 2.0, float("nan")], strict=False)).to_list() == [1, 2, None]


def test_whole_numbers_of_more_than_64_bits_are_texts() -> None:
    assert tidy(pl.Series([2**70, 1, None])).to_list() == ["1180591620717411303424", "1", None]
    assert tidy(pl.Series([2**63, 1])).to_list() == ["9223372036854775808", "1"]
    assert tidy(pl.Series([7, None], dtype=pl.UInt64)).dtype == pl.Int64


def table(**columns: list) -> EdgeTable:
    return EdgeTable(pl.DataFrame(columns), "x")


def test_every_bad_row_has_one_reason() -> None:
    rows = parse(
        table(
            source=["1", None, "3", "4", "5", None] + ["9"] * 100,
            target=["2", "3", " ", "x", "6", None] + ["8"] * 100,
            sign=["1", "1", "1", "1", "?", None] + ["-1"] * 100,
            more=[None, None, None, None, None, "9"] + [None] * 100,
        ),
        Policies(),
    )
    assert rows.num_bad == {
        "too many fields": 1,
        "no source": 1,
        "no target": 1,
        "target is no whole number": 1,
        "unreadable sign": 1,
    }
    assert len(rows.source) == 101
    assert rows.examples["unreadable sign"] == [4]
    assert "whole numbers" in rows.notes[0]


def test_few_numbers_among_ids_are_texts() -> None:
    columns = {"source": ["1", "b"], "target": ["2", "3"], "sign": ["1", "-1"]}
    assert parse(table(**columns), Policies()).source.to_list() == ["1", "b"]
    assert parse(table(**columns), Policies(ids="numbers")).num_bad == {"source is no whole number": 1}
    numbers = {"source": [1, 2], "target": [2, 3], "sign": [1, -1]}
    assert parse(table(**numbers), Policies(ids="texts")).source.to_list() == ["1", "2"]


def test_a_time_that_cannot_be_read_is_told() -> None:
    rows = parse(table(source=[1, 2], target=[2, 3], sign=[1, -1], time=["5", "later"]), Policies())
    assert rows.time is not None
    assert rows.time[0] == 5
    assert rows.notes == ["time: 1 good row without one that can be read; NaN there"]


@pytest.mark.parametrize(("num", "told"), [(0, "0 rows"), (1, "1 row"), (1234, "1,234 rows")])
def test_counts_are_told_in_words(num: int, told: str) -> None:
    assert counted(num) == told


def test_a_few_whole_numbers_beyond_64_bits_lose_no_row() -> None:
    ids = [*map(str, range(1, 40)), str(2**64)]
    one = table(source=ids, target=["0"] * 40, sign=[1] * 40)
    rows = parse(one, Policies())
    assert not rows.num_bad
    assert rows.source.to_list() == ids
    assert rows.notes == ["ids are taken for texts: 1 whole number among them exceed 64 bits"]
    assert parse(one, Policies(ids="numbers")).num_bad == {"source exceeds 64 bits": 1}
