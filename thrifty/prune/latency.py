"""How long a network takes when only some of its parts are there: a table of measured layers, interpolated.

Every convolution and linear layer is timed alone at a grid of widths, on the user's device and batch. Two whole
networks, the given one and one with half of its parts, then say how much of a network's time is in these layers and how
much is in all else, so the table agrees with real networks at both ends.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from thrifty.errors import SettingError
from thrifty.prune.apply import smaller
from thrifty.prune.coupling import Coupling, Operation
from thrifty.prune.evaluate import evaluating
from thrifty.prune.lengths import Lengths, moved
from thrifty.prune.rules import prunes_whole_blocks

_POINTS = 5
_ROUNDS = 7


@dataclass(frozen=True, eq=False)
class Latency:
    """Milliseconds of a forward pass of `batch` examples as a function of what is kept.

    Layer l reads `lengths[2 l]` and makes `lengths[2 l + 1]` channels; `table[l]` holds its milliseconds at the widths
    `grid[2 l]` x `grid[2 l + 1]`. The network takes `rest + share * sum of the layers`.
    """

    batch: int
    lengths: Lengths
    grid: Float[Tensor, "lengths points"]
    table: Float[Tensor, "layers points points"]
    rest: float = 0.0
    share: float = 1.0

    def __call__(self, keep: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Milliseconds, in float64 on the device of `keep`, interpolated linearly in both widths of each layer."""
        lengths = self.lengths(keep)
        grid, table = moved((self.grid, self.table), lengths.device)
        points = grid.shape[1]
        low = ((lengths[:, None] >= grid).sum(1) - 1).clamp(0, points - 2)
        left, right = grid.gather(1, low[:, None])[:, 0], grid.gather(1, low[:, None] + 1)[:, 0]
        far = ((lengths - left) / (right - left)).view(-1, 2)
        layers, (i, j) = torch.arange(len(table), device=table.device), low.view(-1, 2).unbind(1)
        (x, y), corner = far.unbind(1), (lambda a, b: table[layers, i + a, j + b])
        times = (1 - x) * (1 - y) * corner(0, 0) + x * (1 - y) * corner(1, 0) + (1 - x) * y * corner(0, 1)
        return self.rest + self.share * (times + x * y * corner(1, 1)).sum()


def read_latency(text: str) -> tuple[Callable[[float], float], int]:
    """Read `5ms@32` or `60%@32` (of the whole network's time): the limit as a function of the whole's milliseconds, and
    the batch, which is 1 without `@`.

    Raises `SettingError` for anything else, and the limit does where it is more than the whole.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|%)\s*(?:@\s*(\d+))?", text.strip())
    if not found or float(found[1]) <= 0 or found[3] == "0":
        raise SettingError(f"latency {text}: use milliseconds or a share, and a batch: 5ms@32, 60%@1")

    def limit(whole: float) -> float:
        milliseconds = float(found[1]) if found[2] == "ms" else float(found[1]) / 100 * whole
        if milliseconds > whole:
            raise SettingError(f"latency {text}: the whole network takes only {whole:.4g} ms here; ask for less")
        return milliseconds

    return limit, int(found[3] or 1)


def latency_of(model: nn.Module, coupling: Coupling, batch: int, device: torch.device) -> Latency:
    """Measure the layers of `model` on `device` at `batch` examples (tens of timings for each kind of layer)."""
    layers = [work for work in coupling.operations if work.kind != "matmul" and _is_layer(model, work)]
    extents = [extent for work in layers for extent in _in_and_out(work)]
    lengths = Lengths.of(coupling.prunable(residual=True), extents)
    grid = torch.tensor([_points(extent.length({})) for extent in extents], dtype=torch.float64).view(-1, _POINTS)
    measured: dict[tuple[Any, ...], Tensor] = {}
    tables = []
    for work, (reads, makes) in zip(layers, grid.view(-1, 2, _POINTS).int().tolist(), strict=True):
        run = _Layer.of(model, work, batch, coupling, device)
        key = (run.signature, tuple(reads), tuple(makes))
        if key not in measured:
            measured[key] = _table(run, reads, makes, [int(e.length({})) for e in _in_and_out(work)])
        tables.append(measured[key])
    table = torch.stack(tables) if tables else torch.zeros(0, _POINTS, _POINTS, dtype=torch.float64)
    return _calibrated(Latency(batch, lengths, grid, table), model, coupling, device)


def _in_and_out(work: Operation) -> tuple[Any, Any]:
    """What a layer reads and makes; a depthwise one reads what it makes."""
    makes = work.extents[0]
    return (work.extents[1] if len(work.extents) > 1 else makes), makes


def _is_layer(model: nn.Module, work: Operation) -> bool:
    return isinstance(model.get_submodule(work.module), _ConvNd | nn.Linear)


def _points(length: float) -> list[float]:
    """Ascending widths up to `length`; those of a narrow layer go on beyond it, where nothing is asked."""
    inside = np.unique(np.linspace(1, length, _POINTS).round()).tolist()
    return [*inside, *(length + beyond for beyond in range(1, _POINTS + 1 - len(inside)))]


@dataclass(frozen=True)
class _Layer:
    """A layer that can be run at any width; one that loses whole groups reads as much as it makes."""

    signature: tuple[Any, ...]
    is_whole: bool
    call: Callable[[int, int], Callable[[], Tensor]]

    @staticmethod
    def of(model: nn.Module, work: Operation, batch: int, coupling: Coupling, device: torch.device) -> "_Layer":
        module = model.get_submodule(work.module)
        examples = next(value.shape[0] for value in coupling.inputs if isinstance(value, Tensor) and value.ndim)
        rows = batch * work.input_shape[0] // examples
        if isinstance(module, nn.Linear):
            shape = (rows, *work.input_shape[1:-1])

            def linear(reads: int, makes: int) -> Callable[[], Tensor]:
                x, weight = torch.randn(*shape, reads, device=device), torch.randn(makes, reads, device=device)
                return lambda: functional.linear(x, weight)

            return _Layer(("linear", shape), False, linear)
        assert isinstance(module, _ConvNd)
        shape = (rows, work.input_shape[2:])
        settings = (module.kernel_size, module.stride, module.padding, module.dilation, module.groups)
        is_whole = prunes_whole_blocks(module.groups, module.in_channels)
        return _Layer((type(module), shape, *settings), is_whole, _convolution(module, shape, is_whole, device))


def _convolution(
    module: _ConvNd, shape: tuple[int, tuple[int, ...]], is_whole: bool, device: torch.device
) -> Callable[[int, int], Callable[[], Tensor]]:
    rows, pixels = shape
    each = module.out_channels // module.groups

    def sized(reads: int, makes: int) -> Callable[[], Tensor]:
        groups = max(1, makes // each) if is_whole else module.groups
        reads = groups * (module.in_channels // module.groups) if is_whole else reads * groups
        makes = max(1, makes // groups) * groups
        twin: Any = type(module)(
            reads,
            makes,
            module.kernel_size,  # type: ignore[arg-type]
            stride=module.stride,  # type: ignore[arg-type]
            padding=module.padding,  # type: ignore[arg-type]
            dilation=module.dilation,  # type: ignore[arg-type]
            groups=groups,
            bias=False,
            device=device,
        )
        x = torch.randn(rows, reads, *pixels, device=device)
        return lambda: twin(x)

    return sized


@torch.no_grad()
def _table(layer: _Layer, reads: list[int], makes: list[int], whole: list[int]) -> Float[Tensor, "points points"]:
    """Milliseconds at each pair of widths, made not to fall where a width grows."""
    measured: dict[tuple[int, int], float] = {}

    def at(i: int, o: int) -> float:
        key = (whole[0] if layer.is_whole else min(i, whole[0]), min(o, whole[1]))
        if key not in measured:
            measured[key] = _milliseconds(layer.call(*key))
        return measured[key]

    times = torch.tensor([[at(i, o) for o in makes] for i in reads], dtype=torch.float64)
    return times.cummax(0).values.cummax(1).values


def _milliseconds(run: Callable[[], Any]) -> float:
    times = []
    for number in range(_ROUNDS + 2):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number >= 2:
            times.append((time.perf_counter() - start) * 1e3)
    return min(times)  # what else the machine does only adds


@torch.no_grad()
def _calibrated(raw: Latency, model: nn.Module, coupling: Coupling, device: torch.device) -> Latency:
    """The table scaled so that it agrees with two real networks: the given one and one with half of every group."""
    half = {
        group.name: (torch.arange(group.size) < max(1, group.size // 2)).float()
        for group in coupling.prunable(residual=True)
    }
    times, sums = [], []
    for keep in ({}, half):
        network = smaller(model, coupling, keep).to(device)
        inputs = _batch_of(coupling, raw.batch, device)
        with evaluating(network):
            times.append(_milliseconds(lambda network=network, inputs=inputs: network(*inputs)))
        sums.append(float(raw(keep)))
    share = max(0.0, (times[0] - times[1]) / (sums[0] - sums[1])) if sums[0] > sums[1] else 1.0
    share = min(share, times[0] / sums[0]) if sums[0] else 0.0
    return Latency(raw.batch, raw.lengths, raw.grid, raw.table, times[0] - share * sums[0], share)


def _batch_of(coupling: Coupling, batch: int, device: torch.device) -> tuple[Any, ...]:
    """The example inputs at another batch size: the first example again and again."""
    return tuple(
        value[:1].expand(batch, *value.shape[1:]).contiguous().to(device)
        if isinstance(value, Tensor) and value.ndim
        else value
        for value in coupling.inputs
    )
