"""Lengths that depend on what is kept, many at once, on the device of what is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.prune.coupling import Extent, Group


@dataclass(frozen=True, eq=False)
class Lengths:
    """A vector of lengths, each `fixed` plus a weighted sum of the parts that are kept.

    `sizes` holds the number of parts of each group in the order of the columns of `repeats`.
    """

    sizes: dict[str, int]
    fixed: Float[Tensor, " lengths"]
    repeats: Float[Tensor, "lengths parts"]

    @staticmethod
    def of(groups: Sequence[Group], extents: Sequence[Extent]) -> "Lengths":
        """The lengths `extents`, as functions of the parts of `groups`; parts of other groups count as kept."""
        sizes = {group.name: group.size for group in groups}
        starts = dict(zip(sizes, torch.tensor([0, *sizes.values()]).cumsum(0).tolist(), strict=False))
        repeats = torch.zeros(len(extents), sum(sizes.values()), dtype=torch.float64)
        fixed = torch.tensor([extent.fixed for extent in extents], dtype=torch.float64)
        for row, extent in enumerate(extents):
            for name, repeat in extent.repeats.items():
                if name in sizes:
                    repeats[row, starts[name] : starts[name] + len(repeat)] = repeat
                else:
                    fixed[row] += repeat.sum()
        return Lengths(sizes, fixed, repeats)

    def __call__(self, keep: Mapping[str, Tensor]) -> Float[Tensor, " lengths"]:
        """The lengths in float64, on the device of `keep` if that can; groups that it does not name are whole."""
        device = next((kept.device for kept in keep.values() if kept.device.type != "mps"), self.fixed.device)
        fixed, repeats = moved((self.fixed, self.repeats), device)
        parts = [
            keep[name].to(device).flatten() if name in keep else torch.ones(size, device=device)
            for name, size in self.sizes.items()
        ]
        return fixed + repeats @ torch.cat(parts).double() if parts else fixed


@lru_cache(maxsize=64)
def moved(tensors: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Constant tensors on a device, copied there once."""
    return tuple(tensor.to(device) for tensor in tensors)
