# ruff: noqa: ANN001, ANN202, RUF005 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""Decode attention on packed codes in Triton: one new token per row, keys coded per channel and block, values per
token and channel group (layout atc of `thrifty.kv.codecs.hack`), queries and weights not quantised.

    S = (q scale_k) k' + q low_k        O = sum_j (p_j scale_v) v'_j + p_j low_v

Neither keys nor values are restored, in memory or in registers. One shift and one `lop3` turn a 32-bit word of codes
into two float16 numbers `offset + code` which enter the tensor cores as they are: the field's bits are laid into
the mantissa, and the offset is taken off through the sums of the other operand. A 16-bit half of a token's row of
bytes is the unit: field f of half h is channel (16 / bits) h + f, so the query is split by field, not the codes.

The 16 rows that a tensor core wants are filled with several blocks: row (s, m) is query head m of the block s of a
group of `STREAMS` consecutive blocks. Each product with the codes of one block counts for its own rows only, and the
softmax, the scales and the lows are then done once for 16 full rows. The sequence is split over programs
(flash-decoding, Dao et al., 2023); sinks and open block are one more program; `_combine` joins them.
"""

import functools
import math
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from thrifty.kv.blocks import Blocks
from thrifty.kv.kernels.fields import by_field, offset_of, scaled, unpacked, zeros

_FAR = tl.constexpr(-1.0e30)  # a score that is not there
_START = tl.constexpr(-1.0e20)  # a maximum of nothing; above _FAR, so that the weight of what is not there is 0
_SHRINK = tl.constexpr(1 / 64)  # keeps query times scale far from the end of float16; a power of two changes nothing
_ROWS = tl.constexpr(16)


@triton.jit
@no_type_check
def _folded(query, k_scale, k_low, own, DIM: tl.constexpr, BITS: tl.constexpr):
    """The query with the scales of each row's own block folded in, by field, and what every score of it gets."""
    FIELDS: tl.constexpr = 16 // BITS
    at = own[:, None] * DIM + tl.arange(0, DIM)[None, :]
    folded = (query.to(tl.float32) * tl.load(k_scale + at).to(tl.float32)).to(tl.float16)
    constant = tl.sum(query.to(tl.float32) * tl.load(k_low + at).to(tl.float32), 1)
    folded = by_field(tl.reshape(folded, (_ROWS, DIM // FIELDS, FIELDS)), FIELDS)
    offset = tl.zeros((_ROWS, DIM // FIELDS), tl.float32)
    for field in tl.static_range(FIELDS):
        offset += folded[field].to(tl.float32) * offset_of(BITS, field)
    return folded, constant - tl.sum(offset, 1)


@triton.jit
@no_type_check
def _scores(
    folded, k_codes, first, blocks, token, stream,
    STREAMS: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr, BITS: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """Folded query times codes [16, tokens]: each row with the tokens of its own block."""
    FIELDS: tl.constexpr = 16 // BITS
    HALVES: tl.constexpr = DIM // FIELDS
    half = tl.arange(0, HALVES)
    scores = tl.zeros((_ROWS, token.shape[0]), tl.float32)
    for index in tl.static_range(STREAMS):
        block = tl.minimum(first + index, blocks - 1)
        halves = tl.load(k_codes + (block * UNIT + token)[:, None] * HALVES + half[None, :])
        product = tl.zeros((_ROWS, token.shape[0]), tl.float32)
        for field in tl.static_range(FIELDS):
            product = tl.dot(folded[field], tl.trans(unpacked(halves, BITS, field, ASSEMBLY)), product)
        scores = tl.where((stream == index)[:, None], product, scores)
    return scores


@triton.jit
@no_type_check
def _weighed(weights, scale, low, ones, lows, folds, TOKENS: tl.constexpr, GROUPS: tl.constexpr):
    """Weights with the scales of each group folded in; `lows` and `folds` with their sums added."""
    scale = by_field(tl.reshape(scale, (_ROWS, TOKENS, GROUPS)), GROUPS)
    low = by_field(tl.reshape(low, (_ROWS, TOKENS, GROUPS)), GROUPS)
    operands = ()
    new_lows = ()
    new_folds = ()
    for group in tl.static_range(GROUPS):
        operand = (weights * scale[group].to(tl.float32)).to(tl.float16)
        lowered = (weights * low[group].to(tl.float32)).to(tl.float16)
        operands = operands + (operand,)
        new_lows = new_lows + (tl.dot(lowered, ones, lows[group]),)
        new_folds = new_folds + (tl.dot(operand, ones, folds[group]),)
    return operands, new_lows, new_folds


@triton.jit
@no_type_check
def _mixed(
    mixed, operands, v_codes, first, blocks, token, stream,
    STREAMS: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """`mixed`, plus weights with the scales folded in times codes, each row with its own block."""
    FIELDS: tl.constexpr = 16 // BITS
    WIDTH: tl.constexpr = GROUP // FIELDS
    half = tl.arange(0, WIDTH)
    for index in tl.static_range(STREAMS):
        block = tl.minimum(first + index, blocks - 1)
        summed = ()
        for group in tl.static_range(DIM // GROUP):
            operand = tl.where((stream == index)[:, None], operands[group], 0.0)
            at = (block * UNIT + token)[:, None] * (DIM // FIELDS) + group * WIDTH + half[None, :]
            halves = tl.load(v_codes + at)
            for field in tl.static_range(FIELDS):
                values = unpacked(halves, BITS, field, ASSEMBLY)
                summed = summed + (tl.dot(operand, values, mixed[group * FIELDS + field]),)
        mixed = summed
    return mixed


@triton.jit
@no_type_check
def _store(
    highest, total, mixed, lows, folds, part, stats, place,
    PADDED: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Join the rows of a query head, take the offsets off, and store; channels by group, field and half."""
    FIELDS: tl.constexpr = 16 // BITS
    WIDTH: tl.constexpr = GROUP // FIELDS
    STREAMS: tl.constexpr = _ROWS // PADDED
    by_head = tl.reshape(highest, (STREAMS, PADDED))
    joined = tl.max(by_head, 0)
    shrink = tl.reshape(tl.exp2(by_head - joined[None, :]), (_ROWS,))
    at = place * PADDED + tl.arange(0, PADDED)
    tl.store(stats + at * 2, joined)
    total = tl.max(total, 1)  # all columns are alike
    tl.store(stats + at * 2 + 1, tl.sum(tl.reshape(total * shrink, (STREAMS, PADDED)), 0))
    for group in tl.static_range(DIM // GROUP):
        for field in tl.static_range(FIELDS):
            constant = tl.max(lows[group] - folds[group] * offset_of(BITS, field), 1)
            value = (mixed[group * FIELDS + field] + constant[:, None]) * shrink[:, None]
            channel = (group * FIELDS + field) * WIDTH + tl.arange(0, WIDTH)
            value = tl.sum(tl.reshape(value, (STREAMS, PADDED, WIDTH)), 0)
            tl.store(part + at[:, None] * DIM + channel[None, :], value)


@triton.jit
@no_type_check
def _attend_codes(
    q, k_codes, k_scale, k_low, v_codes, v_scale, v_low, part, stats,
    head, split, splits, blocks, groups_each, factor,
    SHARED: tl.constexpr, PADDED: tl.constexpr, STREAMS: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr,
    GROUP: tl.constexpr, K_BITS: tl.constexpr, V_BITS: tl.constexpr, ASSEMBLY: tl.constexpr, STAGES: tl.constexpr,
    TOKENS: tl.constexpr,
):  # fmt: skip
    """One program: `groups_each` groups of `STREAMS` blocks of one key head."""
    V_FIELDS: tl.constexpr = 16 // V_BITS
    GROUPS: tl.constexpr = DIM // GROUP
    row = tl.arange(0, _ROWS)
    stream, member = row // PADDED, row % PADDED
    is_row = (member < SHARED) & (stream < STREAMS)
    at = (head * SHARED + member)[:, None] * DIM + tl.arange(0, DIM)[None, :]
    query = tl.load(q + at, mask=is_row[:, None], other=0.0)
    query = (query.to(tl.float32) * _SHRINK).to(query.dtype)
    factor = factor / _SHRINK
    k_codes += head * blocks * (UNIT * DIM * K_BITS // 16)
    v_codes += head * blocks * (UNIT * DIM * V_BITS // 16)
    k_scale += head * blocks * DIM
    k_low += head * blocks * DIM
    v_scale += head * blocks * (UNIT * GROUPS)
    v_low += head * blocks * (UNIT * GROUPS)
    highest = tl.full((_ROWS,), _START, tl.float32)
    ones = tl.full((TOKENS, 8), 1.0, tl.float16)
    total = tl.zeros((_ROWS, 8), tl.float32)
    mixed = zeros(GROUPS * V_FIELDS, _ROWS, GROUP // V_FIELDS)
    lows, folds = zeros(GROUPS, _ROWS, 8), zeros(GROUPS, _ROWS, 8)
    first = split * groups_each
    last = tl.minimum(first + groups_each, (blocks + STREAMS - 1) // STREAMS)
    for group in tl.range(first, last, num_stages=1):
        own = group * STREAMS + stream
        is_here = is_row & (own < blocks)
        own = tl.minimum(own, blocks - 1)
        folded, constant = _folded(query, k_scale, k_low, own, DIM, K_BITS)
        constant = tl.where(is_here, constant * factor, _FAR)
        for piece in tl.range(0, UNIT // TOKENS, num_stages=STAGES):
            token = piece * TOKENS + tl.arange(0, TOKENS)
            here = group * STREAMS
            scores = _scores(folded, k_codes, here, blocks, token, stream, STREAMS, DIM, UNIT, K_BITS, ASSEMBLY)
            scores = scores * factor + constant[:, None]
            # The maximum is moved, and all sums scaled, only where weights would otherwise pass 2**4.
            found = tl.maximum(highest, tl.max(scores, 1))
            if tl.max(found - highest, 0) > 4.0:
                shrink, highest = tl.exp2(highest - found)[:, None], found
                total *= shrink
                lows = scaled(lows, shrink, GROUPS)
                folds = scaled(folds, shrink, GROUPS)
                mixed = scaled(mixed, shrink, GROUPS * V_FIELDS)
            # Up to 2**6, which makes better use of float16's range below 1; all sums share the factor.
            weights = tl.exp2(scores - (highest - 2.0)[:, None])
            total = tl.dot(weights.to(tl.float16), ones, total)
            scale_at = (own * UNIT + piece * TOKENS)[:, None] * GROUPS + tl.arange(0, TOKENS * GROUPS)[None, :]
            scale, low = tl.load(v_scale + scale_at), tl.load(v_low + scale_at)
            operands, lows, folds = _weighed(weights, scale, low, ones, lows, folds, TOKENS, GROUPS)
            mixed = _mixed(
                mixed, operands, v_codes, here, blocks, token, stream, STREAMS, DIM, UNIT, GROUP, V_BITS, ASSEMBLY
            )
    _store(highest, total, mixed, lows, folds, part, stats, head * (splits + 1) + split, PADDED, DIM, GROUP, V_BITS)


@triton.jit
@no_type_check
def _attend_dense(
    q, sink_k, sink_v, open_k, open_v, part, stats, head, splits, sinks, opened, factor,
    SHARED: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, V_BITS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """One program: sinks and open block of one key head, in their own 16 bits."""
    V_FIELDS: tl.constexpr = 16 // V_BITS
    WIDTH: tl.constexpr = GROUP // V_FIELDS
    STEP: tl.constexpr = 16
    row = tl.arange(0, _ROWS)
    channel = tl.arange(0, DIM)
    inside = channel % GROUP
    place = channel // GROUP * GROUP + inside % V_FIELDS * WIDTH + inside // V_FIELDS
    is_row = row < SHARED
    query = tl.load(q + (head * SHARED + row)[:, None] * DIM + channel[None, :], mask=is_row[:, None], other=0.0)
    query = query.to(open_k.dtype.element_ty)
    highest = tl.full((_ROWS,), _START, tl.float32)
    total = tl.zeros((_ROWS,), tl.float32)
    mixed = tl.zeros((_ROWS, DIM), tl.float32)
    for first in tl.range(0, sinks + opened, STEP, num_stages=1):
        token = first + tl.arange(0, STEP)
        is_sink = (token < sinks)[:, None]
        is_here = (token < sinks + opened)[:, None]
        sink_at = (head * sinks + token)[:, None] * DIM + channel[None, :]
        open_at = (head * opened + token - sinks)[:, None] * DIM + channel[None, :]
        k = tl.load(tl.where(is_sink, sink_k + sink_at, open_k + open_at), mask=is_here, other=0.0)
        v = tl.load(tl.where(is_sink, sink_v + sink_at, open_v + open_at), mask=is_here, other=0.0)
        if not ASSEMBLY:  # Triton's interpreter has no products in bfloat16
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(query.to(k.dtype), tl.trans(k)) * factor
        scores = tl.where((token < sinks + opened)[None, :], scores, _FAR)
        before = highest
        highest = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp2(before - highest)
        weights = tl.exp2(scores - (highest - 2.0)[:, None])
        total = total * shrink + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(v.dtype), v, mixed * shrink[:, None])
    at = (head * (splits + 1) + splits) * PADDED + row
    is_row = row < PADDED
    tl.store(stats + at * 2, highest, mask=is_row)
    tl.store(stats + at * 2 + 1, total, mask=is_row)
    tl.store(part + at[:, None] * DIM + place[None, :], mixed, mask=is_row[:, None])


# Lengths change at every step; a kernel compiled for one that divides by 16 would soon have to be compiled again.
@triton.jit(do_not_specialize=["splits", "blocks", "groups_each", "sinks", "opened"])
@no_type_check
def _decode(
    q, k_codes, k_scale, k_low, v_codes, v_scale, v_low, sink_k, sink_v, open_k, open_v, part, stats,
    splits, blocks, groups_each, sinks, opened, factor,
    SHARED: tl.constexpr, PADDED: tl.constexpr, STREAMS: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr,
    GROUP: tl.constexpr, K_BITS: tl.constexpr, V_BITS: tl.constexpr, ASSEMBLY: tl.constexpr, STAGES: tl.constexpr,
    TOKENS: tl.constexpr,
):  # fmt: skip
    """Program (head, split): a part of the codes, or, after the last split, what is held in 16 bits."""
    head = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    if split < splits:
        _attend_codes(
            q, k_codes, k_scale, k_low, v_codes, v_scale, v_low, part, stats,
            head, split, splits, blocks, groups_each, factor,
            SHARED, PADDED, STREAMS, DIM, UNIT, GROUP, K_BITS, V_BITS, ASSEMBLY, STAGES, TOKENS,
        )  # fmt: skip
    else:
        _attend_dense(
            q, sink_k, sink_v, open_k, open_v, part, stats, head, splits, sinks, opened, factor,
            SHARED, PADDED, DIM, GROUP, V_BITS, ASSEMBLY,
        )  # fmt: skip


@triton.jit(do_not_specialize=["splits"])
@no_type_check
def _combine(
    part, stats, out, splits,
    SHARED: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, V_BITS: tl.constexpr,
    STEP: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Program (head, member, part): join the splits of `CHANNELS` channels of a query head; put them back in order."""
    V_FIELDS: tl.constexpr = 16 // V_BITS
    WIDTH: tl.constexpr = GROUP // V_FIELDS
    head = tl.program_id(0).to(tl.int64)
    member = tl.program_id(1)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    highest = _START
    total = 0.0
    mixed = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, splits + 1, STEP):
        split = first + tl.arange(0, STEP)
        is_split = split <= splits
        at = (head * (splits + 1) + split) * PADDED + member
        found = tl.load(stats + at * 2, mask=is_split, other=_FAR)
        totals = tl.load(stats + at * 2 + 1, mask=is_split, other=0.0)
        values = tl.load(part + at[:, None] * DIM + channel[None, :], mask=is_split[:, None], other=0.0)
        before = highest
        highest = tl.maximum(highest, tl.max(found, 0))
        shrink = tl.exp2(before - highest)
        factors = tl.exp2(found - highest)
        total = total * shrink + tl.sum(totals * factors, 0)
        mixed = mixed * shrink + tl.sum(values * factors[:, None], 0)
    inside = channel % GROUP
    place = channel // GROUP * GROUP + inside % WIDTH * V_FIELDS + inside // WIDTH
    tl.store(out + (head * SHARED + member) * DIM + place, (mixed / total).to(out.dtype.element_ty))


def attend(
    q: Float[Tensor, "rows q_heads queries d"], blocks: Blocks, k_bits: int, v_bits: int, group: int, scale: float
) -> Float[Tensor, "rows q_heads queries d"] | None:
    """Attention of the newest token on `blocks`: keys coded per channel and block, values per token and `group`
    channels. None where the kernel cannot do it: several queries, unusual shapes, no codes yet."""
    if not suits(q, blocks, k_bits, v_bits, group):
        return None
    return launch(q, blocks, k_bits, v_bits, group, scale)


def suits(q: Tensor, blocks: Blocks, k_bits: int, v_bits: int, group: int) -> bool:
    """Whether the kernel can do this."""
    k, v, dim = blocks.k, blocks.v, q.shape[-1]
    if k.closed is None or v.closed is None or k.lengths != v.lengths:
        return False
    dense = (k.sinks, k.open, v.sinks, v.open, *(side.closed[name] for side in (k, v) for name in ("scale", "low")))
    return (
        q.shape[2] == 1
        and not (q.requires_grad and torch.is_grad_enabled())
        and q.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and all(tensor.dtype == k.open.dtype and tensor.dtype.itemsize == 2 for tensor in dense)
        and {k_bits, v_bits} <= {2, 4, 8}
        and dim in (64, 128, 256)
        and dim * k_bits // 16 >= 16
        and group * v_bits // 16 >= 8
        and dim // group in (1, 2, 4)
        and k.closed.unit in (32, 64, 128)
        and q.shape[1] // k.open.shape[1] <= 16
    )


def launch(
    q: Tensor, blocks: Blocks, k_bits: int, v_bits: int, group: int, scale: float,
    streams: int = 4, stages: int = 3, tokens: int = 16, per_sm: int = 8, registers: int | None = None,
    assembly: bool = True,
) -> Tensor:  # fmt: skip
    """`attend` without its checks; the rest of the arguments are for tuning."""
    rows, heads, _, dim = q.shape
    k, v = (side.each(Tensor.contiguous) for side in (blocks.k, blocks.v))
    kv_heads, units, unit = k.open.shape[1], k.closed["codes"].shape[2], k.closed.unit
    shared = heads // kv_heads
    padded = triton.next_power_of_2(shared)
    streams = min(streams, 16 // padded)
    tokens = min(tokens, unit)
    groups = -(-units // streams)
    slots = multiprocessors(q.device) * per_sm
    each = -(-groups // max(1, slots // (rows * kv_heads)))
    splits = -(-groups // each)
    part = torch.empty(rows * kv_heads, splits + 1, padded, dim, dtype=torch.float32, device=q.device)
    stats = torch.empty(rows * kv_heads, splits + 1, padded, 2, dtype=torch.float32, device=q.device)
    query = q.contiguous() if q.dtype.itemsize == 2 else q.to(k.open.dtype).contiguous()
    out = torch.empty_like(query)
    _decode[rows * kv_heads, splits + 1](
        query, k.closed["codes"].view(torch.int16), k.closed["scale"], k.closed["low"],
        v.closed["codes"].view(torch.int16), v.closed["scale"], v.closed["low"],
        k.sinks, v.sinks, k.open, v.open, part, stats,
        splits, units, each, k.sinks.shape[2], k.open.shape[2], scale * math.log2(math.e),
        SHARED=shared, PADDED=padded, STREAMS=streams, DIM=dim, UNIT=unit, GROUP=group, K_BITS=k_bits, V_BITS=v_bits,
        ASSEMBLY=assembly, STAGES=stages, TOKENS=tokens, num_warps=1, maxnreg=registers,
    )  # fmt: skip
    _combine[rows * kv_heads, shared, dim // 32](
        part, stats, out, splits, SHARED=shared, PADDED=padded, DIM=dim, GROUP=group, V_BITS=v_bits,
        STEP=min(128, triton.next_power_of_2(splits + 1)), CHANNELS=32, num_warps=4,
    )  # fmt: skip
    return out.to(q.dtype)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of the GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
