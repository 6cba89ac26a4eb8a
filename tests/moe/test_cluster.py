"""Experts and routers from one look at the data: planted groups are found, the controller starts where it should."""

import pytest
import torch
from torch.nn.functional import normalize

from thrifty.errors import DataError
from thrifty.gates import Controller, keep_probability
from thrifty.moe import cluster


def planted(num_tokens: int = 600, num_groups: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens around orthogonal directions; the channels that fire are those of their group: x, h, group."""
    group = torch.arange(num_tokens) % num_groups
    x = 4 * torch.eye(16)[group] + 0.3 * torch.randn(num_tokens, 16)
    fires = (torch.arange(12)[None] // 4 == group[:, None]).float()
    return x, fires * (1 + torch.rand(num_tokens, 12)) + 0.01 * torch.rand(num_tokens, 12), group


@pytest.mark.parametrize("by_need", [True, False])
def test_planted_groups_are_found(by_need: bool) -> None:
    x, h, group = planted()
    found = cluster.groups(x, h, torch.ones(12), 3, 4, torch.Generator().manual_seed(2), by_need)
    labels = (x @ found.router.T).argmax(-1)
    assert len({(int(a), int(b)) for a, b in zip(group, labels, strict=True)}) == 3
    best = found.energy.topk(4).indices.sort().values
    assert sorted(best.tolist()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_grouping_by_need_loses_less_energy_than_grouping_by_input() -> None:
    """Where the input's loudest direction says nothing about what a token needs."""
    need = torch.randint(3, (900,))
    x = 6 * torch.eye(16)[8 + torch.randint(3, (900,))] + 2 * torch.eye(16)[need] + 0.1 * torch.randn(900, 16)
    h = (torch.arange(12)[None] // 4 == need[:, None]).float() + 0.01
    lost = {}
    for by_need in (True, False):
        found = cluster.groups(x, h, torch.ones(12), 3, 4, torch.Generator().manual_seed(0), by_need)
        masks = torch.zeros(3, 12).scatter_(1, found.energy.topk(4).indices, 1.0)
        lost[by_need] = (h.square() * (1 - masks[(x @ found.router.T).argmax(-1)])).sum()
    assert lost[True] < 0.5 * lost[False]


def test_every_cluster_has_a_token_even_where_first_centres_coincide() -> None:
    x = torch.cat([torch.eye(6)[:1].repeat(50, 1), torch.eye(6)[1:]])
    means, labels = cluster.spherical_means(x, 5, torch.Generator().manual_seed(0))
    assert torch.allclose(means.norm(dim=-1), torch.ones(5))
    assert len(labels.unique()) == 5


def test_fewer_tokens_than_clusters_are_refused() -> None:
    with pytest.raises(DataError, match="3 tokens cannot form 4"):
        cluster.spherical_means(torch.randn(3, 5), 4, torch.Generator())


def test_energies_are_means_over_the_tokens_of_each_cluster() -> None:
    h, labels = torch.randn(40, 6), torch.arange(40) % 2
    found = cluster.energies(h, torch.full((6,), 2.0), labels, 2)
    assert torch.allclose(found[1], 4 * h[1::2].square().mean(0), atol=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75])
def test_the_first_logits_rank_by_energy_and_open_the_share_asked_for(share: float) -> None:
    energy = torch.rand(4, 200).exp()
    logits = cluster.start_logits(energy, share)
    assert torch.allclose(keep_probability(logits).mean(-1), torch.full((4,), share), atol=1e-3)
    assert torch.equal(logits.argsort(), energy.argsort())
    assert torch.allclose(logits.std(-1), torch.full((4,), 3.0), atol=0.01)


@pytest.mark.parametrize("num_experts", [1, 8, 32])
def test_the_controller_starts_at_exactly_the_logits_asked_for(num_experts: int) -> None:
    controller = Controller(
        {"a": 40, "b": 56}, rows=num_experts, input_width=32, hidden=64, start="normal", activation="gelu",
        shared_norm=False,
    )  # fmt: skip
    wanted = {name: 3 * torch.randn(num_experts, size) for name, size in controller.sites.items()}
    cluster.solve_heads(controller, wanted)
    for name, logits in controller().items():
        assert torch.allclose(logits, wanted[name], atol=1e-3)


def test_directions_do_not_depend_on_the_length_of_tokens() -> None:
    x, _, _ = planted()
    scaled = x * torch.rand(len(x), 1).add(0.1)
    one, two = (cluster.spherical_means(rows, 3, torch.Generator().manual_seed(1))[0] for rows in (x, scaled))
    assert torch.allclose(one, two, atol=1e-5)
    assert torch.allclose(one, normalize(one, dim=-1))
