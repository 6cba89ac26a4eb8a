"""The mask that meets a budget: from scores to whole parts, the closest to its limit from below, always the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.budget import Budget
from thrifty.errors import SettingError


def repair(
    scores: Mapping[str, Float[Tensor, " size"]],
    keep: Mapping[str, Float[Tensor, " size"]],
    budget: Budget,
    round_to: int | Mapping[str, int] = 1,
    minimum: int = 1,
) -> dict[str, Float[Tensor, " size"]]:
    """Change `keep` (0 or 1 for each part) until it fits the budget and nothing more would.

    Of each group at least `minimum` parts stay, in whole multiples of `round_to` (for all groups or by name, see
    `cost.steps_of`) or all of them. Parts go by the lowest score per cost and come back by the highest; where that
    leaves more than 0.2 % of the budget, units of two groups are exchanged to come closer. `scores` are importances of
    at least 0 (others are shifted). Raises `SettingError` where even the minimum costs too much.
    """
    widths = _Widths.of(scores, keep, round_to, minimum)
    counts = widths.rounded(keep)
    floor = widths.keep(widths.lowest)
    if not budget.fits(floor):
        raise SettingError(
            f"a budget of {budget.limit:,.6g} {budget.unit} cannot be met: the least that may be kept costs "
            f"{budget.spent(floor):,.6g}; ask for at least that"
        )
    while (excess := budget.spent(widths.keep(counts)) - budget.limit) > budget.limit * 1e-6:
        counts = widths.narrower(counts, widths.marginal(counts, budget), excess / 2)
    while (better := widths.wider(counts, budget) or widths.exchanged(counts, budget)) is not None:
        counts = better
    return widths.keep(counts)


_CLOSE = 0.002


@dataclass(frozen=True)
class _Widths:
    """The groups as widths: of each group the first `count` parts in its own order of importance are kept."""

    order: dict[str, Int[Tensor, " size"]]
    place: dict[str, Int[Tensor, " size"]]  # of each part in its order
    scores: dict[str, Float[Tensor, " size"]]
    steps: dict[str, int]
    lowest: dict[str, int]

    @staticmethod
    def of(
        scores: Mapping[str, Tensor], keep: Mapping[str, Tensor], round_to: int | Mapping[str, int], minimum: int
    ) -> "_Widths":
        plain = {name: scores[name].detach().cpu().double().nan_to_num(0.0, 0.0, 0.0) for name in keep}
        shift = min(0.0, *(float(values.min()) for values in plain.values())) if plain else 0.0
        order, place, ranked, steps, lowest = {}, {}, {}, {}, {}
        for name, kept in keep.items():
            values = plain[name] - shift
            by_score = values.argsort(descending=True, stable=True)
            is_kept = kept.detach().cpu() > 0
            order[name] = torch.cat([by_score[is_kept[by_score]], by_score[~is_kept[by_score]]])
            place[name] = order[name].argsort()
            ranked[name] = values[order[name]]
            steps[name] = round_to if isinstance(round_to, int) else round_to.get(name, 1)
            lowest[name] = min(len(values), -(-minimum // steps[name]) * steps[name])
        return _Widths(order, place, ranked, steps, lowest)

    def rounded(self, keep: Mapping[str, Tensor]) -> dict[str, int]:
        """The widths of `keep`, down to ones that are allowed."""
        counts = {}
        for name, kept in keep.items():
            count = int((kept > 0).sum())
            whole = count if count == kept.numel() else count // self.steps[name] * self.steps[name]
            counts[name] = max(self.lowest[name], whole)
        return counts

    def keep(self, counts: Mapping[str, int | Tensor]) -> dict[str, Tensor]:
        """0 and 1 for each part; for counts [n, 1] n rows of them."""
        return {name: (self.place[name] < count).float() for name, count in counts.items()}

    def marginal(self, counts: Mapping[str, int], budget: Budget) -> dict[str, Tensor]:
        """What each part, in its group's order, adds to the cost at these widths."""
        keep = {name: kept.requires_grad_() for name, kept in self.keep(counts).items()}
        gradients = torch.autograd.grad(budget.cost(keep), list(keep.values()), allow_unused=True)
        found = zip(keep, gradients, strict=True)
        return {
            name: torch.zeros(len(self.order[name])).double() if one is None else one.double()[self.order[name]]
            for name, one in found
        }

    def narrower(self, counts: Mapping[str, int], marginal: Mapping[str, Tensor], enough: float) -> dict[str, int]:
        """Drop the units of the lowest score per cost, at least one, until about `enough` is saved."""
        units: list[tuple[float, int, str, int, float]] = []
        for number, name in enumerate(counts):
            count, worst = counts[name], 0.0
            while count > self.lowest[name]:
                lower = self._below(name, count)
                cost = float(marginal[name][lower:count].sum())
                worth = float(self.scores[name][lower:count].sum()) / max(cost, 1e-12)
                worst = max(worst, worth)  # a unit never goes before the one outside it
                units.append((worst, number, name, lower, cost))
                count = lower
        units.sort(key=lambda unit: (unit[0], unit[1], -unit[3]))
        result, saved = dict(counts), 0.0
        for number, (_, _, name, lower, cost) in enumerate(units):
            if number and saved + cost > enough:
                break
            result[name] = lower
            saved += cost
        return result

    def wider(self, counts: Mapping[str, int], budget: Budget) -> dict[str, int] | None:
        """The widths with one unit more, that of the highest score per cost which fits; None where none does."""
        names = [name for name, count in counts.items() if count < len(self.order[name])]
        candidates = [{**counts, name: self._above(name, counts[name])} for name in names]
        spent, *costs = self.spent([counts, *candidates], budget)
        best, found = -1.0, None
        for name, candidate, cost in zip(names, candidates, costs, strict=True):
            worth = float(self.scores[name][counts[name] : candidate[name]].sum()) / max(cost - spent, 1e-12)
            if cost <= budget.limit and worth > best:
                best, found = worth, candidate
        return found

    def exchanged(self, counts: Mapping[str, int], budget: Budget) -> dict[str, int] | None:
        """The widths with a unit of one group for one of another, the pair that comes closest to the limit; None where
        none comes closer, or what is left is little already."""
        best, found = budget.spent(self.keep(counts)), None
        if budget.limit - best <= _CLOSE * budget.limit:
            return None
        losers = [name for name in counts if counts[name] > self.lowest[name]]
        winners = [name for name in counts if counts[name] < len(self.order[name])]
        for loser in losers:
            less = {**counts, loser: self._below(loser, counts[loser])}
            candidates = [{**less, name: self._above(name, counts[name])} for name in winners if name != loser]
            for candidate, cost in zip(candidates, self.spent(candidates, budget), strict=True):
                if best < cost <= budget.limit:
                    best, found = cost, candidate
        return found

    def spent(self, candidates: Sequence[Mapping[str, int]], budget: Budget) -> list[float]:
        """What each of the widths costs, all at once: there are many, and each alone is hardly any work."""
        if not candidates:
            return []
        counts = {name: torch.tensor([one[name] for one in candidates])[:, None] for name in self.order}
        return torch.vmap(budget.cost)(self.keep(counts)).tolist()

    def _below(self, name: str, count: int) -> int:
        return max(self.lowest[name], (count - 1) // self.steps[name] * self.steps[name])

    def _above(self, name: str, count: int) -> int:
        return min(len(self.order[name]), (count // self.steps[name] + 1) * self.steps[name])
