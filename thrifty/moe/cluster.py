"""Experts and routers from one look at the data: groups of tokens, and the channels that each group needs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from thrifty import gates
from thrifty.errors import DataError
from thrifty.gates import Controller

ROUNDS = 15
SHARPNESS = 4.0
"""The router logit of a token that lies on a centre, per unit of the token's length."""
TRIES, STEPS, RATE, SAMPLE = 3, 60, 0.05, 4096
"""How a router is fitted: so many times experts and router in turn, Adam steps, learning rate, tokens of a step."""


@dataclass(frozen=True)
class Groups:
    """Groups of tokens: the router whose largest logit is a token's group, and each group's need of each channel."""

    router: Float[Tensor, "groups d"]
    energy: Float[Tensor, "groups channels"]


def groups(
    x: Float[Tensor, "tokens d"],
    h: Float[Tensor, "tokens channels"],
    norms: Float[Tensor, " channels"],
    num_groups: int,
    width: int,
    generator: torch.Generator,
    by_need: bool = True,
) -> Groups:
    """Group tokens for experts of `width` channels.

    From x alone: spherical k-means, whose centres are the router. `by_need`: tokens that need the same channels. An
    expert keeps the channels with most energy (h_j |W_down[:, j]|)^2 over its tokens, each token's energies summing to
    1; a token belongs to the expert that keeps most of its own (k-means with masks for centres). The router is then
    fitted so that the energy lost at the expert it chooses is small, and the experts are formed anew from its choices.
    """
    if num_groups == 1:
        labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return Groups(torch.zeros(1, x.shape[1], device=x.device), energies(h, norms, labels, 1))
    means, labels = spherical_means(x, num_groups, generator)
    if not by_need:
        return Groups(SHARPNESS * means, energies(h, norms, labels, num_groups))
    energy = (h * norms).square()
    energy = energy / energy.sum(-1, keepdim=True).clamp_min(1e-30)
    for _ in range(ROUNDS):
        labels = (energy @ _widest(summed(energy, labels, num_groups)[0], width).T).argmax(-1)
    unit = x / x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
    router = normalize(summed(unit, labels, num_groups)[0], dim=-1)
    for _ in range(TRIES):
        kept = energy @ _widest(summed(energy, labels, num_groups)[0], width).T
        router = _fitted_router(unit, kept, router, generator)
        labels = (unit @ router.T).argmax(-1)
    sums, counts = summed(energy, labels, num_groups)
    length = x.square().mean(-1).sqrt().mean()
    return Groups(router / length, sums / counts.clamp_min(1)[:, None])


def _widest(scores: Float[Tensor, "groups channels"], width: int) -> Float[Tensor, "groups channels"]:
    return torch.zeros_like(scores).scatter_(-1, scores.topk(width, dim=-1).indices, 1.0)


@torch.enable_grad()
def _fitted_router(
    unit: Float[Tensor, "tokens d"],
    kept: Float[Tensor, "tokens groups"],
    router: Float[Tensor, "groups d"],
    generator: torch.Generator,
) -> Float[Tensor, "groups d"]:
    """The linear router under whose softmax the tokens lose least against the best group of each."""
    lost = kept.amax(-1, keepdim=True) - kept
    lost = lost / lost.mean().clamp_min(1e-12)
    learnt = router.clone().requires_grad_()
    optimizer = torch.optim.Adam([learnt], lr=RATE)
    for _ in range(STEPS):
        rows = torch.randint(len(unit), (SAMPLE,), generator=generator, device=unit.device)
        chance = (unit[rows] @ learnt.T).softmax(-1)
        (learnt.grad,) = torch.autograd.grad((chance * lost[rows]).sum(-1).mean(), [learnt])
        optimizer.step()
    return learnt.detach()


def spherical_means(
    x: Float[Tensor, "tokens d"], num_clusters: int, generator: torch.Generator, rounds: int = ROUNDS
) -> tuple[Float[Tensor, "clusters d"], Int[Tensor, " tokens"]]:
    """Spherical k-means: directions of unit length, and the direction closest to each row of `x`.

    A direction without tokens moves to the token that is farthest from its own. Raises `DataError` where there are
    fewer tokens than clusters.
    """
    if len(x) < num_clusters:
        raise DataError(f"{len(x)} tokens cannot form {num_clusters} clusters; give more text or fewer experts")
    points = normalize(x.float(), dim=-1)
    means = _spread_out(points, num_clusters, generator)
    for _ in range(rounds):
        nearness, labels = (points @ means.T).max(-1)
        sums, counts = summed(points, labels, num_clusters)
        lost = (counts == 0).nonzero().flatten()
        sums[lost] = points[nearness.argsort()[: len(lost)]]
        means = normalize(sums, dim=-1)
    return means, (points @ means.T).argmax(-1)


def _spread_out(points: Float[Tensor, "tokens d"], count: int, generator: torch.Generator) -> Float[Tensor, "count d"]:
    """First centres as in k-means++ (Arthur and Vassilvitskii, 2007): each is drawn by its distance to those before."""
    chosen = torch.randint(len(points), (1,), generator=generator, device=points.device)
    nearest = points @ points[chosen[0]]
    for _ in range(count - 1):
        distance = (1 - nearest).clamp_min(0) + 1e-9
        drawn = torch.multinomial(distance, 1, generator=generator)
        chosen = torch.cat([chosen, drawn])
        nearest = torch.maximum(nearest, points @ points[drawn[0]])
    return points[chosen]


def summed(
    rows: Float[Tensor, "tokens size"], labels: Int[Tensor, " tokens"], num_clusters: int
) -> tuple[Float[Tensor, "clusters size"], Float[Tensor, " clusters"]]:
    """The sum of the rows with each label, and their number; the same at every run, also on a GPU."""
    members = one_hot(labels, num_clusters).to(rows.dtype)
    return members.T @ rows, members.sum(0)


def energies(
    h: Float[Tensor, "tokens channels"],
    norms: Float[Tensor, " channels"],
    labels: Int[Tensor, " tokens"],
    num_clusters: int,
) -> Float[Tensor, "clusters channels"]:
    """What each channel adds to the output for the tokens of a cluster: the mean over its tokens of
    (h_j * |W_down[:, j]|)^2, that is RMS(h_j) * |W_down[:, j]| squared."""
    sums, counts = summed(h.square(), labels, num_clusters)
    return sums / counts.clamp_min(1)[:, None] * norms.square()


def start_logits(
    energy: Float[Tensor, "experts channels"], share: float, spread: float = 3.0
) -> Float[Tensor, "experts channels"]:
    """Logits that rank the channels of each expert by their energy and open `share` of its gates on average.

    `spread` is their standard deviation; large against the noise of a gate (1.28), so that experts start apart.
    """
    scores = energy.clamp_min(1e-30).log()
    scores = scores - scores.mean(-1, keepdim=True)
    logits = spread * scores / scores.std(-1, keepdim=True).clamp_min(1e-6)
    low, high = (torch.full_like(logits[:, :1], edge) for edge in (-60.0, 60.0))
    for _ in range(40):
        middle = (low + high) / 2
        is_less = gates.keep_probability(logits + middle).mean(-1, keepdim=True) < share
        low, high = torch.where(is_less, middle, low), torch.where(is_less, high, middle)
    return logits + (low + high) / 2


@torch.no_grad()
def solve_heads(controller: Controller, wanted: dict[str, Float[Tensor, "experts _"]]) -> None:
    """Set the heads of the sites in `wanted` so that the controller emits these logits: a linear system with as many
    equations for each channel as there are experts, solved exactly while these are no more than the width of an
    embedding (128)."""
    embedded = controller.embeddings()
    places = {name: number for number, name in enumerate(controller.sites)}
    for name, logits in wanted.items():
        number = places[name]
        norm, head = controller.norms[number], controller.heads[number]
        assert isinstance(norm, nn.LayerNorm)
        assert isinstance(head, nn.Linear)
        features = controller.activation(norm(embedded[number]))
        head.weight.copy_((torch.linalg.pinv(features.double()) @ logits.double()).T.float())
