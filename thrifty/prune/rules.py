"""What each operator does to the atoms of its inputs: one rule an operator, in one table.

A rule takes the trace and the call and returns the value (or the values) that the operator makes. An operator without a
rule freezes what it touches, so a missing rule costs parts, never exactness.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from thrifty.prune import rules_views as views
from thrifty.prune.atoms import NONE, Atoms
from thrifty.prune.trace import Call, Role, Trace, Value, Work, nothing

Result = Value | Sequence[Value]
Rule = Callable[[Trace, Call], Result]


def prunes_whole_blocks(groups: int, channels: int) -> bool:
    """How a grouped convolution loses channels: whole groups where it has at least as many as channels in each (so
    depthwise ones do), else the same channels out of every group."""
    return groups > 1 and groups >= channels // groups


def convolution(trace: Trace, call: Call) -> Result:
    """conv1d to conv3d: reads its input's channels, makes its own; depthwise ones follow their input."""
    x, weight = call["input"], call["weight"]
    if not weight.parameter or len(x.shape) != len(weight.shape):
        return whole(trace, call, math.prod(call.shape) * math.prod(weight.shape[1:]))
    groups, num_each = call["groups"], weight.shape[1]
    inputs = trace.along(x, 1, f"{call} mixes its positions")
    is_depthwise = groups > 1 and num_each == 1
    rows = trace.parameter_atoms(weight, 0, "follows" if is_depthwise else "makes")
    if prunes_whole_blocks(groups, groups * num_each):
        blocks = inputs.reshape(groups, num_each)
        trace.union.join(blocks[:, :1], blocks, f"{call} loses whole groups")
        trace.union.join(blocks[:, :1], rows.reshape(groups, -1), f"{call} loses whole groups")
        trace.union.freeze(blocks[(blocks < 0).any(1)], f"{call} reads what cannot go")
        trace.union.freeze(rows.reshape(groups, -1)[(blocks < 0).any(1)], f"{call} reads what cannot go")
        extents: tuple[Atoms, ...] = (rows,)
        scale = float(num_each)
    else:
        columns = trace.parameter_atoms(weight, 1, "reads")
        trace.union.join(columns, inputs.reshape(groups, num_each))
        _note_leak(trace, call, x, columns)
        if groups > 1:
            offsets = rows.reshape(groups, -1)
            trace.union.join(offsets[:1], offsets, f"{call} loses the same channels of every group")
            unread = columns[(inputs.reshape(groups, num_each) < 0).any(0)]
            trace.union.freeze(unread, f"{call} reads what cannot go")
        extents, scale = (rows, columns), 1.0
    _bias(trace, call["bias"], rows, "follows" if is_depthwise else "makes")
    scale *= math.prod(weight.shape[2:]) * math.prod(call.shape[2:])
    trace.works.append(Work("convolution", call.module, scale * x.shape[0] / trace.batch, extents, x.shape))
    return _made(call.shape, rows, 1)


def transposed_convolution(trace: Trace, call: Call) -> Result:
    """conv_transpose1d to 3d without groups: its weight is (in, out, ...)."""
    x, weight = call["input"], call["weight"]
    if not weight.parameter or call["groups"] != 1 or len(x.shape) != len(weight.shape):
        return whole(trace, call, math.prod(x.shape) * math.prod(weight.shape[1:]))
    rows = trace.parameter_atoms(weight, 0, "reads")
    trace.union.join(rows, trace.along(x, 1, f"{call} mixes its positions"))
    _note_leak(trace, call, x, rows)
    columns = trace.parameter_atoms(weight, 1, "makes")
    _bias(trace, call["bias"], columns)
    scale = math.prod(weight.shape[2:]) * math.prod(x.shape[2:]) * x.shape[0] / trace.batch
    trace.works.append(Work("convolution", call.module, scale, (columns, rows), x.shape))
    return _made(call.shape, columns, 1)


def linear(trace: Trace, call: Call) -> Result:
    """linear(x, weight, bias): reads the last dimension, makes a new one."""
    x, weight = call["input"], call["weight"]
    if not weight.parameter or len(weight.shape) != 2:
        return whole(trace, call, math.prod(call.shape) * weight.shape[-1])
    return _product(trace, call, x, weight, (0, 1), call["bias"])


def _product(trace: Trace, call: Call, x: Value, weight: Value, axes: tuple[int, int], bias: Value | None) -> Value:
    """x times a weight whose dimension `axes[0]` is made and `axes[1]` read."""
    outer = [axis for axis in x.varies if axis != len(x.shape) - 1]
    if outer:  # a linear of each head: heads may go, the width of a head may not
        x = trace.tie(x, [len(x.shape) - 1], f"{call} mixes them")
    rows = trace.parameter_atoms(weight, axes[0], "makes")
    columns = trace.parameter_atoms(weight, axes[1], "reads")
    inputs = trace.along(x, -1, "") if not outer else np.full(weight.shape[axes[1]], NONE)
    trace.union.join(columns, inputs)
    _note_leak(trace, call, x, columns)
    _bias(trace, bias, rows)
    scale = math.prod(x.shape[:-1]) / trace.batch
    if not outer:
        trace.works.append(Work("linear", call.module, scale, (rows, columns), x.shape))
        return _made(call.shape, rows, len(call.shape) - 1)
    trace.union.freeze(rows, f"{call} treats each head alone")
    kept = [x.atoms.reshape(-1)] if len(x.varies) == 1 else []
    scale /= math.prod(len(atoms) for atoms in kept)
    trace.works.append(Work("linear", call.module, scale, (rows, columns, *kept), x.shape))
    return Value(call.shape, x.atoms, is_zero=x.is_zero and bias is None)


def matmul(trace: Trace, call: Call) -> Result:
    """matmul, mm and bmm: a weight matrix is a linear; between activations only what both carry along may go."""
    first, second = call.values[:2]
    if second.parameter and len(second.shape) == 2:
        return _product(trace, call, first, second, (1, 0), None)
    if first.is_weight or second.is_weight or min(len(first.shape), len(second.shape)) < 2:
        return whole(trace, call, math.prod(call.shape) * first.shape[-1])
    reason = f"{call} sums over them"
    first = trace.tie(first, [len(first.shape) - 1], reason)
    second = trace.tie(second, [len(second.shape) - 2], reason)
    first = trace.tie(first, [len(first.shape) - 2], reason)
    second = trace.tie(second, [len(second.shape) - 1], reason)
    lead = call.shape[:-2]
    heads = trace.combine([_without_last(first), _without_last(second)], lead, str(call)) if lead else np.array(NONE)
    _matmul_work(trace, call, heads, call.shape[-2] * call.shape[-1] * first.shape[-1], first.shape)
    return Value(call.shape, heads.reshape(*heads.shape, 1, 1), first.is_zero or second.is_zero)


def sum_and_product(trace: Trace, call: Call) -> Result:
    """addmm: stays as it is. (baddbmm is taken apart into its product and its sum.)"""
    return whole(trace, call, math.prod(call.shape) * call.values[1].shape[-1])


def _without_last(value: Value) -> Value:
    atoms = value.atoms.max((-1, -2))
    return Value(value.shape[:-2], atoms, value.is_zero)


def _matmul_work(trace: Trace, call: Call, heads: Atoms, each: int, input_shape: tuple[int, ...]) -> None:
    count = math.prod(call.shape[:-2])
    varies = [axis for axis, size in enumerate(heads.shape) if size > 1]
    extents = (heads.reshape(-1),) if len(varies) == 1 else ()
    scale = each * count / math.prod(len(atoms) for atoms in extents) / trace.batch
    trace.works.append(Work("matmul", call.module, scale, extents, input_shape))


def attention(trace: Trace, call: Call) -> Result:
    """scaled_dot_product_attention: whole heads may go, from queries, keys and values together."""
    query, key = call["query"].shape, call["key"].shape
    each = query[-2] * key[-2] * (query[-1] + call["value"].shape[-1])
    if call.arguments.get("enable_gqa"):
        return whole(trace, call, each * math.prod(query[:-2]))
    parts = []
    for value in (call["query"], call["key"], call["value"]):
        axes = [len(value.shape) - 2, len(value.shape) - 1]
        parts.append(_without_last(trace.tie(value, axes, f"{call} sums over them")))
    lead = call.shape[:-2]
    mask = call["attn_mask"]
    if mask is not None:
        mask = trace.tie(mask, [len(mask.shape) - 2, len(mask.shape) - 1], f"{call} sums over them")
    heads = trace.combine(parts, lead, str(call))
    atoms = heads.reshape(*heads.shape, 1, 1)
    if mask is not None:
        carried = Value((*lead, *query[-2:]), atoms)
        atoms = trace.combine([carried, mask], (*lead, query[-2], key[-2]), str(call))
    _matmul_work(trace, call, heads, each, query)
    return Value(call.shape, atoms, call["value"].is_zero)


def batch_norm(trace: Trace, call: Call) -> Result:
    """batch_norm: each channel by itself, so its weight, bias and running statistics follow."""
    x = call["input"]
    channels = trace.along(x, 1, f"{call} mixes its positions")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call[name] is not None:
            _follow(trace, call, call[name], channels)
    return Value(call.shape, x.atoms, is_zero=True)


def _follow(trace: Trace, call: Call, value: Value, channels: Atoms) -> None:
    if value.parameter:
        mine = trace.parameter_atoms(value, 0, "follows")
        trace.union.join(mine, channels)
        trace.union.freeze(mine[channels < 0], f"{call} scales what cannot go")
    else:
        trace.union.freeze(channels, f"{call} scales with what is computed")


def layer_norm(trace: Trace, call: Call) -> Result:
    """layer_norm and rms_norm: removing zeros would change the statistics, so what is normalised over stays."""
    x = call["input"]
    axes = range(len(x.shape) - len(call["normalized_shape"]), len(x.shape))
    for value in call.values[1:]:
        trace.freeze(value, f"{call} normalises over them")
    rest = trace.tie(x, list(axes), f"{call} normalises over them: removing zeros would change its statistics")
    return Value(call.shape, rest.atoms, is_zero=False)


def group_norm(trace: Trace, call: Call) -> Result:
    """group_norm: the channels of one group go together; with a single group none can."""
    x, count = call["input"], call["num_groups"]
    reason = f"{call} normalises over them: removing zeros would change its statistics"
    if count == 1 or call["weight"] is None:
        for value in call.values:
            trace.freeze(value, reason)
        return nothing(call.shape)
    channels = trace.along(x, 1, f"{call} mixes its positions")
    blocks = channels.reshape(count, -1)
    trace.union.join(blocks[:, :1], blocks, reason)
    trace.union.freeze(blocks[(blocks < 0).any(1)], reason)
    for name in ("weight", "bias"):
        if call[name] is not None:
            _follow(trace, call, call[name], channels)
    return Value(call.shape, x.atoms, x.is_zero or call["weight"] is not None)


def embedding(trace: Trace, call: Call) -> Result:
    """embedding: makes the width of its rows."""
    weight = call["weight"]
    if not weight.parameter:
        return unknown(trace, call)
    return _made(call.shape, trace.parameter_atoms(weight, 1, "makes"), len(call.shape) - 1)


def softmax(trace: Trace, call: Call) -> Result:
    """softmax and log_softmax: what they sum over stays."""
    x = trace.tie(call["self"], [call["dim"] % len(call.shape)], f"{call} sums over them")
    return Value(call.shape, x.atoms, is_zero=False)


def unknown(trace: Trace, call: Call) -> Result:
    """An operator without a rule: nothing that it touches may go."""
    for value in call.values:
        trace.freeze(value, f"thrifty has no rule for {call}")
    return nothing(call.shape)


def whole(trace: Trace, call: Call, count: int) -> Result:
    """A product of `count` multiply-accumulates whose operands cannot be followed: nothing of it may go, all counts."""
    trace.works.append(Work("matmul", call.module, count / trace.batch, (), call.shape))
    return unknown(trace, call)


def _note_leak(trace: Trace, call: Call, x: Value, columns: Atoms) -> None:
    if not x.is_zero:
        trace.leaks.append((columns, f"{call} reads it where it is not zero"))


def _bias(trace: Trace, bias: Value | None, rows: Atoms, role: Role = "makes") -> None:
    if bias is not None and bias.parameter:
        trace.union.join(trace.parameter_atoms(bias, 0, role), rows)
    elif bias is not None:
        trace.union.freeze(rows, "its bias is computed")


def _made(shape: tuple[int, ...], atoms: Atoms, axis: int) -> Value:
    """A value whose dimension `axis` was just made."""
    form = [1] * len(shape)
    form[axis] = len(atoms)
    if len(atoms) == 1:
        return nothing(shape)
    return Value(shape, atoms.reshape(form))


def _pointwise(keeps_zero: bool) -> Rule:
    def rule(trace: Trace, call: Call) -> Value:
        atoms = trace.combine(call.values, call.shape, str(call))
        zero = keeps_zero and all(value.is_zero for value in call.values)
        return Value(call.shape, atoms, zero)

    return rule


def add(trace: Trace, call: Call) -> Result:
    """add and sub: a sum of two streams is a residual; what is added to a dropped channel must be zero there too."""
    values = call.values
    free = [value for value in values if value.is_free and not value.is_weight]
    if len(free) > 1:
        trace.residual += [value.atoms for value in free]
    atoms = trace.combine(values, call.shape, str(call))
    is_zero = len(values) > 1 and all(value.is_zero and (value.is_free or value.is_weight) for value in values)
    return Value(call.shape, atoms, is_zero)


def multiply(trace: Trace, call: Call) -> Result:
    """mul: zero where either factor is."""
    values = call.values
    atoms = trace.combine(values, call.shape, str(call))
    return Value(call.shape, atoms, any(value.is_zero and (value.is_free or value.is_weight) for value in values))


def divide(trace: Trace, call: Call) -> Result:
    """div: zero where the numerator is, if the denominator is not."""
    values = call.values
    atoms = trace.combine(values, call.shape, str(call))
    is_zero = isinstance(call["self"], Value) and call["self"].is_zero
    return Value(call.shape, atoms, is_zero and not any(value.is_zero and value.is_free for value in values[1:]))


def clamp(trace: Trace, call: Call) -> Result:
    """clamp, hardtanh, relu6: zero stays zero where the bounds hold it."""
    x = call.values[0]
    low, high = (call.arguments.get(first, call.arguments.get(second)) for first, second in _BOUNDS)
    holds = not any(isinstance(bound, Value) for bound in (low, high))
    holds = holds and (low is None or low <= 0) and (high is None or high >= 0)
    return Value(call.shape, trace.combine(call.values, call.shape, str(call)), holds and x.is_zero)


def power(trace: Trace, call: Call) -> Result:
    """pow with a number as exponent."""
    exponent = call["exponent"]
    atoms = trace.combine(call.values, call.shape, str(call))
    return Value(call.shape, atoms, not isinstance(exponent, Value) and exponent > 0 and call.values[0].is_zero)


_BOUNDS = (("min", "min_val"), ("max", "max_val"))


def gated_unit(trace: Trace, call: Call) -> Result:
    """glu: one half times a function of the other, so a channel of each half."""
    halves = {"self": call["self"], "chunks": 2, "dim": call["dim"]}
    return views.split(trace, Call("chunk", call.module, halves, call.shape))[0]


def constant(trace: Trace, call: Call) -> Result:
    """A tensor of a size that the code gives: nothing of it can go."""
    return nothing(call.shape)


def prelu(trace: Trace, call: Call) -> Result:
    """prelu: a slope for each channel follows it; a single slope is shared by all."""
    x, weight = call["self"], call["weight"]
    if weight.parameter and weight.shape[0] > 1:
        _follow(trace, call, weight, trace.along(x, 1, f"{call} mixes its positions"))
    return Value(call.shape, x.atoms, x.is_zero)


_ZERO_KEEPING = [
    "relu", "gelu", "silu", "hardswish", "tanh", "leaky_relu", "elu", "celu", "selu", "mish", "neg", "abs", "sqrt",
    "square", "sin", "erf", "sign", "expm1", "log1p", "floor", "ceil", "round", "atan", "softshrink", "hardshrink",
    "softsign", "dropout", "feature_dropout", "alpha_dropout", "maximum", "minimum", "contiguous", "clone", "detach",
    "alias", "to", "_to_copy", "type_as", "lift_fresh", "lift_fresh_copy", "rrelu", "tan", "sinh",
    "_assert_tensor_metadata", "zeros_like",
]  # fmt: skip
_ZERO_LOSING = [
    "sigmoid", "hardsigmoid", "exp", "cos", "log", "softplus", "reciprocal", "rsqrt", "log_sigmoid", "rsub", "where",
    "ge", "gt", "le", "lt", "eq", "ne", "logical_and", "logical_or", "logical_not", "cosh", "masked_fill",
    "ones_like", "full_like", "lerp", "addcmul", "addcdiv",
]  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], convolution),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], transposed_convolution),
    **dict.fromkeys(["matmul", "mm", "bmm"], matmul),
    **dict.fromkeys(["layer_norm", "rms_norm"], layer_norm),
    **dict.fromkeys(["add", "sub"], add),
    **dict.fromkeys(["clamp", "hardtanh", "relu6"], clamp),
    **dict.fromkeys(["softmax", "log_softmax"], softmax),
    **dict.fromkeys(_ZERO_KEEPING, _pointwise(keeps_zero=True)),
    **dict.fromkeys(_ZERO_LOSING, _pointwise(keeps_zero=False)),
    **dict.fromkeys(["gru", "lstm", "rnn_tanh", "rnn_relu"], unknown),  # else each step of time would be taken apart
    "linear": linear,
    "addmm": sum_and_product,
    "scaled_dot_product_attention": attention,
    "batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "instance_norm": batch_norm,
    "group_norm": group_norm,
    "embedding": embedding,
    "mul": multiply,
    "div": divide,
    "pow": power,
    "prelu": prelu,
    "glu": gated_unit,
    **dict.fromkeys(["new_zeros", "new_ones", "new_full", "new_empty"], constant),
    **views.RULES,
}
