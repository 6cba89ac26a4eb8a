"""Which slices of a network's parameters live or die together, found from its captured graph.

The network is captured by `torch.export` and walked once; rules (`rules.py`, `rules_views.py`) say what each operator
does to the positions of its inputs. What hangs together is a part, equal parts are a group. In the end random parts of
every group are dropped on a copy: a group whose small network does not equal the masked one is frozen, so a group that
is offered has been tried.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor, nn

from thrifty.errors import ModelError
from thrifty.prune.trace import Role


@dataclass(frozen=True)
class Slice:
    """What of one parameter or buffer belongs to the parts of a group: part j owns positions `index[j]` along `dim`.

    A part's output comes from what `makes` it (rows of a convolution or linear layer, their bias), is transformed by
    what `follows` (batch norm, a depthwise filter), and leaves it where a consumer `reads` it.
    """

    tensor: str
    dim: int
    index: Int[Tensor, "size repeat"]
    role: Role


@dataclass(frozen=True)
class Group:
    """Parts that can go one by one: channels, heads, neurons.

    `reason` is not empty where none can, and says why. `is_residual` holds for the width of a residual stream. `leaks`
    names the operator after which a part whose makers and followers are all zero still is not zero (a sigmoid): such a
    part is gone only once what reads it is zero too.
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    reason: str = ""
    is_residual: bool = False
    leaks: str = ""


@dataclass(frozen=True)
class Extent:
    """A length that depends on what is kept: `fixed` positions, and `repeats[name][j]` for part j of a group."""

    fixed: float
    repeats: dict[str, Tensor]

    def length(self, keep: Mapping[str, Tensor]) -> float:
        """The length when of each group only the parts in `keep` are there; groups that it does not name are whole."""
        return self.fixed + sum(
            float((repeat * keep[name].detach().cpu().double()).sum() if name in keep else repeat.sum())
            for name, repeat in self.repeats.items()
        )


@dataclass(frozen=True)
class Operation:
    """An operator that multiplies: `scale` times its extents are the multiply-accumulates of one example."""

    kind: Literal["convolution", "linear", "matmul"]
    module: str
    scale: float
    extents: tuple[Extent, ...]
    input_shape: tuple[int, ...]


@dataclass(frozen=True)
class FeatureMaps:
    """What operators write: `scale` elements of one example for each position of `extent`."""

    scale: float
    extent: Extent


@dataclass(frozen=True)
class ModuleSize:
    """A module's own code depends on this length: before anything went it was `size`."""

    module: str
    size: int
    extent: Extent


@dataclass(frozen=True)
class Coupling:
    """All groups of a network in its order, and what costs depend on.

    `parameters` holds for each parameter the lengths of its dimensions; `inputs` are the example inputs.
    """

    groups: tuple[Group, ...]
    operations: tuple[Operation, ...]
    feature_maps: tuple[FeatureMaps, ...]
    parameters: dict[str, tuple[Extent, ...]]
    sizes: tuple[ModuleSize, ...]
    inputs: tuple[Any, ...]

    def prunable(self, residual: bool = False) -> tuple[Group, ...]:
        """The groups whose parts can go; those of residual streams only when asked for."""
        return tuple(group for group in self.groups if not group.reason and (residual or not group.is_residual))

    @property
    def frozen(self) -> tuple[Group, ...]:
        """The groups that stay whole, each with its reason."""
        return tuple(group for group in self.groups if group.reason)

    def group(self, name: str) -> Group:
        """The group of this name."""
        return next(group for group in self.groups if group.name == name)

    def __str__(self) -> str:
        """One line a group: its name, its number of parts, and whether they can go."""
        width = max((len(group.name) for group in self.groups), default=0)
        said = [
            f"stays: {group.reason}" if group.reason else "can go" + " (residual stream)" * group.is_residual
            for group in self.groups
        ]
        return "\n".join(f"{g.name:<{width}}  {g.size:>5}  {s}" for g, s in zip(self.groups, said, strict=True))


def coupling_of(model: nn.Module, example_inputs: tuple[Any, ...], *, is_tried: bool = True) -> Coupling:
    """Find the groups of `model` (in eval mode, on a copy).

    Raises `ModelError` where `torch.export` cannot capture it. Without `is_tried` the groups are believed, not tried.
    """
    from thrifty.prune.capture import walked  # here, since these build on the classes above
    from thrifty.prune.partition import partition

    double = _copied(model).cpu().eval()
    example_inputs = tuple(value.cpu() if isinstance(value, Tensor) else value for value in example_inputs)
    coupling = partition(walked(double, example_inputs), example_inputs, double)
    if not coupling.prunable(residual=True):
        found = "; ".join(sorted({group.reason for group in coupling.frozen})[:3]) or "no layer makes anything to drop"
        raise ModelError(f"nothing of {type(model).__name__} can go: {found}")
    return _tried(double, coupling) if is_tried else coupling


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:  # a weight that is computed and held as an attribute
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({str(error).split('.')[0]}); weights that are computed need "
            "torch.nn.utils.parametrize, as those of torch.nn.utils.parametrizations.weight_norm"
        ) from error


def _tried(model: nn.Module, coupling: Coupling) -> Coupling:
    """Freeze every group with which the small network does not equal the masked one, or does not run."""
    from thrifty.prune.trial import trouble

    groups = coupling.prunable(residual=True)
    if not trouble(model, coupling, groups):
        return coupling
    sound: list[Group] = []
    reasons: dict[str, str] = {}
    for group in groups:
        reasons[group.name] = trouble(model, coupling, [*sound, group])
        if not reasons[group.name]:
            sound.append(group)
    tried = [replace(group, reason=group.reason or reasons[group.name]) for group in coupling.groups]
    return replace(coupling, groups=tuple(tried))
