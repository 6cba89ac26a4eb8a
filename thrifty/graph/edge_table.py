"""One table of edges, with the columns source, target, sign or rating, weight and time, from whatever holds it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from thrifty.errors import DataError
from thrifty.graph.columns import Columns, Found, find_columns
from thrifty.graph.text_table import EXTRA, TextTable, read_text

SUFFIXES = ".csv, .tsv, .txt (each also .gz), .parquet, or a folder of .parquet files"
TIME_FROM = 1e8
"""A fourth column without a name is a time where its middle value is larger than this: seconds since 1970."""


@dataclass(frozen=True)
class EdgeTable:
    """Rows as the origin holds them: columns of any type named source, target, sign or rating, weight, time, more."""

    frame: pl.DataFrame
    origin: str
    notes: list[str] = field(default_factory=list)
    lines_of: Callable[[list[int]], dict[int, tuple[int, str]]] | None = None

    def shown(self, rows: list[int]) -> dict[int, str]:
        """What rows hold, for a person: `line 7: 'a,b,??'`, or `row 7: ...` (from 1) where there are no lines."""
        lines = self.lines_of(rows) if self.lines_of is not None else {}
        if lines:
            return {row: f"line {number:,}: {text[:60]!r}" for row, (number, text) in lines.items()}
        return {row: f"row {row + 1:,}: {', '.join(map(str, self.frame.row(row)))[:60]!r}" for row in rows}


def load(origin: Any, columns: Columns, needs_sign: bool = True) -> EdgeTable:
    """Return the rows of a file, a folder of Parquet, a table of polars or pandas, a NetworkX graph, or PyG `Data`.

    Without `needs_sign` there may be no rows. Raises `DataError` where there is no such thing, it is unusable, or it
    lacks a column.
    """
    if isinstance(origin, str | Path):
        return _of_path(Path(origin).expanduser(), columns, needs_sign)
    library = type(origin).__module__.partition(".")[0]
    if library == "polars":
        return _named(origin.lazy(), "the table", columns, needs_sign)
    if library == "pandas":
        # Column by column through numpy: polars would need pyarrow for the whole.
        parts = {str(name): _of_pandas(origin[name]) for name in origin.columns}
        return _named(pl.LazyFrame(parts), "the table", columns, needs_sign)
    if hasattr(origin, "edge_index"):
        return _of_tensors(origin, columns, needs_sign)
    if hasattr(origin, "edges") and hasattr(origin, "is_directed"):
        return _of_networkx(origin, columns, needs_sign)
    raise DataError(
        f"cannot read edges from {type(origin).__name__}; give a path ({SUFFIXES}), a table of polars or pandas, "
        "a NetworkX graph, or PyG Data"
    )


def column_of(values: np.ndarray) -> pl.Series:
    """An array as a column; objects are texts where one of them is, and None or NaN is nothing.

    Objects that are no values of a column, such as arrays beside numbers or dictionaries, are texts as well.
    """
    if values.dtype != object:
        return pl.Series(values)
    known = [None if _is_missing(value) else value for value in values.tolist()]
    texts = pl.Series([None if value is None else str(value) for value in known], dtype=pl.String)
    if any(isinstance(value, str) for value in known):
        return texts
    try:
        column = pl.Series(known, strict=False)
    except (TypeError, ValueError, pl.exceptions.PolarsError):
        return texts
    return texts if column.dtype in (pl.Object, pl.Struct) else column


def _is_missing(value: Any) -> bool:
    """Whether a value is None or NaN; an array is compared item by item, and is none."""
    differs = value != value
    return value is None or (isinstance(differs, bool | np.bool_) and bool(differs))


def _of_pandas(column: Any) -> pl.Series:
    values = column.to_numpy()
    if values.dtype == object:
        values = values.copy()
        values[np.asarray(column.isna())] = None  # pandas' NA has no truth value: comparing it would be an error
    return column_of(values)


def _of_path(path: Path, columns: Columns, needs_sign: bool) -> EdgeTable:
    if not path.exists():
        raise DataError(f"there is no file {str(path)!r}; give {SUFFIXES}")
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise DataError(f"{path} is a folder without .parquet files; give {SUFFIXES}")
        return _of_parquet(files, str(path), columns, needs_sign)
    if path.suffix.lower() in (".parquet", ".pq"):
        return _of_parquet([path], str(path), columns, needs_sign)
    kinds = [suffix.lower() for suffix in path.suffixes[-2:] if suffix.lower() != ".gz"]
    if kinds and kinds[-1] in (".xlsx", ".xls", ".json", ".jsonl", ".feather", ".arrow", ".npz", ".npy", ".pt", ".zip"):
        raise DataError(f"{path}: {kinds[-1]} cannot be read; give {SUFFIXES}")
    return _of_text(path, columns, needs_sign)


def _of_parquet(files: list[Path], origin: str, columns: Columns, needs_sign: bool) -> EdgeTable:
    for file in files:
        with file.open("rb") as stream:
            start = stream.read(4)
        if not start:
            raise DataError(f"{file} is empty (0 bytes); give a Parquet file with the columns source, target and sign")
        if start != b"PAR1":
            raise DataError(f"{file} is named .parquet and is no Parquet file; rename it (.csv?) or make it anew")
    try:
        return _named(pl.scan_parquet(files, glob=False), origin, columns, needs_sign)
    except (pl.exceptions.PolarsError, OSError) as error:
        said = str(error).splitlines()[0][:200]
        raise DataError(f"{origin} cannot be read as Parquet ({said}); it may be cut off: make it anew") from error


def _of_text(path: Path, columns: Columns, needs_sign: bool) -> EdgeTable:
    try:
        text = read_text(path)
    except pl.exceptions.PolarsError as error:
        said = str(error).splitlines()[0][:200]
        raise DataError(f"{path} cannot be read as a table ({said}); part the fields by commas or tabs") from error
    if text.header is not None:
        found = find_columns(text.header, columns, str(path), needs_sign)
    else:
        found = _by_place(text, columns, str(path), needs_sign)
    picked = {what: pl.col(str(place)) for what, place in found.places.items()}
    # A row is blank where every field is, also those that are not picked.
    blank = pl.all_horizontal(pl.all().is_null())
    frame = text.frame.select(**picked, **{EXTRA: pl.col(EXTRA)}, blank=blank)
    if needs_sign and bool(frame["blank"].all()):
        raise DataError(f"{path} has a header and no rows; give a table with at least one edge")
    return EdgeTable(frame, str(path), [*text.notes, *found.notes], text.lines_of)


def _by_place(text: TextTable, columns: Columns, origin: str, needs_sign: bool) -> Found:
    """Columns without names: source, target, then sign or rating, then weight or time; or as told, from `1` on."""
    width = text.frame.width - 1
    names = [str(place + 1) for place in range(width)]
    if any(vars(columns).values()):
        return find_columns(names, columns, f"{origin} (no header; columns are named 1, 2, ...)", needs_sign)
    if width < (3 if needs_sign else 2):
        raise DataError(f"{origin} has no header and {width} columns; give source, target and sign")
    places = {"source": 0, "target": 1}
    values = {place: text.frame[str(place)].cast(pl.Float64, strict=False).drop_nulls() for place in range(2, width)}
    if width > 2:
        is_sign = values[2].is_in([-1.0, 0.0, 1.0]).all()
        places["sign" if is_sign else "rating"] = 2
    if width == 4:
        middle = values[3].abs().median()
        places["time" if isinstance(middle, float) and middle > TIME_FROM else "weight"] = 3
    elif width > 4:
        places |= {"weight": 3, "time": 4}
    taken = ", ".join(f"{what} ({place + 1})" for what, place in places.items())
    return Found(places, (f"no header: the columns are taken for {taken}",))


def _named(frame: pl.LazyFrame, origin: str, columns: Columns, needs_sign: bool) -> EdgeTable:
    names = frame.collect_schema().names()
    found = find_columns(names, columns, origin, needs_sign)
    table = frame.select(**{what: pl.col(names[place]) for what, place in found.places.items()}).collect()
    for what, kind in table.schema.items():
        if kind.is_nested():
            raise DataError(
                f"{origin}: the {what} in column {names[found.places[what]]!r} is {kind}; give one value a row"
            )
    if needs_sign and not table.height:
        raise DataError(f"{origin} has no rows; give a table with at least one edge")
    return EdgeTable(table, origin, list(found.notes))


def _is_number(node: Any) -> bool:
    """Whether a node is a whole number of 64 bits; others are named by their texts."""
    return isinstance(node, int | np.integer) and not isinstance(node, bool) and -(2**63) <= int(node) < 2**63


def _of_tensors(data: Any, columns: Columns, needs_sign: bool) -> EdgeTable:
    """The edges of PyG `Data`: `edge_index`, and `edge_sign`, `edge_attr` (its first column), or `edge_weight`."""
    import torch

    ends = data.edge_index
    if ends is None or ends.ndim != 2 or len(ends) != 2:
        found = "no edge_index" if ends is None else f"an edge_index of shape {list(ends.shape)}"
        raise DataError(f"the Data has {found}; give it one of shape [2, edges]")
    source, target = np.asarray(ends.cpu())
    parts = {"source": source, "target": target}
    notes = []
    names = {"edge_sign": "sign", "edge_label": "sign", "edge_attr": "rating", "edge_weight": "weight"}
    for name, what in {**names, "edge_time": "time", "time": "time", "t": "time"}.items():
        value = getattr(data, name, None)
        if value is None or what in parts:
            continue
        values = torch.as_tensor(value).detach().cpu()
        values = np.atleast_1d(values.double() if values.is_floating_point() else values)  # numpy lacks bfloat16
        if values.ndim == 2:
            if not values.shape[1]:
                continue
            if values.shape[1] > 1:
                notes.append(f"{name} has {values.shape[1]} columns: the first is taken")
            values = values[:, 0]
        if len(values) != len(source):
            raise DataError(f"the Data has {len(source):,} edges and {len(values):,} values in {name}; give as many")
        if what == "rating" and np.isin(values, (-1, 0, 1)).all():
            what = "sign"
        parts.setdefault(what, values)
    if needs_sign and not {"sign", "rating", "weight"} & set(parts):
        raise DataError("the Data has no signs; give it edge_sign or edge_attr with +1 and -1, or ratings")
    table = _named(pl.LazyFrame(parts), "the Data", columns, needs_sign)
    return EdgeTable(table.frame, table.origin, notes + table.notes)


def _of_networkx(graph: Any, columns: Columns, needs_sign: bool) -> EdgeTable:
    """The edges of a NetworkX graph with their attributes as columns; an undirected edge counts in both directions."""
    edges = list(graph.edges(data=True))
    if not edges:
        raise DataError("the NetworkX graph has no edges; give one with at least one")
    names = sorted({str(name) for _, _, attributes in edges for name in attributes})
    clash = {"source", "target"} & set(names)
    if clash:
        raise DataError(f"edges of the NetworkX graph have an attribute {clash.pop()!r}; rename it")
    ends = [[edge[side] for edge in edges] for side in (0, 1)]
    nodes = {node for side in ends for node in side}
    is_numbered = all(_is_number(node) for node in nodes)
    if not is_numbered and len({str(node) for node in nodes}) < len(nodes):
        same = next(text for text, num in Counter(map(str, nodes)).items() if num > 1)
        raise DataError(f"several nodes of the NetworkX graph are written {same!r}; give each a name of its own")
    sides = [pl.Series([int(node) if is_numbered else str(node) for node in side]) for side in ends]
    parts = {"source": sides[0], "target": sides[1]}
    for name in names:
        told = (attributes.get(name) for _, _, attributes in edges)
        parts[name] = column_of(np.fromiter(told, dtype=object, count=len(edges)))
    frame = pl.DataFrame(parts)
    notes = []
    if not graph.is_directed():
        loops = frame["source"] == frame["target"]
        back = frame.filter(~loops).select(pl.col("target").alias("source"), pl.col("source").alias("target"), *names)
        frame = pl.concat([frame, back])
        notes.append(f"the graph is undirected: each of its {len(edges):,} edges counts in both directions")
    table = _named(frame.lazy(), "the NetworkX graph", columns, needs_sign)
    return EdgeTable(table.frame, table.origin, notes + table.notes)
