"""Full-batch training of a graph network: every epoch is one step over all edges."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.errors import DataError, SettingError
from thrifty.graph.scorer import Curriculum
from thrifty.graph.signed import SignedGraph
from thrifty.graph.signed_loss import LossEdges
from thrifty.progress import Track

Device = Literal["auto", "cpu", "cuda"]
_EAGER_STEPS = 5  # before a capture, so that all libraries and the optimiser have made their buffers
_CHECK_EVERY = 50


@dataclass(frozen=True)
class Schedule:
    """How long and how fast Adam goes."""

    epochs: int
    learning_rate: float
    weight_decay: float


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
    loss: Callable[[], Tensor],
    edges: LossEdges,
    generator: torch.Generator,
    schedule: Schedule,
    curriculum: Curriculum | None,
    track: Track,
) -> None:
    """Minimise `loss()`, which sees only the edges that the curriculum releases (all without one) in `edges.weight`.

    On CUDA the steps after the first few are replayed from one CUDA graph: `loss` must wait for no value and always
    make the same shapes, and may draw from `generator` only. Raises `DataError` where the loss is no number any more.
    """
    step = _Step(network, loss, generator, schedule)
    chosen: np.ndarray | None = None
    for epoch in track(range(schedule.epochs), "training", schedule.epochs):
        if curriculum is not None:
            released = curriculum.edges_at(epoch / schedule.epochs)
            if chosen is None or not np.array_equal(chosen, released):
                edges.count(torch.from_numpy(released).to(edges.weight.device))
                chosen = released
        step()
        if (epoch + 1) % _CHECK_EVERY == 0 or epoch + 1 == schedule.epochs:
            _check_finite(step.last, epoch, schedule)


def _check_finite(loss: Tensor, epoch: int, schedule: Schedule) -> None:
    if not np.isfinite(value := float(loss)):
        raise DataError(
            f"the loss is {value} after {epoch + 1} of {schedule.epochs} epochs; "
            f"use a learning rate below {schedule.learning_rate:g}"
        )


class _Step:
    """One step of Adam; `last` holds its loss."""

    def __init__(
        self, network: nn.Module, loss: Callable[[], Tensor], generator: torch.Generator, schedule: Schedule
    ) -> None:
        self.loss, self.generator = loss, generator
        self.on_cuda = generator.device.type == "cuda"
        self.optimiser = torch.optim.Adam(
            network.parameters(),
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            fused=True,
            capturable=self.on_cuda,
        )
        self.last = torch.zeros((), device=generator.device)
        self.done = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self.graph is not None:
            self.graph.replay()
        elif not self.on_cuda:
            self._eager()
        elif self.done < _EAGER_STEPS:
            side = torch.cuda.Stream()  # what is captured must have run on a stream of its own before
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._eager()
            torch.cuda.current_stream().wait_stream(side)
        else:
            self.graph = self._captured()
            self.graph.replay()
        self.done += 1

    def _eager(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        value = self.loss()
        value.backward()
        self.optimiser.step()
        self.last.copy_(value.detach())

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        self.optimiser.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self._eager()
        return graph
