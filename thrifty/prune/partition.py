"""From what a walk noted to groups: classes of atoms are parts, parts that own equally much of the same tensors are a
group."""

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import nn

from thrifty.prune.atoms import NONE, Atoms
from thrifty.prune.coupling import Coupling, Extent, FeatureMaps, Group, ModuleSize, Operation, Slice
from thrifty.prune.trace import Role, Size, Trace

_ORDER = {"makes": 0, "follows": 1, "reads": 2}
_Signature = tuple[tuple[tuple[int, int], ...], str]


def partition(trace: Trace, inputs: tuple[Any, ...], model: nn.Module) -> Coupling:
    """The groups of a walked network and the lengths that its costs depend on."""
    _straighten(trace)
    roots = trace.union.roots()
    reasons = trace.union.reasons(roots)
    for (name, _), (atoms, _) in trace.parameters.items():
        if name in trace.refused:
            for root in np.unique(roots[atoms]).tolist():
                reasons.setdefault(root, trace.refused[name])
    groups, places = _groups(trace, roots, reasons)
    names = [group.name for group in groups]

    def extent(atoms: Atoms) -> Extent:
        real = roots[atoms[atoms >= 0]]
        found = np.array([places.get(root, (-1, -1)) for root in real.tolist()], dtype=np.int64).reshape(-1, 2)
        repeats = {}
        for number in np.unique(found[:, 0][found[:, 0] >= 0]).tolist():
            parts = found[found[:, 0] == number, 1]
            repeats[names[number]] = torch.from_numpy(np.bincount(parts, minlength=groups[number].size)).double()
        return Extent(float((found[:, 0] < 0).sum() + (atoms < 0).sum()), repeats)

    works = [
        Operation(work.kind, work.module, work.scale, tuple(extent(atoms) for atoms in work.extents), work.input_shape)
        for work in trace.works
    ]
    parameters = {
        name: tuple(
            extent(trace.parameters[name, axis][0]) if (name, axis) in trace.parameters else Extent(float(size), {})
            for axis, size in enumerate(parameter.shape)
        )
        for name, parameter in model.named_parameters()
    }
    lengths = [(size.module, _line(size, roots)) for size in trace.sizes]
    sizes = [ModuleSize(module, len(atoms), extent(atoms)) for module, atoms in lengths]
    maps = tuple(FeatureMaps(scale, extent(atoms)) for scale, atoms in _gathered(trace, roots))
    sizes = tuple(one for one in sizes if one.extent.repeats)
    return Coupling(tuple(groups), tuple(works), maps, parameters, sizes, inputs)


def _gathered(trace: Trace, roots: Atoms) -> list[tuple[float, Atoms]]:
    """What was written, with the scales of equal atoms added up."""
    scales: dict[bytes, float] = defaultdict(float)
    found: dict[bytes, Atoms] = {}
    for scale, atoms in trace.written:
        key = np.where(atoms >= 0, roots[atoms], atoms).tobytes()
        scales[key] += scale
        found.setdefault(key, atoms)
    return [(scales[key], atoms) for key, atoms in found.items()]


def _line(size: Size, roots: Atoms) -> Atoms:
    """The atoms along the dimension; none where it keeps its length, since nothing differs along it."""
    atoms = np.where(size.atoms >= 0, roots[size.atoms], size.atoms)
    if (atoms == atoms.take([0], size.axis)).all():
        return np.full(atoms.shape[size.axis], NONE)
    return np.moveaxis(atoms, size.axis, 0).reshape(atoms.shape[size.axis], -1)[:, 0]


def _straighten(trace: Trace) -> None:
    """A value can lose whole rows or columns only: tie all but its longest free dimension."""
    for value, reason in trace.wide:
        roots = trace.union.roots()
        atoms = np.where(value.atoms >= 0, roots[value.atoms], value.atoms)
        free = [axis for axis in value.varies if (atoms != atoms.take([0], axis)).any()]
        if len(free) > 1:
            longest = max(free, key=lambda axis: value.atoms.shape[axis])
            trace.tie(value, [axis for axis in free if axis != longest], reason)


def _groups(trace: Trace, roots: Atoms, reasons: dict[int, str]) -> tuple[list[Group], dict[int, tuple[int, int]]]:
    """All groups, and for each class that can go its group's number and its place among the group's parts."""
    keys = list(trace.parameters)
    owned: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, key in enumerate(keys):
        for position, root in enumerate(roots[trace.parameters[key][0]].tolist()):
            owned[root][number].append(position)
    roles = [trace.parameters[key][1] for key in keys]
    families: dict[_Signature, list[int]] = defaultdict(list)
    for root, tensors in owned.items():
        held = {roles[number] for number in tensors}
        if "makes" not in held:
            continue
        if "reads" not in held:
            reasons.setdefault(root, "nothing reads it")
        families[tuple(sorted((n, len(at)) for n, at in tensors.items())), reasons.get(root, "")].append(root)
    return _named(trace, keys, families, owned, roots)


def _named(
    trace: Trace,
    keys: list[tuple[str, int]],
    families: dict[_Signature, list[int]],
    owned: dict[int, dict[int, list[int]]],
    roots: Atoms,
) -> tuple[list[Group], dict[int, tuple[int, int]]]:
    roles: list[Role] = [trace.parameters[key][1] for key in keys]
    residual = {root for atoms in trace.residual for root in np.unique(roots[atoms[atoms >= 0]]).tolist()}
    leaks = _leaks(trace, roots)
    ties = trace.union.ties(roots)
    groups: list[Group] = []
    places: dict[int, tuple[int, int]] = {}
    taken: dict[str, int] = defaultdict(int)

    def maker(root: int) -> tuple[int, int]:
        number = min(number for number in owned[root] if roles[number] == "makes")
        return number, owned[root][number][0]

    for (signature, reason), members in sorted(families.items(), key=lambda item: min(map(maker, item[1]))):
        members.sort(key=maker)
        name = keys[maker(members[0])[0]][0].removesuffix(".weight").removesuffix(".bias")
        taken[name] += 1
        if len(members) == 1 and not reason:
            reason = ties.get(members[0], "it has a single part")
        slices = tuple(
            Slice(*keys[number], torch.tensor([owned[root][number] for root in members]), roles[number])
            for number, _ in sorted(signature, key=lambda owned_part: (_ORDER[roles[owned_part[0]]], owned_part[0]))
        )
        if not reason:
            places |= {root: (len(groups), part) for part, root in enumerate(members)}
        groups.append(
            Group(
                name if taken[name] == 1 else f"{name}:{taken[name]}",
                len(members),
                slices,
                reason,
                members[0] in residual,
                next((leaks[root] for root in members if root in leaks), ""),
            )
        )
    return groups, places


def _leaks(trace: Trace, roots: Atoms) -> dict[int, str]:
    found: dict[int, str] = {}
    for atoms, reason in trace.leaks:
        for root in np.unique(roots[atoms[atoms >= 0]]).tolist():
            found.setdefault(root, reason)
    return found
