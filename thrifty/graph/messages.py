"""How a value of a node reaches its neighbours: a sparse matrix times the values of all nodes.

Rows are sorted once, so that a product reads each neighbour's row and writes each node's row a single time, and the
gradient is the product with the transposed matrix, kept as well. A scatter of one message an edge, PyG's way, moves
several times as much.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from thrifty.graph.signed import Nodes


@dataclass(frozen=True)
class Messages:
    """A fixed sparse matrix [receivers, senders] in CSR form, and its transpose."""

    matrix: Tensor
    transposed: Tensor

    @staticmethod
    def of(matrix: scipy.sparse.csr_array, device: torch.device) -> "Messages":
        """Float32, with 32-bit positions where they are enough."""
        return Messages(_csr(matrix, device), _csr(matrix.T.tocsr(), device))

    def flipped(self) -> "Messages":
        """From receivers to senders, over the same memory."""
        return Messages(self.transposed, self.matrix)

    def __call__(self, values: Float[Tensor, "senders dim"]) -> Float[Tensor, "receivers dim"]:
        """What each receiver gets; differentiable in `values`."""
        return _Product.apply(values, self.matrix, self.transposed)  # pyright: ignore[reportReturnType]


def mean_of(source: Nodes, target: Nodes, num_nodes: int, device: torch.device) -> Messages:
    """Each target gets the mean over its sources; nothing (zeros) without any."""
    counts = np.bincount(target, minlength=num_nodes)
    return weighted((1 / counts[target]).astype(np.float32), source, target, num_nodes, device)


def weighted(
    weight: Float32[np.ndarray, " edges"], source: Nodes, target: Nodes, num_nodes: int, device: torch.device
) -> Messages:
    """Each target gets the weighted sum over its sources."""
    matrix = scipy.sparse.csr_array((weight, (target, source)), shape=(num_nodes, num_nodes))
    return Messages.of(matrix, device)


def _csr(matrix: scipy.sparse.csr_array, device: torch.device) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")  # a note that CSR tensors are young, once a process
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int32)),
            torch.from_numpy(matrix.indices.astype(np.int32)),
            torch.from_numpy(matrix.data.astype(np.float32)),
            size=matrix.shape,
            device=device,
            check_invariants=False,
        )


class _Product(torch.autograd.Function):
    """torch's own gradient transposes the matrix anew in every step."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transposed @ gradients[0], None, None
