"""A walk through a captured network that notes, for every value, which atoms its positions hang on.

The atoms of a value are an array that broadcasts to its shape, so a feature map (2, 64, 8, 8) whose channels can go has
atoms of shape (1, 64, 1, 1). Views act on the atoms as they act on the value; this is what makes channel shuffles,
heads and flattened maps come out right without rules of their own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from thrifty.prune.atoms import NONE, Atoms, Union

Role = Literal["makes", "follows", "reads"]


@dataclass(frozen=True)
class Value:
    """A tensor of the captured network.

    Where an atom is dropped, its positions can go; `is_zero` says that they hold zeros until they do. `parameter` is
    the name of the parameter or buffer that the value is, if it is one; `is_weight` holds for all that is computed from
    those alone.
    """

    shape: tuple[int, ...]
    atoms: Atoms
    is_zero: bool = True
    parameter: str = ""
    is_weight: bool = False

    @property
    def varies(self) -> tuple[int, ...]:
        """The dimensions along which the atoms differ."""
        return tuple(axis for axis, size in enumerate(self.atoms.shape) if size > 1)

    @property
    def is_free(self) -> bool:
        """Whether some of its positions can go."""
        return bool((self.atoms >= 0).any())


def nothing(shape: Sequence[int]) -> Value:
    """A value none of whose positions can go."""
    return Value(tuple(shape), np.full((1,) * len(shape), NONE, dtype=np.int64))


@dataclass(frozen=True)
class Work:
    """The multiplications of one operator for one example: `scale` times the extents, each an array of atoms.

    The first extent of a layer is what it makes, the second what it reads, if that is another.
    """

    kind: Literal["convolution", "linear", "matmul"]
    module: str
    scale: float
    extents: tuple[Atoms, ...]
    input_shape: tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """A size that a module's own code may hold: one dimension of a view in that module, whose atoms are `atoms`."""

    module: str
    atoms: Atoms
    axis: int


@dataclass(frozen=True)
class Call:
    """One operator of the captured network, its arguments by their names in its schema."""

    name: str
    module: str
    arguments: Mapping[str, Any]
    shape: tuple[int, ...]

    def __getitem__(self, name: str) -> Any:
        """The argument of this name."""
        return self.arguments[name]

    @property
    def values(self) -> list[Value]:
        """All tensors among the arguments, those in lists too."""
        found = []
        for argument in self.arguments.values():
            found += argument if isinstance(argument, list | tuple) else [argument]
        return [part for part in found if isinstance(part, Value)]

    def __str__(self) -> str:
        """What to say of it: `layer_norm at blocks.0.norm`."""
        return f"{self.name} at {self.module or 'the top of the model'}"


@dataclass
class Trace:
    """What the walk has found so far. `written` holds the feature maps that operators write: how many elements of one
    example there are for each of the atoms, and the atoms."""

    batch: int
    union: Union = field(default_factory=Union)
    parameters: dict[tuple[str, int], tuple[Atoms, Role]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    works: list[Work] = field(default_factory=list)
    written: list[tuple[float, Atoms]] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    wide: list[tuple[Value, str]] = field(default_factory=list)
    residual: list[Atoms] = field(default_factory=list)
    leaks: list[tuple[Atoms, str]] = field(default_factory=list)

    def parameter_atoms(self, value: Value, axis: int, role: Role) -> Atoms:
        """The atoms along one dimension of a parameter, the same at every use. What is made or read somewhere is no
        longer a follower; `parameters` is in the order of those uses, which is the order of the network."""
        key = (value.parameter, axis)
        atoms, before = self.parameters.get(key, (None, "follows"))
        if atoms is None or (before == "follows" and role != "follows"):
            self.parameters.pop(key, None)
            atoms = self.union.new(value.shape[axis]) if atoms is None else atoms
            self.parameters[key] = (atoms, role)
        return atoms

    def write(self, value: Value) -> None:
        """An operator writes this feature map."""
        each = math.prod(value.shape) / (value.atoms.size * self.batch)
        self.written.append((each, value.atoms.reshape(-1)))

    def freeze(self, value: Value, reason: str) -> Value:
        """None of the positions of `value` may go."""
        self.union.freeze(value.atoms, reason)
        if value.parameter:
            self.refused.setdefault(value.parameter, reason)
        return nothing(value.shape)

    def tie(self, value: Value, axes: Sequence[int], reason: str) -> Value:
        """The positions along these dimensions live or die together; frozen where nothing else could vary."""
        axes = [axis for axis in axes if value.atoms.shape[axis] > 1]
        if not axes:
            return value
        if set(value.varies) == set(axes):
            return self.freeze(value, reason)
        atoms = value.atoms
        for axis in axes:
            lead = atoms.take([0], axis)
            self.union.join(lead, atoms, reason)
            mixed = ((atoms < 0) != (lead < 0)).any(axis, keepdims=True)
            self.union.freeze(np.where(mixed, atoms, NONE), reason)
            atoms = np.where(mixed, NONE, atoms.max(axis, keepdims=True)) if mixed.any() else lead
        return replace(value, atoms=atoms, parameter="")

    def along(self, value: Value, axis: int, reason: str) -> Atoms:
        """The atoms along one dimension, (size,), where no other may vary."""
        axis %= len(value.shape)
        others = [other for other in value.varies if other != axis]
        if others:
            value = self.freeze(value, reason)
        return np.broadcast_to(
            value.atoms.max(tuple(a for a in range(len(value.shape)) if a != axis)), value.shape[axis]
        )

    def combine(self, values: Sequence[Value], shape: Sequence[int], reason: str) -> Atoms:
        """The atoms of an element-wise function of `values`, broadcast to `shape`: equal places go together."""
        ndim = len(shape)
        result = np.full((1,) * ndim, NONE, dtype=np.int64)
        extent = (1,) * ndim
        order = sorted(values, key=lambda value: bool(value.parameter))
        for value in order:
            atoms = value.atoms.reshape((1,) * (ndim - value.atoms.ndim) + value.atoms.shape)
            sizes = (1,) * (ndim - len(value.shape)) + value.shape
            if value.parameter and not value.is_free:
                self._follow(value, result, reason)
                continue
            self._freeze_unmatched(result, atoms, sizes, reason)
            self._freeze_unmatched(atoms, result, extent, reason)
            self.union.join(result, atoms)
            result = np.maximum(result, atoms)
            extent = tuple(max(pair) for pair in zip(extent, sizes, strict=True))
        return result

    def _freeze_unmatched(self, mine: Atoms, yours: Atoms, sizes: tuple[int, ...], reason: str) -> None:
        """Freeze my atoms that meet positions of another tensor that must stay."""
        meets = [axis for axis, size in enumerate(mine.shape) if size > 1 and sizes[axis] > 1]
        if meets:
            mine, yours = np.broadcast_arrays(mine, yours)
            self.union.freeze(mine[yours < 0], f"{reason} joins it to what cannot go")

    def _follow(self, parameter: Value, atoms: Atoms, reason: str) -> None:
        """A parameter of several dimensions goes along with the value that it is added to or multiplied with."""
        varies = [axis for axis, size in enumerate(atoms.shape) if size > 1]
        lead = atoms.ndim - len(parameter.shape)
        meets = [axis for axis in varies if axis >= lead and parameter.shape[axis - lead] > 1]
        if len(varies) == 1 and meets:
            mine = self.parameter_atoms(parameter, meets[0] - lead, "follows")
            theirs = atoms.reshape(-1)
            self.union.join(mine, theirs)
            self.union.freeze(mine[theirs < 0], f"{reason} joins it to what cannot go")
        elif meets:
            self.union.freeze(atoms, f"{reason} joins it to the parameter {parameter.parameter} in several dimensions")
