"""What is known about a pair of nodes from the edges around it, as numbers: degrees, the reverse edge, signed paths.

Everything is read as if the edge from source to target itself were not known, so an edge of the graph and one that is
not in it are described alike (Leskovec, Huttenlocher, Kleinberg, CHI 2010, section 5, and paths of three edges).
"""

import numpy as np
from jaxtyping import Float32, Int64

from thrifty.graph import paths
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.signed import Nodes

_PATH_SCALE = 10.0  # chosen on a validation slice of the training edges: where the logarithm starts to bend


def feature_names(reach: int) -> list[str]:
    """The names of the columns of `pair_features`."""
    names = ["u out +", "u out -", "v in +", "v in -", "v out +", "v out -", "u in +", "u in -"]
    names += ["u out share +", "v in share +", "v out share +", "u in share +", "v->u +", "v->u -"]
    names += paths.two_edge_names()
    return names + (paths.three_edge_names() if reach == 3 else [])


def degrees(neighbours: Neighbours, source: Nodes, target: Nodes) -> Int64[np.ndarray, "pairs 8"]:
    """Edges of the ends, without the edge from source to target: of the source out + and -, of the target in + and -,
    of the target out + and -, of the source in + and -."""
    forth, _ = neighbours.between(source, target)
    ends = neighbours.signed_degree
    counts = np.concatenate([ends[source, :2], ends[target, 2:], ends[target, :2], ends[source, 2:]], axis=1)
    counts[:, [0, 2]] -= (forth > 0)[:, None]
    counts[:, [1, 3]] -= (forth < 0)[:, None]
    return counts


def pair_features(
    neighbours: Neighbours, source: Nodes, target: Nodes, reach: int = 3, max_degree: int = 5000
) -> Float32[np.ndarray, "pairs columns"]:
    """30 columns with a `reach` of 2, 62 with 3: log(1 + count) of degrees and paths, smoothed shares of positive
    edges, the sign of the reverse edge. `max_degree` is that of `paths.three_edges`."""
    counts = degrees(neighbours, source, target)
    _, back = neighbours.between(source, target)
    shares = (counts[:, ::2] + 1) / (counts[:, ::2] + counts[:, 1::2] + 2)
    two = paths.two_edges(neighbours, source, target)
    parts = [np.log1p(counts), shares, (back > 0)[:, None], (back < 0)[:, None], np.log1p(two)]
    if reach == 3:
        parts.append(np.log1p(_PATH_SCALE * paths.three_edges(neighbours, source, target, max_degree)))
    return np.concatenate(parts, axis=1, dtype=np.float32)
