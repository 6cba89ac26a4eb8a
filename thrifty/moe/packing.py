"""The order in which the channels of overlapping experts are stored once, so that each expert is a few whole runs.

Channels of no expert are left out. Those of all experts come first; the others follow in the order of a Gray code over
their sets of experts, in which from one set to the next as few experts as possible begin or end. Two experts, a shared
part and disjoint parts, or one expert: each expert is at most two runs. In the worst case, experts that overlap in
every possible way, the first has one run beside the common one and each further expert twice as many.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Run = tuple[int, int]
"""The first channel and the one after the last."""


@dataclass(frozen=True)
class Packing:
    """`order`: the channels that are stored, numbered as in the dense MLP; `members`: which of them each expert has."""

    order: Int[Tensor, " stored"]
    members: Bool[Tensor, "experts stored"]

    @staticmethod
    def of(masks: Bool[Tensor, "experts channels"]) -> "Packing":
        """Order the channels of these experts."""
        masks = masks.cpu()
        stored = masks.any(0).nonzero().flatten()
        sets = masks[:, stored]
        digits = sets.long().cumsum(0) % 2  # the place of each set in the Gray code, first expert highest
        order = torch.arange(len(stored))
        for key in (*(1 - digit for digit in digits.flip(0)), (~sets.all(0)).long()):  # the last key decides
            order = order[key[order].argsort(stable=True)]
        return Packing(stored[order], sets[:, order])


def common_of(members: Bool[Tensor, "experts stored"]) -> int:
    """How many channels, the first ones, belong to every expert."""
    is_common = members.all(0)
    return len(is_common) if bool(is_common.all()) else int((~is_common).long().argmax())


def runs_of(members: Bool[Tensor, "experts stored"], first: int = 0) -> list[list[Run]]:
    """The runs of channels of each expert, from channel `first` on."""
    padded = torch.nn.functional.pad(members[:, first:].cpu().int(), (1, 1))
    steps = padded.diff(dim=1)
    starts = [row.nonzero().flatten() + first for row in steps == 1]
    ends = [row.nonzero().flatten() + first for row in steps == -1]
    return [list(zip(a.tolist(), b.tolist(), strict=True)) for a, b in zip(starts, ends, strict=True)]
