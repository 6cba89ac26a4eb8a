"""What a network costs when only some of its parts are there, differentiable in how much of each part is.

A FLOP here is one multiply-accumulate of a convolution, a linear layer or a product of matrices, as papers on pruning
count it (`torch.utils.flop_counter` reports twice as many); norms and activations are not counted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.budget import Budget, Keep, read_amount
from thrifty.errors import SettingError
from thrifty.prune.coupling import Coupling, Extent, Group


@dataclass(frozen=True, eq=False)
class Polynomial:
    """A sum of products of lengths, where a length is `fixed` plus a weighted sum of the parts that are kept.

    Term t is `scales[t]` times the lengths numbered `factors[t]`; `sizes` holds the parts of each group in the order of
    the columns of `repeats`.
    """

    sizes: dict[str, int]
    fixed: Float[Tensor, " lengths"]
    repeats: Float[Tensor, "lengths parts"]
    scales: Float[Tensor, " terms"]
    factors: Int[Tensor, "terms most"]

    @staticmethod
    def of(groups: Sequence[Group], terms: Sequence[tuple[float, Sequence[Extent]]]) -> "Polynomial":
        """The sum of `terms`, each a scale and the lengths that multiply it."""
        sizes = {group.name: group.size for group in groups}
        starts = dict(zip(sizes, torch.tensor([0, *sizes.values()]).cumsum(0).tolist(), strict=False))
        extents = [extent for _, lengths in terms for extent in lengths]
        repeats = torch.zeros(len(extents) + 1, sum(sizes.values()), dtype=torch.float64)
        for row, extent in enumerate(extents):
            for name, repeat in extent.repeats.items():
                repeats[row, starts[name] : starts[name] + len(repeat)] = repeat
        fixed = torch.tensor([*(extent.fixed for extent in extents), 1.0], dtype=torch.float64)
        most = max((len(lengths) for _, lengths in terms), default=1)
        factors = torch.full((len(terms), most), len(extents), dtype=torch.int64)
        row = 0
        for number, (_, lengths) in enumerate(terms):
            factors[number, : len(lengths)] = torch.arange(row, row + len(lengths))
            row += len(lengths)
        return Polynomial(sizes, fixed, repeats, torch.tensor([s for s, _ in terms], dtype=torch.float64), factors)

    def __call__(self, keep: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The value in float64, on the device of `keep`; groups that it does not name are whole."""
        device = next((kept.device for kept in keep.values()), self.fixed.device)
        here = _on(self, device)
        whole = {name: torch.ones(size, device=device) for name, size in self.sizes.items() if name not in keep}
        parts = [(keep if name in keep else whole)[name].flatten().double() for name in self.sizes]
        lengths = here.fixed + here.repeats @ torch.cat(parts) if parts else here.fixed
        return (here.scales * lengths[here.factors].prod(1)).sum()


@lru_cache(maxsize=8)
def _on(polynomial: Polynomial, device: torch.device) -> Polynomial:
    tensors = (polynomial.fixed, polynomial.repeats, polynomial.scales, polynomial.factors)
    return Polynomial(polynomial.sizes, *(tensor.to(device) for tensor in tensors))


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


def budget_of(text: str, coupling: Coupling, *, residual: bool = False, round_to: int = 1, minimum: int = 1) -> Budget:
    """Read `flops=45%`, `params=2M`, or a plain `45%` of the FLOPs.

    Raises `SettingError` for other texts and for budgets below the reachable minimum, which it tells.
    """
    kind, _, amount = text.rpartition("=")
    kind, cost = kind.strip().lower() or "flops", Cost.of(coupling)
    measures = {"flops": (cost.flops, "FLOPs"), "params": (cost.parameters, "parameters")}
    if kind not in measures:
        raise SettingError(f"budget {text}: use flops=45%, params=2M or latency=5ms@32")
    measure, unit = measures[kind]
    whole = float(measure({}))
    budget = Budget(measure, read_amount(amount.strip(), whole), unit)
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
