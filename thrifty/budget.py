"""How much may remain: a cost of what is kept, and a limit on it.

What is kept ("keep") is a number for each part, by name: 0 or 1, or bits. The cost of a keep is one function of it,
differentiable where a method learns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.errors import SettingError

Keep = Mapping[str, Tensor]


@dataclass(frozen=True)
class Budget:
    """At most `limit` of `cost`, in `unit`. The cost must not fall when more is kept. One that `joint` made holds the
    `limits` that it joins."""

    cost: Callable[[Keep], Tensor]
    limit: float | int
    unit: str
    limits: tuple["Budget", ...] = ()

    @property
    def each(self) -> tuple["Budget", ...]:
        """All limits that are to be met: those that were joined, or this one."""
        return self.limits or (self,)

    def spent(self, keep: Keep) -> float:
        """The cost of `keep`."""
        return float(self.cost(keep))

    def fits(self, keep: Keep) -> bool:
        """Whether `keep` costs no more than the limit (to one part in a million: costs are sums of floats)."""
        return self.spent(keep) <= self.limit * (1 + 1e-6)

    def penalty(self, keep: Keep) -> Tensor:
        """|log(cost / limit)|: 0 at the limit, and as steep on either side (ATO, CVPR 2024, equation 5 in its two-sided
        form). Add it to a loss."""
        return torch.log(self.cost(keep).clamp_min(1e-12) / self.limit).abs()

    def best(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keep the parts with the highest scores that fit, 1.0 or 0.0 each, and at least one part of every group.

        All groups compete in one ranking; of equal scores the earlier part wins. Raises `SettingError` where even one
        part of each group costs more than the limit.
        """
        names = list(scores)
        flat = torch.cat([scores[name].flatten().double() for name in names])
        flat = flat.masked_fill(flat.isnan(), -torch.inf)
        sizes = [scores[name].numel() for name in names]
        first = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        lead = torch.stack([part.argmax() for part in flat.split(sizes)]) + first
        lifted = flat.clone()
        lifted[lead] = torch.inf
        order = lifted.argsort(descending=True, stable=True)

        def keep_of(count: int) -> dict[str, Tensor]:
            kept = torch.zeros(len(flat), dtype=torch.float32)
            kept[order[:count]] = 1.0
            return {name: part.view_as(scores[name]) for name, part in zip(names, kept.split(sizes), strict=True)}

        least, most = len(names), len(flat)
        if not self.fits(keep_of(least)):
            raise SettingError(
                f"a budget of {self.limit:g} {self.unit} cannot be met: one part of each group costs "
                f"{self.spent(keep_of(least)):g}; ask for at least that"
            )
        while least < most:
            middle = (least + most + 1) // 2
            least, most = (middle, most) if self.fits(keep_of(middle)) else (least, middle - 1)
        return keep_of(least)


def joint(budgets: Sequence[Budget]) -> Budget:
    """The budget that is met where all of `budgets` are: what is spent is the largest share of any limit."""
    if len(budgets) == 1:
        return budgets[0]

    def share(keep: Keep) -> Tensor:
        return torch.stack([one.cost(keep) / one.limit for one in budgets]).max()

    return Budget(share, 1.0, "of the tightest limit", tuple(budgets))


def read_amount(text: str, whole: float | int, most: int = 1) -> float:
    """Read a budget such as `30%`, `0.3` (a share of `whole`), `2M`, `1.5k` or `7000` (an amount).

    Raises `SettingError` for anything else, and for an amount that is not above 0 and at most `most` times `whole`.
    """
    factors = {"%": whole / 100, "k": 1e3, "m": 1e6, "g": 1e9}
    try:
        factor = factors.get(text[-1:].lower())
        number = float(text[:-1] if factor else text)
    except ValueError:
        raise SettingError(f"budget {text}: use a share such as 30% or 0.3, or an amount such as 7000 or 2M") from None
    amount = number * factor if factor else number * (whole if number <= 1 else 1)
    if not 0 < amount <= most * whole:
        bound = f"the whole, {whole:g}" if most == 1 else f"{most} times the whole, {whole:g}"
        raise SettingError(f"budget {text}: {amount:g} is not above 0 and at most {bound}")
    return amount
