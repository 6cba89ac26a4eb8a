"""Pairs of nodes whose sign is asked for: in the order and with the ids of the input."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int32, Shaped

from thrifty.graph.columns import Columns
from thrifty.graph.edge_table import load
from thrifty.graph.rows import ids, number_of
from thrifty.graph.signed import Nodes


@dataclass(frozen=True)
class Pairs:
    """Pairs as the input tells them, one a row, none left out.

    `source_id` and `target_id` are what the input says (whole numbers, or texts; None: nothing). `source` and `target`
    are the node numbers, -1 for an id that the graph does not have. `sign` is what the input says too, where it says
    it: NaN for a row without one.
    """

    source_id: Shaped[np.ndarray, " pairs"]
    target_id: Shaped[np.ndarray, " pairs"]
    source: Nodes
    target: Nodes
    sign: Shaped[np.ndarray, " pairs"] | None
    notes: list[str]

    @property
    def num_pairs(self) -> int:
        """Rows of the input."""
        return len(self.source)

    @property
    def is_known(self) -> Bool[np.ndarray, " pairs"]:
        """Whether the graph has both nodes; only these pairs can be scored."""
        return (self.source >= 0) & (self.target >= 0)


def read_pairs(origin: Any, names: Shaped[np.ndarray, " nodes"], columns: Columns | None = None) -> Pairs:
    """Read pairs from what `reading.read` reads edges from; a sign or rating may be there and is not needed.

    `names` are those of the graph. Ids that it does not have are counted in `notes`. Raises `DataError` for an
    unusable origin.
    """
    table = load(origin, columns or Columns(), needs_sign=False)
    frame = table.frame
    kind = pl.String if names.dtype == object else pl.Int64
    notes = list(table.notes)
    if "blank" in frame.columns and (num_blank := int(frame["blank"].sum())):
        notes.append(f"{num_blank:,} blank lines left out")
        frame = frame.filter(~pl.col("blank"))
    shown, numbers = {}, {}
    for side in ("source", "target"):
        column = ids(frame[side], kind)
        numbers[side] = node_numbers(column, names)
        as_told = ids(frame[side], pl.String) if column.null_count() > frame[side].null_count() else column
        shown[side] = _as_array(as_told)
        if missing := frame[side].null_count():
            notes.append(f"{missing:,} rows have no {side}; they are kept, without a prediction")
    told = next((name for name in ("sign", "rating") if name in frame.columns), None)
    sign = None if told is None else number_of(frame[told]).fill_null(float("nan")).to_numpy()
    pairs = Pairs(shown["source"], shown["target"], numbers["source"], numbers["target"], sign, notes)
    num_unknown = int((~pairs.is_known).sum())
    if num_unknown:
        notes.append(f"{num_unknown:,} of {pairs.num_pairs:,} pairs have a node that the graph does not have")
    return pairs


def node_numbers(column: pl.Series, names: Shaped[np.ndarray, " nodes"]) -> Int32[np.ndarray, " rows"]:
    """The number of the node of each id, -1 where there is none; `column` holds ids of the same kind as `names`."""
    if names.dtype == object:
        kind = pl.Enum(pl.Series(names.tolist(), dtype=pl.String))
        numbers = column.cast(kind, strict=False).to_physical().cast(pl.Int32)
        return numbers.fill_null(-1).to_numpy()
    if not len(names):
        return np.full(len(column), -1, dtype=np.int32)
    known = column.is_not_null().to_numpy()
    wanted = column.fill_null(0).to_numpy()
    order = np.argsort(names, kind="stable")
    place = np.minimum(np.searchsorted(names, wanted, sorter=order), len(names) - 1)
    numbers = order[place].astype(np.int32)
    numbers[(names[numbers] != wanted) | ~known] = -1
    return numbers


def _as_array(column: pl.Series) -> np.ndarray:
    if column.dtype == pl.String or column.null_count():
        return np.array(column.to_list(), dtype=object)
    return column.to_numpy()
