"""Tell good rows of a table of edges from bad ones, and turn the good ones into numbers."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float64

from thrifty.graph.columns import DASHES
from thrifty.graph.edge_table import EdgeTable
from thrifty.graph.policies import Policies
from thrifty.graph.text_table import EXTRA

POSITIVE_WORDS = "+ positive pos true yes trust support friend approve for like"
NEGATIVE_WORDS = "- negative neg false no distrust oppose foe reject against dislike"
NEUTRAL_WORDS = "neutral none abstain"
WORDS = {
    **dict.fromkeys(POSITIVE_WORDS.split(), 1.0),
    **dict.fromkeys(NEGATIVE_WORDS.split(), -1.0),
    **dict.fromkeys(NEUTRAL_WORDS.split(), 0.0),
}
"""Signs that are told in words."""
MOSTLY = 0.95
"""Ids are whole numbers where at least this share of the rows says so."""

WHOLE = "^-?[1-9][0-9]*$"
"""A whole number without leading zeros, however large."""

NUM_EXAMPLES = 3
BLANK = "blank lines"
"""A kind of row that is left out, and is not held against the file."""


@dataclass(frozen=True)
class Rows:
    """The good rows of a table (ids as whole numbers or as texts), and how many others there are, by why.

    `place` is where a good row was in the table; `examples` holds the places of the first bad rows of each kind.
    """

    source: pl.Series
    target: pl.Series
    value: Float64[np.ndarray, " rows"]
    weight: Float64[np.ndarray, " rows"] | None
    time: Float64[np.ndarray, " rows"] | None
    place: pl.Series
    is_rating: bool
    num_bad: dict[str, int]
    examples: dict[str, list[int]]
    notes: list[str]


def parse(table: EdgeTable, policies: Policies) -> Rows:
    """Sort out the rows that have no source, target, or readable sign, or too many fields."""
    frame = table.frame
    is_rating = "rating" in frame.columns
    told = "rating" if is_rating else "sign"
    sides = {side: tidy(frame[side]) for side in ("source", "target")}
    sides, notes = _of_one_kind(sides, policies)
    value = number_of(frame[told])
    parsed = pl.DataFrame(sides)
    reasons = _reasons(frame, parsed, value, told)
    parsed = parsed.with_columns(value=value, place=pl.int_range(frame.height, dtype=pl.UInt32))
    for name in ("weight", "time"):
        if name in frame.columns:
            parsed = parsed.with_columns((number_of if name == "weight" else time_of)(frame[name]).alias(name))
    bad = pl.any_horizontal(*reasons.values()) if reasons else pl.lit(False)
    num_bad, examples = {}, {}
    if reasons:
        num_bad, examples = _tally(parsed.select("place", **reasons))
        parsed = parsed.filter(~bad)
    extras = {name: parsed[name] if name in parsed.columns else None for name in ("weight", "time")}
    for name, column in extras.items():
        if column is not None and (unknown := column.null_count()):
            notes.append(f"{name}: {counted(unknown, 'good row')} without one that can be read; NaN there")
    weight, time = (None if column is None else _plain(column) for column in extras.values())
    return Rows(
        source=parsed["source"],
        target=parsed["target"],
        value=_plain(parsed["value"]),
        weight=weight,
        time=time,
        place=parsed["place"],
        is_rating=is_rating,
        num_bad=num_bad,
        examples=examples,
        notes=notes,
    )


def counted(num: int, what: str = "row") -> str:
    """`1 row`, `2 rows`."""
    return f"{num:,} {what}{'' if num == 1 else 's'}"


def number_of(column: pl.Series) -> pl.Series:
    """The column as numbers; words for signs count, what is no finite number is null."""
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if column.dtype == pl.Boolean:
        return column.cast(pl.Float64) * 2 - 1
    if column.dtype != pl.String:
        values = column.cast(pl.Float64, strict=False)
        return values.set(values.is_nan() | values.is_infinite(), None)
    values = column.cast(pl.Float64, strict=False)
    unread = values.is_null() & column.is_not_null()
    if unread.any():
        texts = column.filter(unread).str.strip_chars().str.to_lowercase().str.replace(f"^[{''.join(DASHES)}]", "-")
        words = texts.replace_strict(WORDS, default=None, return_dtype=pl.Float64)
        values = values.scatter(unread.arg_true(), words.fill_null(texts.cast(pl.Float64, strict=False)))
    return values.set(values.is_nan() | values.is_infinite(), None)


def time_of(column: pl.Series) -> pl.Series:
    """The column as seconds since 1970 (dates and times), or as the numbers that it holds."""
    if column.dtype == pl.String:
        values = number_of(column)
        if values.null_count() > column.null_count():
            texts = column.str.strip_chars()
            texts = texts.str.strip_suffix("Z").str.replace(r"^(\d{4}-\d\d-\d\d)T", "$1 ")
            for form in ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M", "%Y-%m-%d"):
                moments = texts.str.to_datetime(form, strict=False, time_unit="us")
                values = values.fill_null(moments.cast(pl.Int64) / 1e6)
        return values
    if column.dtype.is_temporal():
        return column.cast(pl.Datetime("us")).cast(pl.Int64) / 1e6
    return number_of(column)


def tidy(column: pl.Series) -> pl.Series:
    """A column of ids as whole numbers or texts without white space around them; null where there is none."""
    if column.dtype.is_integer():
        numbers = column.cast(pl.Int64, strict=False)
        return numbers if numbers.null_count() == column.null_count() else column.cast(pl.String)
    if column.dtype.is_float():
        numbers = column.cast(pl.Int64, strict=False)
        is_whole = (numbers.cast(pl.Float64) == column) | column.is_null() | column.is_nan()
        return numbers if is_whole.all() else column.fill_nan(None).cast(pl.String)
    column = column.cast(pl.String).str.strip_chars()
    is_empty = column.str.len_bytes() == 0
    return column.set(is_empty, None) if is_empty.any() else column


def whole_numbers(column: pl.Series) -> pl.Series:
    """Ids that `tidy` gave as whole numbers; null where they are none: 007 and +7 are other texts than 7."""
    numbers = column.cast(pl.Int64, strict=False)
    if column.dtype != pl.String:
        return numbers
    looks_odd = column.str.starts_with("0") & (column != "0")
    for start in ("+", "-0"):
        looks_odd = looks_odd | column.str.starts_with(start)
    return numbers.set(looks_odd, None) if looks_odd.any() else numbers


def _of_one_kind(sides: dict[str, pl.Series], policies: Policies) -> tuple[dict[str, pl.Series], list[str]]:
    """Both columns of ids as whole numbers or both as texts, as asked or as most rows say."""
    if policies.ids == "texts":
        return {name: side.cast(pl.String) for name, side in sides.items()}, []
    whole = {name: whole_numbers(side) for name, side in sides.items()}
    if policies.ids == "numbers":
        return whole, []
    num_rows = _num_filled(sides)
    num_whole = _num_filled(whole)
    if num_whole == num_rows > 0:
        return whole, []
    if not num_whole or num_whole < MOSTLY * num_rows:
        return {name: side.cast(pl.String) for name, side in sides.items()}, []
    if num_large := sum(int(_is_large(sides[name], whole[name]).sum()) for name in sides):
        texts = {name: side.cast(pl.String) for name, side in sides.items()}
        return texts, [f"ids are taken for texts: {counted(num_large, 'whole number')} among them exceed 64 bits"]
    return whole, [
        f"ids are taken for whole numbers, as {num_whole / num_rows:.1%} of the rows have them; "
        f"{counted(num_rows - num_whole)} without are bad (ids=texts keeps every id as a text)"
    ]


def _is_large(told: pl.Series, whole: pl.Series) -> pl.Series:
    """Which ids are whole numbers that do not fit into 64 bits; `whole` is what `whole_numbers` made of them."""
    is_lost = whole.is_null() & told.is_not_null()
    if told.dtype != pl.String or not is_lost.any():
        return is_lost
    return is_lost.scatter(is_lost.arg_true(), told.filter(is_lost).str.contains(WHOLE))


def _num_filled(sides: dict[str, pl.Series]) -> int:
    return int((sides["source"].is_not_null() & sides["target"].is_not_null()).sum())


def _reasons(frame: pl.DataFrame, parsed: pl.DataFrame, value: pl.Series, told: str) -> dict[str, pl.Series]:
    """For each kind of bad row, which rows are; every row is of one kind at most, and kinds without rows are out."""
    kinds: dict[str, pl.Series] = {}
    if "blank" in frame.columns:
        kinds[BLANK] = frame["blank"]
    if EXTRA in frame.columns:
        kinds["too many fields"] = frame[EXTRA].is_not_null()
    for side in ("source", "target"):
        column = frame[side]
        if parsed[side].null_count():
            told_id = tidy(column)
            kinds[f"no {side}"] = told_id.is_null()
            kinds[f"{side} exceeds 64 bits"] = _is_large(told_id, parsed[side])
            kinds[f"{side} is no whole number"] = parsed[side].is_null()
        if column.dtype == pl.String and parsed[side].dtype == pl.String:
            kinds[f"{side} is not UTF-8"] = parsed[side].str.contains("\ufffd", literal=True).fill_null(False)
    kinds[f"no {told}"] = frame[told].is_null()
    kinds[f"unreadable {told}"] = value.is_null()
    taken = pl.Series([False]).new_from_index(0, frame.height)
    result = {}
    for kind, which in kinds.items():
        which = which & ~taken
        if which.any():
            result[kind] = which
            taken = taken | which
    return result


def _tally(table: pl.DataFrame) -> tuple[dict[str, int], dict[str, list[int]]]:
    kinds = [name for name in table.columns if name != "place"]
    num_bad = {kind: int(table[kind].sum()) for kind in kinds}
    examples = {kind: table["place"].filter(table[kind]).head(NUM_EXAMPLES).to_list() for kind in kinds}
    return num_bad, examples


def _plain(column: pl.Series) -> np.ndarray:
    return column.fill_null(float("nan")).to_numpy(writable=True)
