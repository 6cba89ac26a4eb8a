"""What a network costs when only some of its parts are there, differentiable in how much of each part is.

A FLOP here is one multiply-accumulate of a convolution, a linear layer or a product of matrices, as papers on pruning
count it (`torch.utils.flop_counter` reports twice as many); norms and activation functions are not counted.

An activation is an element of a feature map that an operator writes in a forward pass of one example. On a GPU norms,
activation functions and sums wait for memory, and what they take goes with these, not with FLOPs.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.budget import Budget, Keep, joint, read_amount
from thrifty.errors import SettingError
from thrifty.prune.coupling import Coupling, Extent, Group
from thrifty.prune.latency import latency_of, read_latency
from thrifty.prune.lengths import Lengths, moved


@dataclass(frozen=True, eq=False)
class Polynomial:
    """A sum of products of lengths: term t is `scales[t]` times the lengths numbered `factors[t]`."""

    lengths: Lengths
    scales: Float[Tensor, " terms"]
    factors: Int[Tensor, "terms most"]

    @staticmethod
    def of(groups: Sequence[Group], terms: Sequence[tuple[float, Sequence[Extent]]]) -> "Polynomial":
        """The sum of `terms`, each a scale and the lengths that multiply it."""
        extents = [extent for _, factors in terms for extent in factors]
        most = max((len(factors) for _, factors in terms), default=1)
        numbers = torch.full((len(terms), most), len(extents), dtype=torch.int64)  # the last length is always 1
        first = 0
        for row, (_, factors) in enumerate(terms):
            numbers[row, : len(factors)] = torch.arange(first, first + len(factors))
            first += len(factors)
        scales = torch.tensor([scale for scale, _ in terms], dtype=torch.float64)
        return Polynomial(Lengths.of(groups, [*extents, Extent(1.0, {})]), scales, numbers)

    def __call__(self, keep: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The value in float64, on the device of `keep`; groups that it does not name are whole."""
        lengths = self.lengths(keep)
        scales, factors = moved((self.scales, self.factors), lengths.device)
        picked = lengths.index_select(0, factors.flatten()).view(factors.shape)
        return (
            scales * functools.reduce(torch.mul, picked.unbind(1))
        ).sum()  # Tensor.prod's gradient waits for the GPU


@dataclass(frozen=True)
class Cost:
    """The costs of a network as functions of what is kept (name -> (size,) in [0, 1]).

    `flops` are the multiply-accumulates of one example, `parameters` the entries of all parameters (no buffers),
    `activations` the elements of all feature maps that one example makes operators write.
    """

    flops: Polynomial
    parameters: Polynomial
    activations: Polynomial

    @staticmethod
    def of(coupling: Coupling) -> "Cost":
        """The costs of the network that `coupling` was found in."""
        groups = coupling.prunable(residual=True)
        flops = Polynomial.of(groups, [(work.scale, work.extents) for work in coupling.operations])
        parameters = Polynomial.of(groups, [(1.0, lengths) for lengths in coupling.parameters.values()])
        maps = Polynomial.of(groups, [(one.scale, (one.extent,)) for one in coupling.feature_maps])
        return Cost(flops, parameters, maps)


def least(groups: Sequence[Group], round_to: int = 1, minimum: int = 1) -> dict[str, Tensor]:
    """The smallest keep that is allowed: of each group `minimum` parts, rounded up to whole multiples of `round_to`."""
    steps = steps_of(groups, round_to)
    result = {}
    for group in groups:
        count = min(group.size, -(-minimum // steps[group.name]) * steps[group.name])
        result[group.name] = torch.zeros(group.size)
        result[group.name][:count] = 1.0
    return result


def steps_of(groups: Sequence[Group], round_to: int) -> dict[str, int]:
    """For each group by how many parts its width may change so that the channels it makes stay multiples of `round_to`.

    A head of 8 channels already is a multiple of 8, so heads go one by one."""
    found = {}
    for group in groups:
        repeat = next(part.index.shape[1] for part in group.slices if part.role == "makes")
        found[group.name] = round_to // math.gcd(round_to, repeat)
    return found


def taken_by_rounding(budget: Budget, groups: Sequence[Group], round_to: int) -> float:
    """The share of the tightest limit that the smallest widths cost more than with steps of one channel: where it is
    large, hardly any choice is left."""
    rounded, finest = least(groups, round_to), least(groups)
    return max((one.spent(rounded) - one.spent(finest)) / one.limit for one in budget.each)


def budget_of(
    text: str,
    coupling: Coupling,
    *,
    residual: bool = False,
    round_to: int = 1,
    minimum: int = 1,
    model: nn.Module | None = None,
    device: torch.device | None = None,
) -> Budget:
    """Read `flops=45%`, `params=2M`, `activations=50%`, `latency=5ms@32` (for a batch of 32), a plain `45%` of the
    FLOPs, or several of these with commas between them, all of which are to be met.

    A budget of latency measures `model` on `device` (its own without one) in float32, which takes seconds to minutes.
    Raises `SettingError` for other texts and for budgets below the reachable minimum, which it tells.
    """
    cost, found = Cost.of(coupling), {}
    for part in text.split(","):
        if not part.strip():
            raise SettingError(f"budget {text}: there is nothing before or after a comma; take it out")
        kind, _, amount = part.rpartition("=")
        kind, amount = kind.strip().lower() or "flops", amount.strip()
        if kind in found:
            raise SettingError(f"budget {text}: {kind} has two limits; give one")
        if kind == "latency" and model is not None:
            found[kind] = _latency(amount, coupling, model, device or next(model.parameters()).device)
        elif kind in _COSTS:
            field, unit = _COSTS[kind]
            measure = getattr(cost, field)
            found[kind] = Budget(measure, read_amount(amount, float(measure({}))), unit)
        else:
            raise SettingError(f"budget {text}: use flops=45%, params=2M, activations=50% or latency=5ms@32")
    budgets = list(found.values())
    refuse_unreachable(budgets, least(coupling.prunable(residual), round_to, minimum), text)
    return joint(budgets)


_COSTS = {
    "flops": ("flops", "FLOPs"),
    "params": ("parameters", "parameters"),
    "activations": ("activations", "activations"),
}


def _latency(amount: str, coupling: Coupling, model: nn.Module, device: torch.device) -> Budget:
    limit_at, batch = read_latency(amount)
    measure = latency_of(model, coupling, batch, device)
    return Budget(measure, limit_at(float(measure({}))), f"ms at batch {batch}")


def refuse_unreachable(budgets: Sequence[Budget], floor: Keep, text: str) -> None:
    """Raise `SettingError` where the smallest keep does not fit all budgets, and say how little each can be."""
    if not all(one.fits(floor) for one in budgets):
        told = " and ".join(
            f"{_amount(one.spent(floor))} {one.unit}, {one.spent(floor) / one.spent({}):.1%} of its "
            f"{_amount(one.spent({}))}"
            for one in budgets
        )
        raise SettingError(f"budget {text}: this model cannot go below {told}; ask for at least that")


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
