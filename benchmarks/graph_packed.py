"""The six public graphs and SGA's five splits in one small file, for a machine without polars or the data sets."""

from pathlib import Path

import numpy as np

from thrifty.graph.signed import SignedGraph

SETS = ("bitcoin-alpha", "bitcoin-otc", "wiki-elec", "wiki-rfa", "slashdot", "epinions")


def pack(path: Path) -> None:
    """Write every graph with a bit mask of the test edges of its official splits."""
    from thrifty.graph import known
    from thrifty.graph.split import splits

    arrays = {}
    for name in SETS:
        graph = known.load(name).graph
        order = np.argsort(graph.key)
        mask = np.zeros(graph.num_edges, dtype=np.uint8)
        for place, split in enumerate(splits(graph, "sga", origin=name)):
            mask |= split.test.astype(np.uint8) << place
        target = np.diff(graph.target[order], prepend=0).astype(np.int32)
        arrays |= {
            f"{name}.out": np.bincount(graph.source, minlength=graph.num_nodes).astype(np.int32),
            f"{name}.target": target,
            f"{name}.sign": np.packbits(graph.sign[order] > 0),
            f"{name}.mask": mask[order],
        }
    np.savez_compressed(path, **arrays)


def load(path: Path, name: str) -> tuple[SignedGraph, np.ndarray]:
    """A graph, and the test edges of the five splits as booleans [5, edges]."""
    with np.load(path) as arrays:
        out = arrays[f"{name}.out"]
        target, sign, mask = (arrays[f"{name}.{part}"] for part in ("target", "sign", "mask"))
    source = np.repeat(np.arange(len(out)), out)
    signs = np.where(np.unpackbits(sign)[: len(source)], 1, -1)
    graph = SignedGraph.of(source, np.cumsum(target), signs, len(out))
    return graph, np.stack([(mask >> place) & 1 == 1 for place in range(5)])
