"""Scores and triangles over shards: the same on one worker and on two, and the same as in one piece."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from thrifty.graph.balance import balance
from thrifty.graph.model import SignModel
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.scale import balance_shards, predict_shards
from thrifty.graph.scorers.triads import Triads
from thrifty.graph.shards import shard
from thrifty.graph.signed import SignedGraph
from thrifty.graph.writing import as_frame, edge_columns

WORKERS = [1, pytest.param(2, marks=pytest.mark.slow)]


@pytest.fixture
def pairs(planted: SignedGraph, tmp_path: Path) -> Path:
    """The edges of the graph in three files, with a pair that has an unknown node."""
    frame = as_frame(edge_columns(planted)).select("source", "target")
    frame = pl.concat([frame, pl.DataFrame({"source": [0], "target": [99_999]})])
    shard(frame, tmp_path / "pairs", 3)
    return tmp_path / "pairs"


def together(folder: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("*.parquet"))])


@pytest.mark.parametrize("workers", WORKERS)
def test_shards_are_scored_as_one_piece_is(planted: SignedGraph, pairs: Path, tmp_path: Path, workers: int) -> None:
    model = SignModel.fit(planted, Triads(reach=2))
    model.save(tmp_path / "model")
    done = predict_shards(tmp_path / "model", pairs, tmp_path / "out", workers)
    assert (done.num_done, done.num_pairs, done.num_unknown) == (3, planted.num_edges + 1, 1)
    table = together(tmp_path / "out")
    assert table["probability"].null_count() == 1
    assert np.allclose(table["probability"].to_numpy()[:-1], model.probability(planted.source, planted.target))
    again = predict_shards(tmp_path / "model", pairs, tmp_path / "out", workers)
    assert (again.num_done, again.num_skipped) == (0, 3)


@pytest.mark.parametrize("workers", WORKERS)
def test_shards_are_counted_as_one_piece_is(planted: SignedGraph, pairs: Path, tmp_path: Path, workers: int) -> None:
    balance_shards(planted, pairs, tmp_path / "out", workers)
    table = together(tmp_path / "out")[:-1]
    expected = balance(Neighbours.of(planted), planted.source, planted.target, np.ones_like(planted.sign))
    assert (table["balanced_if_positive"].to_numpy() == expected[0]).all()
    assert (table["balanced_if_negative"].to_numpy() == expected[1]).all()
