"""The parts of all groups as one vector, and the same by the name of the group."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.prune.coupling import Group


@dataclass(frozen=True)
class Layout:
    """The groups in their order, and how many parts each has."""

    sizes: dict[str, int]

    @staticmethod
    def of(groups: Iterable[Group]) -> "Layout":
        """The layout of these groups."""
        return Layout({group.name: group.size for group in groups})

    @property
    def num_parts(self) -> int:
        """How many parts all groups have."""
        return sum(self.sizes.values())

    def flat(self, named: Mapping[str, Tensor]) -> Float[Tensor, " parts"]:
        """One vector of what is given by name; its float type and its gradients stay."""
        return torch.cat([named[name].reshape(size) for name, size in self.sizes.items()])

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """The piece of the vector that belongs to each group."""
        return dict(zip(self.sizes, flat.split(list(self.sizes.values())), strict=True))

    def group_of_part(self, device: torch.device) -> Tensor:
        """For each part the number of its group."""
        sizes = torch.tensor(list(self.sizes.values()))
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device)
