"""Features of nodes that no label was needed for: random numbers, or the strongest directions of the signed graph."""

from typing import Literal

import numpy as np
import scipy.sparse
from jaxtyping import Float32, Float64

from thrifty.graph.signed import SignedGraph

Features = Literal["spectral", "random"]
ITERATIONS = 8
"""Of the subspace iteration. On the six public graphs more change no singular value that matters by 1 %."""
_SPARE = 10


def node_features(graph: SignedGraph, kind: Features, dim: int, seed: int) -> Float32[np.ndarray, "nodes dim"]:
    """`random`: uniform on [0, 1], as SGA trains its SGCN. `spectral`: the singular vectors of `symmetrised(graph)`."""
    if kind == "random":
        return np.random.default_rng(seed).random((graph.num_nodes, dim), dtype=np.float32)
    vectors, _ = leading(symmetrised(graph), dim, seed)
    return vectors.astype(np.float32)


def symmetrised(graph: SignedGraph) -> scipy.sparse.csr_array:
    """A + Aᵀ of the signs: 2 where two nodes agree on each other, 0 where they disagree."""
    shape = (graph.num_nodes, graph.num_nodes)
    matrix = scipy.sparse.csr_array((graph.sign.astype(np.float64), (graph.source, graph.target)), shape=shape)
    return (matrix + matrix.T).tocsr()


def leading(
    matrix: scipy.sparse.csr_array, dim: int, seed: int
) -> tuple[Float64[np.ndarray, "nodes dim"], Float64[np.ndarray, " dim"]]:
    """Eigenvectors of a symmetric matrix and their values, largest absolute value first; zeros where it has no more.

    For a symmetric matrix these are the singular vectors. Randomised subspace iteration with a Rayleigh-Ritz step
    (Halko, Martinsson and Tropp, 2011, arXiv:0909.4061, algorithms 4.4 and 5.3). The entry of each vector with the
    largest absolute value is positive, so that the seed fixes the signs too.
    """
    nodes = len(matrix.indptr) - 1
    found = min(dim, nodes)
    width = min(found + _SPARE, nodes)
    basis = np.random.default_rng(seed).standard_normal((nodes, width))
    for _ in range(ITERATIONS):
        basis, _ = np.linalg.qr(matrix @ basis)
    values, turn = np.linalg.eigh(basis.T @ (matrix @ basis))
    order = np.argsort(-np.abs(values), kind="stable")[:found]
    vectors = basis @ turn[:, order]
    vectors *= np.where(vectors[np.abs(vectors).argmax(0), np.arange(found)] < 0, -1.0, 1.0)
    pad = dim - found
    return np.pad(vectors, ((0, 0), (0, pad))), np.pad(values[order], (0, pad))
