"""Full-batch training of a graph network: every epoch is one step over all edges."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.errors import DataError, SettingError
from thrifty.graph.scorer import Curriculum
from thrifty.graph.signed import SignedGraph
from thrifty.graph.signed_loss import LossEdges, NonEdges, SignHead, sgcn_loss
from thrifty.graph.terms import Terms, log_prior
from thrifty.progress import Track
from thrifty.replay import Replay

Prior = Literal["corrected", "uniform"]
Device = Literal["auto", "cpu", "cuda"]
_CHECK_EVERY = 50


@dataclass(frozen=True)
class Schedule:
    """How long and how fast Adam goes."""

    epochs: int
    learning_rate: float
    weight_decay: float
    decay: Literal["none", "cosine"] = "none"

    def rate_at(self, progress: float) -> float:
        """The learning rate when this share (0 to 1) of the epochs is done; `cosine` ends near 0."""
        return self.learning_rate * (1.0 if self.decay == "none" else (1 + math.cos(math.pi * progress)) / 2)


def device_of(name: Device) -> torch.device:
    """`auto` is CUDA where there is a GPU. Raises `SettingError` where `cuda` is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingError("device=cuda, but torch finds no CUDA GPU here; use device=auto or device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, torch's CPU numbers come from this seed; afterwards they go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def generator_of(seed: int, device: torch.device) -> torch.Generator:
    """A source of random numbers on the device."""
    generator = torch.Generator(device)
    generator.manual_seed(seed)
    return generator


def check_learnable(graph: SignedGraph) -> None:
    """Raise `DataError` where there is nothing to learn a sign from."""
    if not graph.num_edges:
        raise DataError("the graph has no edge to learn from; give a graph with signed edges")


def train(
    network: nn.Module,
    losses: Sequence[Callable[[], Tensor]],
    edges: LossEdges,
    generator: torch.Generator,
    schedule: Schedule,
    curriculum: Curriculum | None,
    track: Track,
) -> None:
    """Minimise the losses in turn, one step each an epoch; they count only the edges that the curriculum releases.

    On CUDA the steps after the first few are replayed from a CUDA graph for each loss: a loss must wait for no value,
    always make the same shapes, and draw from `generator` only. Raises `DataError` where a loss is no number any more.
    """
    rate = torch.tensor(schedule.learning_rate, device=generator.device)
    optimiser = torch.optim.Adam(
        network.parameters(),
        lr=rate,
        weight_decay=schedule.weight_decay,
        fused=True,
        capturable=generator.device.type == "cuda",
    )
    pool = torch.cuda.graph_pool_handle() if generator.device.type == "cuda" else None
    steps = [
        Replay(partial(_step, loss, optimiser), generator.device, generators=[generator], pool=pool) for loss in losses
    ]
    released: np.ndarray | None = None
    for epoch in track(range(schedule.epochs), "training", schedule.epochs):
        rate.fill_(schedule.rate_at(epoch / schedule.epochs))
        if curriculum is not None:
            before, released = released, curriculum.edges_at(epoch / schedule.epochs)
            if before is None or not np.array_equal(before, released):
                edges.count(torch.from_numpy(released).to(edges.weight.device))
        values = [step() for step in steps]
        if (epoch + 1) % _CHECK_EVERY == 0 or epoch + 1 == schedule.epochs:
            _check_finite(values[-1], epoch, schedule)


def train_terms(
    network: nn.Module,
    head: SignHead,
    graph: SignedGraph,
    generator: torch.Generator,
    schedule: Schedule,
    lamb: float,
    prior: Prior,
    curriculum: Curriculum | None,
    track: Track,
) -> Terms:
    """Train a network that embeds all nodes, and its head, with the loss of SGCN; keep what each node adds."""
    edges = LossEdges(graph, generator.device)
    non_edges = NonEdges(edges, generator)
    losses = [lambda: sgcn_loss(network(), head, edges, non_edges, lamb)]
    train(network, losses, edges, generator, schedule, curriculum, track)
    with torch.no_grad():
        a, b = (term.cpu().numpy() for term in head.terms(network()))
    return Terms(a, b, log_prior(graph) if prior == "corrected" else 0.0)


def _check_finite(loss: Tensor, epoch: int, schedule: Schedule) -> None:
    if not math.isfinite(value := float(loss)):
        raise DataError(
            f"the loss is {value} after {epoch + 1} of {schedule.epochs} epochs; "
            f"use a learning rate below {schedule.learning_rate:g}"
        )


def _step(loss: Callable[[], Tensor], optimiser: torch.optim.Adam) -> Tensor:
    """One step of Adam against the loss, whose value is returned."""
    optimiser.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    optimiser.step()
    return value.detach()
