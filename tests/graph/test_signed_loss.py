"""The loss of SGCN against PyG's own, and the draws of non-edges."""

import numpy as np
import torch
from torch_geometric.nn import SignedGCN

from thrifty.graph.signed import SignedGraph
from thrifty.graph.signed_loss import LossEdges, NonEdges, SignHead, sgcn_loss, triplet_loss
from thrifty.graph.train import generator_of

CPU = torch.device("cpu")


def some_edges(nodes: int = 40, edges: int = 200) -> LossEdges:
    generator = np.random.default_rng(0)
    key = generator.choice(nodes * nodes, 2 * edges, replace=False)
    source, target = key // nodes, key % nodes
    kept = np.flatnonzero(source != target)[:edges]
    sign = generator.choice([-1, 1, 1], edges)
    return LossEdges(SignedGraph.of(source[kept], target[kept], sign, nodes), CPU)


def test_both_signs_weigh_one_and_what_is_not_counted_nothing() -> None:
    edges = some_edges()
    assert torch.isclose(edges.weight.sum(), torch.tensor(2.0))
    edges.count(torch.arange(100))
    assert (edges.weight[100:] == 0).all()
    for sign in (1, -1):
        assert torch.isclose(edges.weight[edges.sign == sign].sum(), torch.tensor(1.0))


def test_a_sign_without_edges_weighs_nothing() -> None:
    edges = some_edges()
    edges.count((edges.sign > 0).nonzero().squeeze(1))
    assert torch.isclose(edges.weight.sum(), torch.tensor(1.0))


def test_drawn_pairs_are_no_edges_and_reach_all_others() -> None:
    edges = some_edges(nodes=12, edges=20)
    non_edges = NonEdges(edges, generator_of(0, CPU))
    source, target = non_edges.pairs(20_000)
    known = {(int(i), int(j)) for i, j in zip(edges.source, edges.target, strict=True)}
    drawn = list(zip(source.tolist(), target.tolist(), strict=True))
    assert sum(pair in known or pair[0] == pair[1] for pair in drawn) < 400  # by chance 3 in 400 after three draws
    assert len(set(drawn) - known) > 0.75 * (12 * 11 - 20)


def test_triplet_loss_and_gradient_are_those_of_the_formula() -> None:
    edges = some_edges()
    z = torch.randn(40, 6, requires_grad=True)
    other = NonEdges(edges, generator_of(0, CPU)).targets(edges.source)
    gap = (z[edges.source] - z[edges.target]).square().sum(1) - (z[edges.source] - z[other]).square().sum(1)
    wanted = (torch.relu(edges.sign * gap) * edges.weight).sum()
    got = triplet_loss(z, edges, other)
    assert torch.allclose(got, wanted)
    assert torch.allclose(torch.autograd.grad(got, z)[0], torch.autograd.grad(wanted, z)[0], atol=1e-6)


def test_loss_is_that_of_pyg() -> None:
    edges = some_edges()
    peer = SignedGCN(8, 8, 2, lamb=5)
    head = SignHead(8)
    head.linear.load_state_dict(peer.lin.state_dict())
    peer.requires_grad_(False)
    head.requires_grad_(False)
    z = torch.randn(40, 8)
    index = torch.stack([edges.source, edges.target]).long()
    positive, negative = index[:, edges.sign > 0], index[:, edges.sign < 0]
    non_edges = NonEdges(edges, generator_of(0, CPU))
    draws = 30  # both draw other non-edges every time
    got = np.mean([float(sgcn_loss(z, head, edges, non_edges, 5.0)) for _ in range(draws)])
    wanted = np.mean([float(peer.loss(z, positive, negative)) for _ in range(draws)])
    assert abs(got - wanted) < 0.03 * wanted
