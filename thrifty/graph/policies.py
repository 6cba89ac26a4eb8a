"""What becomes of rows that a signed graph cannot hold as they are: repeated pairs, self-loops, zeros."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int8, Int64

from thrifty import settings
from thrifty.errors import DataError, SettingError


@dataclass(frozen=True)
class Policies:
    """What to do with rows that a signed graph cannot hold as they are.

    A directed pair that is told more than once is a *duplicate* where all its rows have the same sign, and a
    *conflict* where both signs occur. `duplicates` says which of its rows stays (with its weight and time);
    `conflicts` says which sign wins: that of the last, first or newest row, that of the `sum` of the signs (the last
    row of that sign stays; a tie drops the pair), or none (`drop`). "newest" needs times; rows of the same time count
    in their order. `threshold` parts ratings: above it positive, below it negative, at it zero.
    `odd_signs`: a number other than -1, 0 and 1 in a column of signs. `ids`: "guess" takes them for whole numbers
    where at least 95 % of the rows have such ids; the others are then bad rows.
    """

    duplicates: Literal["last", "first", "newest", "error"] = "last"
    conflicts: Literal["last", "first", "newest", "sum", "drop", "error"] = "last"
    self_loops: Literal["drop", "error"] = "drop"
    zeros: Literal["drop", "positive", "negative", "error"] = "drop"
    odd_signs: Literal["error", "drop"] = "error"
    ids: Literal["guess", "numbers", "texts"] = "guess"
    threshold: float = 0.0
    most_bad: float = 0.5

    def __post_init__(self) -> None:
        settings.check(self)
        if not np.isfinite(self.threshold):
            raise SettingError(f"Policies: threshold={self.threshold}; use a number")
        if not 0 <= self.most_bad <= 1:
            raise SettingError(f"Policies: most_bad={self.most_bad}; use a share of the rows, 0 to 1")


@dataclass(frozen=True)
class Repeated:
    """Which rows stay when every directed pair may be told once, and how many left, by why."""

    stays: Bool[np.ndarray, " rows"]
    num_duplicates: int
    num_conflicts: int
    num_pairs_in_conflict: int
    num_pairs_gone: int


def once_each(
    key: Int64[np.ndarray, " rows"],
    sign: Int8[np.ndarray, " rows"],
    time: Float64[np.ndarray, " rows"] | None,
    policies: Policies,
) -> Repeated:
    """Decide which rows stay so that each key occurs once; raises where a policy says "error" or lacks times."""
    stays = np.ones(len(key), dtype=bool)
    rows = np.flatnonzero(pl.Series(key).is_duplicated().to_numpy())
    if not len(rows):
        return Repeated(stays, 0, 0, 0, 0)
    if time is None and "newest" in (policies.duplicates, policies.conflicts):
        raise SettingError(
            f"{len(rows):,} rows tell a pair that another row tells too, and the newest is to stay, "
            "but there are no times; name the column of times, or let the last or the first stay"
        )
    table = pl.DataFrame({"key": key[rows], "sign": sign[rows].astype(np.int64), "row": rows})
    if time is not None:
        table = table.with_columns(time=pl.Series(time[rows]).fill_nan(-np.inf))
    in_conflict = pl.col("sign").min().over("key") != pl.col("sign").max().over("key")
    table = table.with_columns(conflict=in_conflict)
    parts = {"duplicates": table.filter(~pl.col("conflict")), "conflicts": table.filter("conflict")}
    left = {}
    for what, part in parts.items():
        policy = getattr(policies, what)
        if policy == "error" and part.height:
            raise DataError(_refused(what, part))
        stay = _winners(part, policy)
        stays[part["row"].to_numpy()] = False
        stays[stay] = True
        left[what] = part.height - len(stay)
    num_pairs = parts["conflicts"]["key"].n_unique()
    gone = num_pairs - (parts["conflicts"].height - left["conflicts"])
    return Repeated(stays, left["duplicates"], left["conflicts"], num_pairs, gone)


def _winners(part: pl.DataFrame, policy: str) -> Int64[np.ndarray, " stay"]:
    if policy == "drop":
        return np.zeros(0, dtype=np.int64)
    if policy == "sum":
        # The last row whose sign is that of the sum; no row has the sign of a sum of 0.
        part = part.filter(pl.col("sign") == pl.col("sign").sum().over("key").sign())
    order = ["time", "row"] if policy == "newest" else ["row"]
    chosen = part.sort(order).unique("key", keep="first" if policy == "first" else "last", maintain_order=True)
    return chosen["row"].to_numpy()


def _refused(what: str, part: pl.DataFrame) -> str:
    kind = "with both signs" if what == "conflicts" else "more than once"
    first = part.filter(pl.col("key") == part["key"][0])["row"].to_list()[:3]
    others = "last, first, newest" + (", sum or drop" if what == "conflicts" else "")
    return (
        f"{part['key'].n_unique():,} pairs are told {kind} (the first in good rows {', '.join(map(str, first))}), "
        f"which {what}=error refuses; clean the rows, or set {what} to {others}"
    )
