"""What a network costs when only some of its parts are there, differentiable in how much of each part is.

A FLOP here is one multiply-accumulate of a convolution, a linear layer or a product of matrices, as papers on pruning
count it (`torch.utils.flop_counter` reports twice as many); norms and activations are not counted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.budget import Budget, Keep, read_amount
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
        return (scales * lengths[factors].prod(1)).sum()


@dataclass(frozen=True)
class Cost:
    """The costs of a network as functions of what is kept (name -> (size,) in [0, 1]).

    `flops` are the multiply-accumulates of one example, `parameters` the entries of all parameters (no buffers).
    """

    flops: Polynomial
    parameters: Polynomial

    @staticmethod
    def of(coupling: Coupling) -> "Cost":
        """The costs of the network that `coupling` was found in."""
        groups = coupling.prunable(residual=True)
        flops = Polynomial.of(groups, [(work.scale, work.extents) for work in coupling.operations])
        return Cost(flops, Polynomial.of(groups, [(1.0, lengths) for lengths in coupling.parameters.values()]))


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
    """Read `flops=45%`, `params=2M`, `latency=5ms@32` (for a batch of 32), or a plain `45%` of the FLOPs.

    A budget of latency measures `model` on `device` (its own without one) in float32, which takes seconds to minutes.
    Raises `SettingError` for other
    texts and for budgets below the reachable minimum, which it tells.
    """
    kind, _, amount = text.rpartition("=")
    kind, amount = kind.strip().lower() or "flops", amount.strip()
    if kind == "latency" and model is not None:
        limit_at, batch = read_latency(amount)
        measure, unit = (
            latency_of(model, coupling, batch, device or next(model.parameters()).device),
            f"ms at batch {batch}",
        )
        limit = limit_at(float(measure({})))
    elif kind in ("flops", "params"):
        cost = Cost.of(coupling)
        measure, unit = (cost.flops, "FLOPs") if kind == "flops" else (cost.parameters, "parameters")
        limit = read_amount(amount, float(measure({})))
    else:
        raise SettingError(f"budget {text}: use flops=45%, params=2M or latency=5ms@32")
    budget = Budget(measure, limit, unit)
    refuse_unreachable(budget, least(coupling.prunable(residual), round_to, minimum), text)
    return budget


def refuse_unreachable(budget: Budget, floor: Keep, text: str) -> None:
    """Raise `SettingError` where even the smallest keep does not fit the budget, and say what would."""
    if not budget.fits(floor):
        whole, reachable = budget.spent({}), budget.spent(floor)
        raise SettingError(
            f"budget {text}: this model cannot go below {_amount(reachable)} {budget.unit}, {reachable / whole:.1%} of "
            f"its {_amount(whole)}; ask for at least that"
        )


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
