"""What is written can be read again, whole, and nothing is overwritten unasked."""

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.errors import OutputError, SettingError
from thrifty.graph.reading import read
from thrifty.graph.writing import as_frame, check_output, edge_columns, write_table

SUFFIXES = [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet"]
TABLE = {"source": np.array(["a", "b"], dtype=object), "probability": np.array([0.25, np.nan])}
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=4)


@given(
    st.dictionaries(st.tuples(NAMES, NAMES), st.tuples(st.sampled_from([-1, 1]), st.floats(0, 1e9)), min_size=1),
    st.sampled_from(SUFFIXES),
)
def test_a_written_graph_is_read_as_it_was(told: dict, suffix: str) -> None:
    rows = [(*pair, sign, time) for pair, (sign, time) in told.items() if pair[0] != pair[1]]
    if not rows or any("\ufffd" in name for row in rows for name in row[:2]):
        return
    frame = pl.DataFrame(rows, schema=["source", "target", "sign", "time"], orient="row")
    graph = read(frame).graph
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"edges{suffix}"
        write_table(path, edge_columns(graph))
        again = read(path).graph
    names = [graph.names.tolist(), again.names.tolist()]
    if graph.names.dtype == again.names.dtype:  # a text table does not tell the text 7 from the number 7
        assert names[0] == names[1]
        assert again.source.tolist() == graph.source.tolist()
        assert again.target.tolist() == graph.target.tolist()
        assert again.sign.tolist() == graph.sign.tolist()
        assert again.time is not None
        assert graph.time is not None
        assert again.time.tolist() == graph.time.tolist()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_table_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_table(first, TABLE)
    write_table(second, as_frame(TABLE))
    assert first.read_bytes() == second.read_bytes()


def test_what_is_unknown_is_empty_in_a_text(tmp_path: Path) -> None:
    write_table(tmp_path / "x.csv", TABLE)
    assert (tmp_path / "x.csv").read_text() == "source,probability\na,0.25\nb,\n"


def test_objects_may_be_numbers_with_gaps() -> None:
    frame = as_frame({"source": np.array([1, None], dtype=object), "target": np.array(["a", None], dtype=object)})
    assert frame.rows() == [(1, "a"), (None, None)]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("mine")
    with pytest.raises(OutputError, match="is there already; name another file or add --overwrite"):
        write_table(path, TABLE)
    assert path.read_text() == "mine"
    write_table(path, TABLE, overwrite=True)
    assert path.read_text().startswith("source")


def test_another_suffix_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"suffix is '.xlsx'; use .csv"):
        check_output(tmp_path / "x.xlsx")
