"""The loss of SGCN (Derr, Ma and Tang, 2018, arXiv:1808.06354, equation 12) and what it needs: edges and non-edges."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.graph.signed import SignedGraph

_BITS_PER_PAIR = 16
_REDRAWS = 3
_MIX = 0x9E3779B97F4A7C15 - (1 << 64)  # the golden ratio in 64 bits: neighbouring keys fall far apart


class LossEdges:
    """The edges of a graph on a device, which of them the loss counts, and how much where it counts both signs alike.

    `is_counted` is 0 or 1. `weight` sums to 1 over the counted edges of each sign (to 0 where a sign has none). Both
    change in place, so that a step captured in a CUDA graph sees it.
    """

    def __init__(self, graph: SignedGraph, device: torch.device) -> None:
        self.num_nodes = graph.num_nodes
        self.source = torch.from_numpy(graph.source).to(device)
        self.target = torch.from_numpy(graph.target).to(device)
        self.sign = torch.from_numpy(graph.sign).to(device, torch.float32)
        self.is_counted = torch.zeros_like(self.sign)
        self.weight = torch.zeros_like(self.sign)
        self.count(torch.arange(graph.num_edges, device=device))

    def count(self, chosen: Int[Tensor, " chosen"]) -> None:
        """Count only the edges at these positions."""
        self.is_counted.zero_().index_fill_(0, chosen, 1.0)
        self.weight.zero_()
        for sign in (1.0, -1.0):
            part = self.is_counted * (self.sign == sign)
            self.weight += part / part.sum().clamp(min=1.0)


class NonEdges:
    """Draws pairs of nodes without an edge, on the device and without waiting for it.

    A filter of 16 bits an edge tells whether a pair may be one: an edge is always recognised, and a sixteenth of the
    other pairs is mistaken for edges and never drawn. What still is an edge after three draws is let pass.
    """

    def __init__(self, edges: LossEdges, generator: torch.Generator) -> None:
        self.edges, self.generator = edges, generator
        size = _BITS_PER_PAIR * max(len(edges.source), 64)
        self.shift = 64 - (size - 1).bit_length()
        self.seen = torch.zeros(1 << (64 - self.shift), dtype=torch.bool, device=edges.source.device)
        self.seen[self._place(edges.source, edges.target)] = True

    def targets(self, source: Int[Tensor, " pairs"]) -> Int[Tensor, " pairs"]:
        """For each source a node it has no edge to."""
        target = self._nodes(len(source))
        for _ in range(_REDRAWS - 1):
            is_bad = self.seen[self._place(source, target)] | (source == target)
            target = torch.where(is_bad, self._nodes(len(source)), target)
        return target

    def pairs(self, count: int) -> tuple[Int[Tensor, " count"], Int[Tensor, " count"]]:
        """Sources and targets."""
        source = self._nodes(count)
        return source, self.targets(source)

    def _nodes(self, count: int) -> Int[Tensor, " count"]:
        device = self.edges.source.device
        high = self.edges.num_nodes
        return torch.randint(high, (count,), generator=self.generator, device=device, dtype=torch.int32)

    def _place(self, source: Tensor, target: Tensor) -> Tensor:
        mixed = (source.long() * self.edges.num_nodes + target) * _MIX
        return (mixed >> self.shift) & (len(self.seen) - 1)


class SignHead(nn.Module):
    """Tells positive, negative and none apart, linearly in [z_i ; z_j]: the logits are a_i + b_j."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, 3)

    def terms(self, z: Float[Tensor, "nodes dim"]) -> tuple[Float[Tensor, "nodes 3"], Float[Tensor, "nodes 3"]]:
        """What each node adds to the logits as a source, and as a target."""
        of_source, of_target = self.linear.weight.split(z.shape[1], dim=1)
        return F.linear(z, of_source, self.linear.bias), F.linear(z, of_target)


def sgcn_loss(
    z: Float[Tensor, "nodes dim"], head: SignHead, edges: LossEdges, non_edges: NonEdges, lamb: float
) -> Float[Tensor, ""]:
    """A third of the mean NLL of each of positive edges, negative edges and as many non-edges, plus `lamb` times the
    triplet losses: an end of a positive edge should be nearer than a node without an edge, of a negative one farther.
    """
    a, b = head.terms(z)
    i, j, weight = edges.source, edges.target, edges.weight
    label = (edges.sign < 0).long()
    told = F.cross_entropy(a.index_select(0, i) + b.index_select(0, j), label, reduction="none")
    from_node, to_node = non_edges.pairs(len(i))
    logits = a.index_select(0, from_node) + b.index_select(0, to_node)
    none = F.cross_entropy(logits, torch.full_like(label, 2))
    loss = ((told * weight).sum() + none) / 3
    if lamb:
        loss = loss + lamb * triplet_loss(z, edges, non_edges.targets(i))
    return loss


def triplet_loss(z: Float[Tensor, "nodes dim"], edges: LossEdges, other: Int[Tensor, " edges"]) -> Float[Tensor, ""]:
    """Weighted sum over edges i -> j with sign s of max(0, s (|z_i - z_j|² - |z_i - z_k|²)), k the `other` node."""
    return _Triplet.apply(z, edges.source, edges.target, other, edges.sign, edges.weight)  # pyright: ignore[reportReturnType]


class _Triplet(torch.autograd.Function):
    """Keeps one row an edge where autograd would keep and pass through nine."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, i: Tensor, j: Tensor, k: Tensor, sign: Tensor, weight: Tensor) -> Tensor:
        length = z.square().sum(1)
        apart = z.index_select(0, j).sub_(z.index_select(0, k))
        gap = length.index_select(0, j) - length.index_select(0, k)
        gap -= 2 * (z.index_select(0, i).mul_(apart)).sum(1)
        hinge = torch.relu(sign * gap)
        ctx.save_for_backward(z, i, j, k, apart, 2 * sign * weight * (hinge > 0))
        return (hinge * weight).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z, i, j, k, apart, factor = ctx.saved_tensors
        if not z.is_cuda:  # a GPU would have to wait for the count
            alive = factor.nonzero().squeeze(1)
            i, j, k, apart, factor = (x.index_select(0, alive) for x in (i, j, k, apart, factor))
        factor = (factor * gradients[0])[:, None]
        at_source = z.index_select(0, i).mul_(factor)
        lengths = torch.zeros_like(z[:, 0]).index_add_(0, j, factor[:, 0]).index_add_(0, k, -factor[:, 0])
        slope = z * lengths[:, None]
        slope.index_add_(0, j, at_source, alpha=-1)
        slope.index_add_(0, k, at_source)
        slope.index_add_(0, i, apart * factor, alpha=-1)
        return slope, None, None, None, None, None
