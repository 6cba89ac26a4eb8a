"""Work on more pairs than one process should hold: scores and triangles over folders of Parquet, on several processes.

The pairs are cut into files (`shards.shard`); every worker does whole files. One worker works in this process, with the
same functions.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np

from thrifty.graph.model import SignModel
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.paths import two_paths
from thrifty.graph.shards import Arrays, Job, ShardReport, Work, map_shards
from thrifty.graph.signed import Nodes, SignedGraph
from thrifty.progress import Track, silent


def predict_shards(
    model: Path, pairs: Path, output: Path, workers: int = 1, track: Track = silent, overwrite: bool = False
) -> ShardReport:
    """P(positive) and label of the pairs in every Parquet file of `pairs`, into a file of the same name in `output`.

    Files that an earlier run with the same model has done are not done again. Each worker loads the model once.
    """
    names = SignModel.load(model).graph.names  # first: it says what is wrong with the file
    digest = np.frombuffer(hashlib.sha256(model.read_bytes()).digest(), dtype=np.uint8)
    prepare = functools.partial(scoring, path=str(model.resolve()))
    job = Job(prepare, names, {"model_sha256": digest})
    return map_shards(job, pairs, output, workers, track, overwrite)


def balance_shards(
    graph: SignedGraph, pairs: Path, output: Path, workers: int = 1, track: Track = silent, overwrite: bool = False
) -> ShardReport:
    """For the pairs in every Parquet file: triangles that an edge would close, balanced were it positive and were it
    negative (SGA's b and u of a positive edge). The workers share one copy of the graph's neighbours."""
    neighbours = Neighbours.of(graph)
    arrays = {name: getattr(neighbours, name) for name in ("start", "node", "relation")}
    return map_shards(Job(counting, graph.names, arrays), pairs, output, workers, track, overwrite)


def scoring(arrays: Arrays, path: str) -> Work:
    """The work of `predict_shards`."""
    model = SignModel.load(Path(path))

    def work(source: Nodes, target: Nodes) -> Arrays:
        probability = model.probability(source, target)
        return {"probability": probability, "label": np.where(probability >= model.threshold, 1, -1).astype(np.int8)}

    return work


def counting(arrays: Arrays) -> Work:
    """The work of `balance_shards`."""
    neighbours = Neighbours(*(np.asarray(arrays[name]) for name in ("start", "node", "relation")))

    def work(source: Nodes, target: Nodes) -> Arrays:
        signed, weighted = two_paths(neighbours, source, target)
        return {"balanced_if_positive": (weighted + signed) / 2, "balanced_if_negative": (weighted - signed) / 2}

    return work
