"""Write tables of edges or predictions, whole or not at all."""

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from thrifty.errors import SettingError
from thrifty.files import check_new, replacing
from thrifty.graph.signed import SignedGraph

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def write_table(path: Path, table: Mapping[str, np.ndarray] | pl.DataFrame, overwrite: bool = False) -> None:
    """Write columns to CSV, TSV (each also packed with gzip) or Parquet, as the suffix says.

    NaN is an empty field in a text and NaN in Parquet. Raises `SettingError` for another suffix, `OutputError` where
    a file is in the way (and no `overwrite`), or where it cannot be written.
    """
    kind = check_output(path, overwrite)
    frame = table if isinstance(table, pl.DataFrame) else as_frame(table)
    with replacing(path) as temporary:
        if kind == ".parquet":
            frame.write_parquet(temporary)
        elif kind.endswith(".gz"):
            # No time in the file: the same table gives the same bytes.
            with temporary.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                packed.write(_as_text(frame, kind).encode())
        else:
            temporary.write_text(_as_text(frame, kind), encoding="utf-8", newline="")


def check_output(path: Path, overwrite: bool = False) -> str:
    """Return the suffix of a table that may be written to `path`; raises as `write_table` would, before the work."""
    kind = next((suffix for suffix in sorted(SUFFIXES, key=len)[::-1] if path.name.lower().endswith(suffix)), None)
    if kind is None:
        raise SettingError(f"cannot write a table to {path}: its suffix is {path.suffix!r}; use {', '.join(SUFFIXES)}")
    check_new(path, overwrite)
    return kind


def as_frame(table: Mapping[str, np.ndarray]) -> pl.DataFrame:
    """Columns of numpy as a table of polars; an array of objects is a column of texts."""
    return pl.DataFrame(
        {
            name: pl.Series(values.tolist(), dtype=pl.String)
            if values.dtype == object and not _holds_numbers(values)
            else pl.Series(values.tolist() if values.dtype == object else values)
            for name, values in table.items()
        }
    )


def edge_columns(graph: SignedGraph) -> dict[str, np.ndarray]:
    """The edges of a graph as columns, with the ids of its input."""
    columns = {
        "source": graph.names[graph.source],
        "target": graph.names[graph.target],
        "sign": graph.sign,
        "weight": graph.weight,
        "time": graph.time,
    }
    return {name: values for name, values in columns.items() if values is not None}


def _holds_numbers(values: np.ndarray) -> bool:
    return len(values) > 0 and all(value is None or isinstance(value, int) for value in values.tolist())


def _as_text(frame: pl.DataFrame, kind: str) -> str:
    floats = [name for name, dtype in frame.schema.items() if dtype.is_float()]
    frame = frame.with_columns(pl.col(floats).fill_nan(None))
    separator = "\t" if kind.startswith(".tsv") else ","
    return frame.write_csv(separator=separator)
