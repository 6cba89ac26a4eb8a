# ruff: noqa: ANN001, ANN202, RUF005 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""Attention of many new tokens on packed codes in Triton (layout atc of `thrifty.kv.codecs.hack`), queries and weights
not quantised.

A tile of queries is one block of tokens, so the closed blocks before it are seen whole and need no mask; its own block
is seen in 16 bits. `STACK` query heads of a key head share a tile. For each closed block the query takes the scales of
keys, the weights those of values, and the codes enter the tensor cores as whole numbers in float16; what the lows add
comes from two thin products. Otherwise this is FlashAttention-2 (Dao, 2023).
"""

import math
from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from thrifty.kv.blocks import Blocks
from thrifty.kv.kernels.codes import FAR, START
from thrifty.kv.kernels.fields import scaled, zeros

_WIDTH = tl.constexpr(16)  # the least that a product takes


@triton.jit
@no_type_check
def _whole(codes, source, at, is_here, DIM: tl.constexpr, UNIT: tl.constexpr, BITS: tl.constexpr):
    """Codes `at` of a block as whole numbers in float16."""
    byte = tl.load(codes + source * (UNIT * DIM * BITS // 8) + at * BITS // 8, mask=is_here, other=0).to(tl.int32)
    return ((byte >> (at * BITS % 8)) & ((1 << BITS) - 1)).to(tl.float16)


@triton.jit(do_not_specialize=["blocks", "slots", "head"])
@no_type_check
def _unpack(
    k_codes, k_scale, v_codes, v_scale, v_low, k, k_scales, v, v_scales, thin, k_low, k_lows, blocks, slots, head,
    DIM: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, K_BITS: tl.constexpr, V_BITS: tl.constexpr,
):  # fmt: skip
    """Program (slot, head of those in the workspace): a block's codes, the scales of its values by group, and a thin
    operand: the lows of each group of channels, then ones. Slots without a block become zeros."""
    GROUPS: tl.constexpr = DIM // GROUP
    block = tl.program_id(0)
    slot = (tl.program_id(1) * slots + block).to(tl.int64)
    source = ((head + tl.program_id(1)) * blocks + block).to(tl.int64)
    is_here = block < blocks
    token, channel, column = tl.arange(0, UNIT), tl.arange(0, DIM), tl.arange(0, _WIDTH)
    at = token[:, None] * DIM + channel[None, :]
    scale = tl.load(k_scale + source * DIM + channel, mask=is_here, other=0.0)
    tl.store(k_scales + slot * DIM + channel, scale.to(tl.float16))
    low = tl.load(k_low + source * DIM + channel, mask=is_here, other=0.0)
    tl.store(k_lows + slot * DIM + channel, low.to(tl.float16))
    tl.store(k + slot * (UNIT * DIM) + at, _whole(k_codes, source, at, is_here, DIM, UNIT, K_BITS))
    tl.store(v + slot * (UNIT * DIM) + at, _whole(v_codes, source, at, is_here, DIM, UNIT, V_BITS))
    source *= UNIT * GROUPS
    for group in tl.static_range(GROUPS):
        scale = tl.load(v_scale + source + token * GROUPS + group, mask=is_here, other=0.0)
        tl.store(v_scales + (slot * GROUPS + group) * UNIT + token, scale.to(tl.float16))
    low = v_low + source + token[:, None] * GROUPS + column[None, :]
    low = tl.load(low, mask=(column < GROUPS)[None, :] & is_here, other=0.0).to(tl.float16)
    low = tl.where((column == GROUPS)[None, :], 1.0, low).to(tl.float16)
    tl.store(thin + slot * (UNIT * _WIDTH) + token[:, None] * _WIDTH + column[None, :], low)


@triton.jit
@no_type_check
def _soften(scores, constant, highest):
    """(weights, the new maximum, by what earlier sums shrink); `constant` is a part of every score of a query."""
    found = tl.maximum(highest, tl.max(scores, 1) + constant)
    return tl.exp2(scores + (constant - found)[:, None]), found, tl.exp2(highest - found)


@triton.jit
@no_type_check
def _rows_of(x, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr):
    """[ROWS, COLUMNS] from a row and column on of a matrix with `WIDTH` columns, or of its descriptor."""
    if TMA:
        return x.load([row, column])
    else:
        return tl.load(
            x + row.to(tl.int64) * WIDTH + tl.arange(0, ROWS)[:, None] * WIDTH + column + tl.arange(0, COLUMNS)[None, :]
        )


@triton.jit
@no_type_check
def _row_of(x, row, COLUMNS: tl.constexpr, TMA: tl.constexpr):
    """Row of a matrix with `COLUMNS` columns, or of its descriptor."""
    if TMA:
        return tl.reshape(x.load([row, 0]), (COLUMNS,))
    else:
        return tl.load(x + row.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS))


@triton.jit
@no_type_check
def _see_codes(
    query, sums, mixed, highest, k, k_scales, k_low, v, v_scales, thin, blocks, place,
    DIM: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr,
    LAZY: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The first `blocks` closed blocks, `WIDE` at a time, of the head whose first block in the workspace is `place`.
    `sums` [queries, 16] are, by column, what the lows of each group of channels add, and after them the weights."""
    GROUPS: tl.constexpr = DIM // GROUP
    channel, column = tl.arange(0, DIM), tl.arange(0, _WIDTH)
    constants = tl.zeros((query.shape[0], _WIDTH), tl.float32)
    for first in tl.range(0, blocks, WIDE, num_stages=STAGES):
        # What the lows of keys add, the same for all tokens of a block: sixteen blocks at once.
        if first % 16 == 0:
            block = first + column
            low = tl.load(k_low + block[:, None] * DIM + channel[None, :], mask=(block < blocks)[:, None], other=0.0)
            constants = tl.dot(query, tl.trans(low.to(tl.float16)))
        found, scores, added = highest, (), ()
        for index in tl.static_range(WIDE):
            block = place + first + index
            codes = _rows_of(k, block * UNIT, 0, UNIT, DIM, DIM, TMA)
            scale = _row_of(k_scales, block, DIM, TMA)
            scores = scores + (tl.dot(query * scale[None, :], tl.trans(codes)),)
        for index in tl.static_range(WIDE):
            constant = tl.sum(tl.where((column == first % 16 + index)[None, :], constants, 0.0), 1)
            if WIDE > 1:
                constant = tl.where(first + index < blocks, constant, FAR)
            added = added + (constant,)
            found = tl.maximum(found, tl.max(scores[index], 1) + constant)
        if LAZY:
            if tl.max(found - highest, 0) > 6.0:
                shrink, highest = tl.exp2(highest - found), found
                sums *= shrink[:, None]
                mixed = scaled(mixed, shrink[:, None], GROUPS)
        else:
            shrink, highest = tl.exp2(highest - found), found
            sums *= shrink[:, None]
            mixed = scaled(mixed, shrink[:, None], GROUPS)
        for index in tl.static_range(WIDE):
            block = place + first + index
            weights = tl.exp2(scores[index] + (added[index] - highest)[:, None]).to(tl.float16)
            joined = ()
            for group in tl.static_range(GROUPS):
                codes = _rows_of(v, block * UNIT, group * GROUP, UNIT, GROUP, DIM, TMA)
                scale = _row_of(v_scales, block * GROUPS + group, UNIT, TMA)
                joined = joined + (tl.dot(weights * scale[None, :], codes, mixed[group]),)
            mixed = joined
            sums = tl.dot(weights, _rows_of(thin, block * UNIT, 0, UNIT, _WIDTH, _WIDTH, TMA), sums)
    return sums, mixed, highest


@triton.jit
@no_type_check
def _see_dense(
    query, sums, mixed, highest, k, v, index, is_seen, factor,
    DIM: tl.constexpr, GROUP: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """Tokens `index` of `k` and `v`, which are in 16 bits, where `is_seen` [queries, tokens]."""
    GROUPS: tl.constexpr = DIM // GROUP
    column = tl.arange(0, _WIDTH)
    is_here = tl.max(is_seen.to(tl.int32), 0) > 0
    at = index[:, None] * DIM + tl.arange(0, DIM)[None, :]
    keys = tl.load(k + at, mask=is_here[:, None], other=0.0)
    if not ASSEMBLY:  # Triton's interpreter has no products in bfloat16
        keys = keys.to(tl.float32)
    scores = tl.dot(query.to(keys.dtype), tl.trans(keys)) * factor
    weights, highest, shrink = _soften(tl.where(is_seen, scores, FAR), 0.0, highest)
    total = tl.where((column == GROUPS)[None, :], tl.sum(weights, 1)[:, None], 0.0)
    sums = sums * shrink[:, None] + total
    joined = ()
    for group in tl.static_range(GROUPS):
        at = index[:, None] * DIM + group * GROUP + tl.arange(0, GROUP)[None, :]
        values = tl.load(v + at, mask=is_here[:, None], other=0.0)
        if not ASSEMBLY:
            values = values.to(tl.float32)
        joined = joined + (tl.dot(weights.to(values.dtype), values, mixed[group] * shrink[:, None]),)
    return sums, joined, highest


# Lengths change from call to call; a kernel compiled for one that divides by 16 would soon have to be compiled again.
@triton.jit(do_not_specialize=["blocks", "slots", "tiles", "first", "start", "new", "base", "held", "sinks"])
@no_type_check
def _prefill(
    q, k, k_scales, k_low, v, v_scales, thin, sink_k, sink_v, dense_k, dense_v, out, seen,
    blocks, slots, tiles, first, start, new, base, held, sinks, factor,
    SHARED: tl.constexpr, STACK: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr,
    ASSEMBLY: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr, LAZY: tl.constexpr,
    TURN: tl.constexpr, TMA: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Program (head, tile, stack of query heads), the stacks of a tile side by side, longest tiles first, so that what
    runs at a time reads the same keys."""
    GROUPS: tl.constexpr = DIM // GROUP
    STACKS: tl.constexpr = SHARED // STACK
    ROWS: tl.constexpr = STACK * UNIT
    program = tl.program_id(0)
    slot = program // (STACKS * tiles)
    head = (first + slot).to(tl.int64)  # counted through all rows
    own = (start + new - 1 - sinks + UNIT) // UNIT - 1 - program // STACKS % tiles
    row = tl.arange(0, ROWS)
    q_head = head * SHARED + program % STACKS * STACK + row // UNIT
    position = sinks + own * UNIT + row % UNIT
    is_query = (position >= start) & (position < start + new)
    q_at = (q_head * new + position - start)[:, None] * DIM + tl.arange(0, DIM)[None, :]
    mixed = zeros(GROUPS, ROWS, GROUP)
    sums = tl.zeros((ROWS, _WIDTH), tl.float32)
    closed = tl.maximum(tl.minimum(own, blocks), 0)
    if APART:
        highest = tl.load(seen + q_head * new + position - start, mask=is_query, other=START)
        sums += tl.where((tl.arange(0, _WIDTH) == GROUPS)[None, :], 1.0, 0.0)
        joined = ()
        for group in tl.static_range(GROUPS):
            at = (q_head * new + position - start)[:, None] * DIM + group * GROUP + tl.arange(0, GROUP)[None, :]
            joined = joined + (mixed[group] + tl.load(out + at, mask=is_query[:, None], other=0.0).to(tl.float32),)
        mixed = joined
    else:
        highest = tl.full((ROWS,), START, tl.float32)
        query = tl.load(q + q_at, mask=is_query[:, None], other=0.0)
        small = (query.to(tl.float32) * factor).to(tl.float16)
        if TURN:
            channel = tl.arange(0, DIM)
            small = tl.dot(small, (channel[:, None] == channel[None, :]).to(tl.float16)).to(tl.float16)
        sums, mixed, highest = _see_codes(
            small, sums, mixed, highest, k, k_scales, k_low + head * blocks * DIM, v, v_scales, thin, closed,
            slot * slots, DIM, UNIT, GROUP, STAGES, WIDE, LAZY, TMA,
        )  # fmt: skip
    query = tl.load(q + q_at, mask=is_query[:, None], other=0.0).to(dense_k.dtype.element_ty)
    token = tl.arange(0, _WIDTH)
    for seen in tl.range(0, sinks, _WIDTH, num_stages=1):
        is_seen = (seen + token < sinks)[None, :] & (seen + token[None, :] <= position[:, None])
        sums, mixed, highest = _see_dense(
            query, sums, mixed, highest, sink_k + head * sinks * DIM, sink_v + head * sinks * DIM, seen + token,
            is_seen, factor, DIM, GROUP, ASSEMBLY,
        )  # fmt: skip
    for block in tl.range(closed, own + 1, num_stages=1):
        index = sinks + block * UNIT - base + tl.arange(0, UNIT)
        is_seen = ((index >= 0) & (index < held))[None, :] & ((base + index)[None, :] <= position[:, None])
        sums, mixed, highest = _see_dense(
            query, sums, mixed, highest, dense_k + head * held * DIM, dense_v + head * held * DIM, index, is_seen,
            factor, DIM, GROUP, ASSEMBLY,
        )  # fmt: skip
    column = tl.arange(0, _WIDTH)[None, :]
    total = tl.sum(tl.where(column == GROUPS, sums, 0.0), 1)
    for group in tl.static_range(GROUPS):
        value = (mixed[group] + tl.sum(tl.where(column == group, sums, 0.0), 1)[:, None]) / total[:, None]
        at = (q_head * new + position - start)[:, None] * DIM + group * GROUP + tl.arange(0, GROUP)[None, :]
        tl.store(out + at, value.to(out.dtype.element_ty), mask=is_query[:, None])


def _apart(query, room, lows, out, seen, units, slots, tiles, first, start, new, sinks, scale, count, shared,
           dim, unit, group, stages, ahead):
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as Described

    from thrifty.kv.kernels import apart

    k, k_scales, v, v_scales, thin = room
    read = [
        Described.from_tensor(x, list(shape), gl.NVMMASharedLayout.get_default_for(list(shape), gl.float16))
        for x, shape in ((k, (unit, dim)), (k_scales, (1, dim)), (lows, (8, dim)), (v, (unit, group)),
                         (v_scales, (1, unit)), (thin, (unit, 16)))
    ]
    apart.see_codes[(count * tiles * shared // 2,)](
        query, *read, out, seen, units, slots, tiles, first, start, new, sinks, scale * math.log2(math.e),
        SHARED=shared, DIM=dim, UNIT=unit, GROUP=group, STAGES=stages, AHEAD=ahead, num_warps=4,
    )


@dataclass(frozen=True)
class Tuning:
    """How the kernel runs: query heads that share a tile, warps, stages of the pipeline, blocks at a time, whether
    what the lows of keys add is found for sixteen blocks at once, whether sums are scaled only where the maximum grew
    much, and whether products run on a GPU."""

    stack: int = 2
    warps: int = 8
    stages: int = 2
    wide: int = 1
    lazy: bool = False
    turn: bool = True
    tma: bool = True
    apart: bool = False
    ahead: bool = False
    assembly: bool = True


_USUAL = Tuning()
WORKSPACE = 256 * 2**20


def attend(
    q: Float[Tensor, "rows q_heads new d"], blocks: Blocks, tokens: int, k_bits: int, v_bits: int,
    group: int, scale: float, tuning: Tuning = _USUAL, workspace: int = WORKSPACE,
) -> Float[Tensor, "rows q_heads new d"]:  # fmt: skip
    """Causal attention of the newest `new` of `tokens` tokens. A query sees the closed blocks before its own as codes,
    and what comes after them in 16 bits: the open block of `blocks` holds as many of the last tokens as are needed for
    that, so closed ones too where a query comes before they closed.

    Takes up to `workspace` bytes for unpacked codes, and at least what one key head needs, 4 d + 40 bytes a token or
    so: heads are treated in as many turns as that asks for."""
    rows, heads, new, dim = q.shape
    k, v = (side.each(Tensor.contiguous) for side in (blocks.k, blocks.v))
    assert k.closed is not None
    assert v.closed is not None
    kv_heads, unit, sinks, held = k.open.shape[1], k.closed.unit, k.sinks.shape[2], k.open.shape[2]
    units, groups = k.closed["codes"].shape[2], dim // group
    shared, start = heads // kv_heads, tokens - new
    stack = math.gcd(tuning.stack, shared)
    tiles = (tokens - 1 - sinks) // unit - (start - sinks) // unit + 1
    query = q.contiguous()
    out = torch.empty_like(query)
    slots = -(-units // tuning.wide) * tuning.wide
    each = max(1, min(rows * kv_heads, workspace // (2 * slots * (unit * (2 * dim + groups + 16) + dim))))
    sizes = ((unit, dim), (1, dim), (unit, dim), (groups, unit), (unit, 16))
    room = [torch.empty(each * slots * n, m, dtype=torch.float16, device=q.device) for n, m in sizes]
    lows = torch.zeros(each * slots + 8, dim, dtype=torch.float16, device=q.device)
    seen = torch.empty(rows, heads, new, dtype=torch.float32, device=q.device) if tuning.apart else None
    read = room
    if tuning.tma:
        shapes = ((unit, dim), (1, dim), (unit, group), (1, unit), (unit, 16))
        read = [TensorDescriptor.from_tensor(x, list(shape)) for x, shape in zip(room, shapes, strict=True)]
    for first in range(0, rows * kv_heads, each):
        count = min(each, rows * kv_heads - first)
        _unpack[slots, count](
            k.closed["codes"], k.closed["scale"], v.closed["codes"], v.closed["scale"], v.closed["low"],
            *room, k.closed["low"], lows, units, slots, first, DIM=dim, UNIT=unit, GROUP=group, K_BITS=k_bits, V_BITS=v_bits,
        )  # fmt: skip
        if tuning.apart:
            _apart(query, room, lows, out, seen, units, slots, tiles, first, start, new, sinks, scale, count, shared,
                   dim, unit, group, tuning.stages, tuning.ahead)
        _prefill[(count * tiles * shared // stack,)](
            query, read[0], read[1], k.closed["low"], *read[2:],
            k.sinks, v.sinks, k.open, v.open, out, seen,
            units, slots, tiles, first, start, new, tokens - held, held, sinks, scale * math.log2(math.e),
            SHARED=shared, STACK=stack, DIM=dim, UNIT=unit, GROUP=group, ASSEMBLY=tuning.assembly,
            STAGES=tuning.stages, WIDE=tuning.wide, LAZY=tuning.lazy, TURN=tuning.turn, TMA=tuning.tma, APART=tuning.apart, num_warps=tuning.warps,
        )  # fmt: skip
    return out
