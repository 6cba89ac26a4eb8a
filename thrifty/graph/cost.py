"""What a plan for a graph costs: edges kept and added."""

from torch import Tensor

from thrifty.budget import Keep


def num_edges(keep: Keep) -> Tensor:
    """Edges afterwards: those that stay and those that are proposed and taken."""
    return sum((kept.sum() for kept in keep.values()), start=next(iter(keep.values())).new_zeros(()))
