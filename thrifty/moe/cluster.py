"""Experts and routers without training: clusters of what an MLP is given, and the channels that each cluster needs."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from thrifty import gates
from thrifty.errors import DataError
from thrifty.gates import Controller

ROUNDS = 15


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
    first = torch.randperm(len(points), generator=generator, device=x.device)[:num_clusters]
    means = points[first]
    for _ in range(rounds):
        nearness, labels = (points @ means.T).max(-1)
        sums, counts = summed(points, labels, num_clusters)
        lost = (counts == 0).nonzero().flatten()
        sums[lost] = points[nearness.argsort()[: len(lost)]]
        means = normalize(sums, dim=-1)
    return means, (points @ means.T).argmax(-1)


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
    """Set the controller's heads so that it emits the logits `wanted`: a linear system with as many equations for each
    channel as there are experts, solved exactly while these are no more than the width of an embedding (128)."""
    embedded = controller.embeddings()
    for number, (name, logits) in enumerate(wanted.items()):
        norm = controller.norms[number]
        features = controller.activation(norm(embedded[number]))
        solution = torch.linalg.pinv(features.double()) @ logits.double()
        controller.heads[number].weight.copy_(solution.T.float())
        assert list(controller.sites)[number] == name
