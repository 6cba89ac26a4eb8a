"""How good and how fast a network is."""

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

_ROUNDS = 20


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, the model is in eval mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The share of the images that the network tells right, in eval mode."""
    right, count = 0, 0
    with evaluating(model):
        for inputs, labels in batches:
            right = right + (model(inputs).argmax(1) == labels).sum()  # on the device: no wait for each batch
            count += len(labels)
    return float(right) / max(count, 1)


@torch.no_grad()
def latencies_ms(models: Sequence[nn.Module], inputs: Tensor, rounds: int = _ROUNDS) -> list[float]:
    """For each network the median milliseconds of a forward pass in eval mode; they take turns, and the first rounds do
    not count."""
    times: list[list[float]] = [[] for _ in models]
    with ExitStack() as modes:
        for model in models:
            modes.enter_context(evaluating(model))
        for number in range(rounds + 3):
            for place, model in enumerate(models):
                _wait(inputs.device)
                start = time.perf_counter()
                model(inputs)
                _wait(inputs.device)
                if number >= 3:
                    times[place].append((time.perf_counter() - start) * 1e3)
    return [statistics.median(one) for one in times]


def latency_ms(model: nn.Module, inputs: Tensor, rounds: int = _ROUNDS) -> float:
    """The median milliseconds of a forward pass in eval mode, after a few that do not count."""
    return latencies_ms([model], inputs, rounds)[0]


@torch.no_grad()
def largest_difference(one: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    """The largest absolute difference between the outputs of two networks in eval mode."""
    with evaluating(one), evaluating(other):
        return float((one(inputs) - other(inputs)).abs().max())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
