"""Rules of the operators that move, cut or join positions: views, permutations, slices, concatenation, pooling."""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from thrifty.prune.atoms import NONE, Atoms
from thrifty.prune.trace import Call, Size, Trace, Value, nothing

Rule = Callable[[Trace, Call], Value | Sequence[Value]]


def _segments(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """Cut two shapes of one size into the shortest runs of dimensions with equal products."""
    left, right = [list(itertools.accumulate(shape, operator.mul, initial=1)) for shape in (before, after)]
    found, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        first_i, first_j = i, j
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while left[i] != right[j]:
            i, j = (i + 1, j) if left[i] < right[j] else (i, j + 1)
        found.append((range(first_i, i), range(first_j, j)))
    return found


def reshape_atoms(atoms: Atoms, before: Sequence[int], after: Sequence[int]) -> tuple[Atoms, list[int]]:
    """The atoms of a reshaped value and the new dimensions that come from ones along which the atoms differ."""
    expanded, result, touched = list(atoms.shape), [1] * len(after), []
    for old, new in _segments(before, after):
        if any(atoms.shape[axis] > 1 for axis in old):
            for axis in old:
                expanded[axis] = before[axis]
            for axis in new:
                result[axis] = after[axis]
            touched += new
    moved = np.broadcast_to(atoms, expanded).reshape(result)
    for axis in touched:
        lead = moved.take([0], axis)
        if moved.shape[axis] > 1 and (moved == lead).all():
            moved = lead
    return moved, touched


def reshape(trace: Trace, call: Call) -> Value:
    """view, reshape, flatten, unflatten: the atoms are reshaped as the value is."""
    x = call.values[0]
    atoms, touched = reshape_atoms(x.atoms, x.shape, call.shape)
    value = Value(call.shape, atoms, x.is_zero, is_weight=x.is_weight)
    _note(trace, call, value, touched)
    return value


def _note(trace: Trace, call: Call, value: Value, axes: Sequence[int]) -> None:
    """Remember sizes that the module's code may hold, and values that several dimensions of one array decide on."""
    for axis in axes:
        if value.atoms.shape[axis] > 1:
            trace.sizes.append(Size(call.module, value.atoms, axis))
    if len(value.varies) > 1:
        trace.wide.append((value, f"{call} arranges them in a grid"))


def permute(trace: Trace, call: Call) -> Value:
    """permute, transpose and t."""
    x = call.values[0]
    ndim = len(x.shape)
    if "dims" in call.arguments:
        order = [axis % ndim for axis in call["dims"]]
    else:
        order = list(range(ndim))
        first, second = (call.arguments.get(name, default) % ndim for name, default in (("dim0", 0), ("dim1", 1)))
        order[first], order[second] = second, first
    return replace(x, shape=call.shape, atoms=x.atoms.transpose(order), parameter="")


def unsqueeze(trace: Trace, call: Call) -> Value:
    """unsqueeze."""
    x = call.values[0]
    axis = call["dim"] % (len(x.shape) + 1)
    return replace(x, shape=call.shape, atoms=np.expand_dims(x.atoms, axis), parameter="")


def squeeze(trace: Trace, call: Call) -> Value:
    """squeeze: only dimensions of size 1 vanish, and no atoms differ along those."""
    x = call.values[0]
    atoms, _ = reshape_atoms(x.atoms, x.shape, call.shape)
    return replace(x, shape=call.shape, atoms=atoms, parameter="")


def expand(trace: Trace, call: Call) -> Value:
    """expand: atoms broadcast as values do."""
    x = call.values[0]
    atoms = x.atoms.reshape((1,) * (len(call.shape) - x.atoms.ndim) + x.atoms.shape)
    return replace(x, shape=call.shape, atoms=atoms, parameter="" if call.shape != x.shape else x.parameter)


def concatenate(trace: Trace, call: Call) -> Value:
    """cat: along the free dimension the atoms are joined end to end, along another equal places go together."""
    values = [value for value in call.values if math.prod(value.shape)]
    axis = call["dim"] % len(call.shape)
    across = sorted({other for value in values for other in value.varies if other != axis})
    if not across:
        pieces = [np.broadcast_to(v.atoms, [*v.atoms.shape[:axis], v.shape[axis], *v.atoms.shape[axis + 1 :]])
                  for v in values]  # fmt: skip
        zero = all(value.is_zero for value in values if value.is_free)
        return Value(call.shape, np.concatenate(pieces, axis), zero)
    reason = f"{call} joins it to what cannot go"
    ones = [trace.tie(value, [axis], f"{call} joins them along another dimension") for value in values]
    plain = [replace(v, shape=tuple(1 if a == axis else s for a, s in enumerate(v.shape))) for v in ones]
    shape = tuple(1 if a == axis else size for a, size in enumerate(call.shape))
    return Value(call.shape, trace.combine(plain, shape, reason), all(value.is_zero for value in values))


def stack(trace: Trace, call: Call) -> Value:
    """stack: equal places of all go together."""
    axis = call["dim"] % len(call.shape)
    shape = tuple(size for a, size in enumerate(call.shape) if a != axis)
    atoms = trace.combine(call.values, shape, str(call))
    return Value(call.shape, np.expand_dims(atoms, axis), all(value.is_zero for value in call.values))


def split(trace: Trace, call: Call) -> Sequence[Value]:
    """split and chunk: equal pieces lose the same positions each; pieces of unequal sizes lose none."""
    x = call.values[0]
    axis = call["dim"] % len(x.shape)
    sizes = _pieces(call, x.shape[axis])
    count = len(sizes)
    if x.atoms.shape[axis] > 1 and len(set(sizes)) == 1 and count > 1:
        form = [*x.atoms.shape[:axis], count, sizes[0], *x.atoms.shape[axis + 1 :]]
        grid = Value((*x.shape[:axis], count, sizes[0], *x.shape[axis + 1 :]), x.atoms.reshape(form), x.is_zero)
        tied = trace.tie(grid, [axis], f"{call} cuts them into equal pieces")
        piece = Value((*x.shape[:axis], sizes[0], *x.shape[axis + 1 :]), tied.atoms.squeeze(axis), x.is_zero)
        _note(trace, call, piece, [axis])
        return [piece] * count
    if x.atoms.shape[axis] > 1 and count > 1:
        x = trace.tie(x, [axis], f"{call} cuts them into unequal pieces")
    return [replace(x, shape=(*x.shape[:axis], size, *x.shape[axis + 1 :]), parameter="") for size in sizes]


def _pieces(call: Call, whole: int) -> list[int]:
    given = call.arguments.get("split_size", call.arguments.get("split_sizes"))
    if given is None:
        given = -(-whole // call["chunks"])
    if isinstance(given, list | tuple):
        return list(given)
    return [min(given, whole - start) for start in range(0, whole, given)]


def take(trace: Trace, call: Call) -> Value:
    """slice and select: a cut through a free dimension needs it whole."""
    x = call.values[0]
    axis = call["dim"] % len(x.shape)
    if call.name == "slice" and call.shape == x.shape:
        return x
    if x.atoms.shape[axis] > 1:
        x = trace.tie(x, [axis], f"{call} takes fixed positions of them")
    atoms = x.atoms.squeeze(axis) if call.name == "select" else x.atoms
    return replace(x, shape=call.shape, atoms=atoms, parameter="")


def unbind(trace: Trace, call: Call) -> Sequence[Value]:
    """unbind: as a select of every position."""
    x = call.values[0]
    axis = call["dim"] % len(x.shape)
    x = trace.tie(x, [axis], f"{call} takes fixed positions of them")
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    return [replace(x, shape=shape, atoms=x.atoms.squeeze(axis), parameter="")] * x.shape[axis]


def reduce(trace: Trace, call: Call) -> Value:
    """mean, sum, amax, amin: dimensions that vanish must be whole."""
    x = call.values[0]
    given = call.arguments.get("dim")
    axes = range(len(x.shape)) if given in (None, []) else [given] if isinstance(given, int) else given
    axes = [axis % len(x.shape) for axis in axes]
    x = trace.tie(x, axes, f"{call} sums over them")
    if call.arguments.get("keepdim"):
        return Value(call.shape, x.atoms, x.is_zero)
    return Value(call.shape, x.atoms.squeeze(tuple(axes)), x.is_zero)


def gather(trace: Trace, call: Call) -> Value:
    """index and index_select by one tensor, roll and flip: positions change places along some dimensions."""
    x = call.values[0]
    if call.name == "index":
        given = [axis for axis, index in enumerate(call["indices"]) if index is not None]
    else:
        named = call.arguments.get("dims", call.arguments.get("dim"))
        given = list(range(len(x.shape))) if named == [] else [named] if isinstance(named, int) else named
    axes = [axis % len(x.shape) for axis in given]
    if x.parameter and len(axes) == 1 and len(x.shape) == 2:  # a table whose columns follow what they are added to
        x = replace(x, atoms=np.expand_dims(trace.parameter_atoms(x, 1 - axes[0], "follows"), axes[0]))
    x = trace.tie(x, axes, f"{call} takes fixed positions of them")
    if call.name == "index" and (len(axes) > 1 or not call["indices"][axes[0]].shape):
        return trace.freeze(x, f"thrifty has no rule for {call} by several indices") and nothing(call.shape)
    added = len(call.shape) - len(x.shape)
    form = [*x.atoms.shape[: axes[0]], *(1 for _ in range(added)), *x.atoms.shape[axes[0] :]]
    return replace(x, shape=call.shape, atoms=x.atoms.reshape(form), parameter="")


def pool(trace: Trace, call: Call) -> Value:
    """Pooling, interpolation and padding by reflection or edge: positions of the last dimensions mix."""
    x = call.values[0]
    first = 2 if len(x.shape) > 2 else 1
    x = trace.tie(x, [axis for axis in x.varies if axis >= first], f"{call} mixes them")
    return Value(call.shape, x.atoms, x.is_zero)


def pad(trace: Trace, call: Call) -> Value:
    """pad: what a constant adds along a free dimension stays."""
    x, widths = call.values[0], list(call["pad"])
    mode, fill = call.arguments.get("mode", "constant"), call.arguments.get("value") or 0
    atoms = x.atoms
    for number in range(len(widths) // 2):
        axis = len(x.shape) - 1 - number
        if atoms.shape[axis] > 1 and any(widths[2 * number : 2 * number + 2]):
            before, after = widths[2 * number : 2 * number + 2]
            if mode != "constant" or min(before, after) < 0:
                return trace.freeze(x, f"{call} mixes them") and nothing(call.shape)
            around = [(0, 0)] * atoms.ndim
            around[axis] = (before, after)
            atoms = np.pad(atoms, around, constant_values=NONE)
    return Value(call.shape, atoms, x.is_zero and (mode != "constant" or fill == 0))


def pixel_shuffle(trace: Trace, call: Call) -> Value:
    """pixel_shuffle: the channels that become one channel's pixels go together."""
    x = call.values[0]
    channels = trace.along(x, 1, f"{call} mixes its positions").reshape(call.shape[1], -1)
    grid = trace.tie(Value(channels.shape, channels), [1], f"{call} makes them the pixels of one channel")
    form = [1] * len(call.shape)
    form[1] = len(grid.atoms)
    return Value(call.shape, grid.atoms.reshape(form), x.is_zero)


_POOLS = [
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d",
    "_upsample_nearest_exact2d", "reflection_pad2d", "replication_pad2d",
]  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(["view", "reshape", "flatten", "unflatten", "_unsafe_view"], reshape),
    **dict.fromkeys(["permute", "transpose", "t", "numpy_T"], permute),
    **dict.fromkeys(["expand", "expand_as"], expand),
    **dict.fromkeys(["cat", "concat"], concatenate),
    **dict.fromkeys(["split", "split_with_sizes", "chunk"], split),
    **dict.fromkeys(["slice", "select"], take),
    **dict.fromkeys(["mean", "sum", "amax", "amin"], reduce),
    **dict.fromkeys(["pad", "constant_pad_nd"], pad),
    **dict.fromkeys(["index", "index_select", "roll", "flip"], gather),
    **dict.fromkeys(_POOLS, pool),
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "stack": stack,
    "unbind": unbind,
    "pixel_shuffle": pixel_shuffle,
}
