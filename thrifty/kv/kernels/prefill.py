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
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from thrifty.kv.blocks import Blocks
from thrifty.kv.kernels.codes import FAR, START
from thrifty.kv.kernels.fields import by_field, offset_of, unpacked

_WIDTH = tl.constexpr(16)  # the least that a product takes


@triton.jit
@no_type_check
def _whole(halves, field: tl.constexpr, BITS: tl.constexpr, ASSEMBLY: tl.constexpr):
    return unpacked(halves, BITS, field, ASSEMBLY) - tl.full((), offset_of(BITS, field), tl.float16)


@triton.jit
@no_type_check
def _in_order(halves, first: tl.constexpr, step: tl.constexpr, BITS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Fields first, first + step, ... of every half in their order: [tokens, halves * fields / step]."""
    FIELDS: tl.constexpr = 16 // BITS
    if step == FIELDS:
        return _whole(halves, first, BITS, ASSEMBLY)
    else:
        even = _in_order(halves, first, 2 * step, BITS, ASSEMBLY)
        odd = _in_order(halves, first + step, 2 * step, BITS, ASSEMBLY)
        return tl.reshape(tl.join(even, odd), (halves.shape[0], even.shape[1] * 2))


@triton.jit
@no_type_check
def _soften(scores, constant, highest):
    """(weights, the new maximum, by what earlier sums shrink); `constant` is a part of every score of a query."""
    found = tl.maximum(highest, tl.max(scores, 1) + constant)
    return tl.exp2(scores + (constant - found)[:, None]), found, tl.exp2(highest - found)


@triton.jit
@no_type_check
def _see_codes(
    query, sums, mixed, highest, k_codes, k_scale, k_low, v_codes, v_scale, v_low, blocks,
    DIM: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, K_BITS: tl.constexpr, V_BITS: tl.constexpr,
    ASSEMBLY: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The first `blocks` closed blocks. `sums` [queries, 16] are, by column, what the lows of each group of channels
    add, and after them the weights."""
    GROUPS: tl.constexpr = DIM // GROUP
    K_HALVES: tl.constexpr = DIM * K_BITS // 16
    V_HALVES: tl.constexpr = GROUP * V_BITS // 16
    token, channel, column = tl.arange(0, UNIT), tl.arange(0, DIM), tl.arange(0, _WIDTH)
    k_at = token[:, None] * K_HALVES + tl.arange(0, K_HALVES)[None, :]
    v_at = token[:, None] * (V_HALVES * GROUPS) + tl.arange(0, V_HALVES)[None, :]
    scale_at = token[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
    for block in tl.range(0, blocks, num_stages=STAGES):
        halves = tl.load(k_codes + block * (UNIT * K_HALVES) + k_at)
        scale = tl.load(k_scale + block * DIM + channel).to(tl.float16)
        low = tl.load(k_low + block * DIM + channel).to(tl.float16)
        codes = _in_order(halves, 0, 1, K_BITS, ASSEMBLY)
        constant = tl.dot(query, tl.broadcast_to(low[:, None], (DIM, _WIDTH)))
        scores = tl.dot(query * scale[None, :], tl.trans(codes))
        weights, highest, shrink = _soften(scores, tl.max(constant, 1), highest)
        scale = tl.load(v_scale + block * (UNIT * GROUPS) + scale_at).to(tl.float32)
        low = tl.load(v_low + block * (UNIT * GROUPS) + scale_at).to(tl.float16)
        scales = by_field(tl.reshape(scale, (1, UNIT, GROUPS)), GROUPS)
        lows = by_field(tl.reshape(low, (1, UNIT, GROUPS)), GROUPS)
        thin = tl.where((column == GROUPS)[:, None], 1.0, tl.zeros((_WIDTH, UNIT), tl.float16))
        for group in tl.static_range(GROUPS):
            thin = tl.where((column == group)[:, None], lows[group], thin)
        sums = tl.dot(weights.to(tl.float16), tl.trans(thin.to(tl.float16)), sums * shrink[:, None])
        joined = ()
        for group in tl.static_range(GROUPS):
            halves = tl.load(v_codes + block * (UNIT * V_HALVES * GROUPS) + group * V_HALVES + v_at)
            codes = _in_order(halves, 0, 1, V_BITS, ASSEMBLY)
            operand = (weights * scales[group]).to(tl.float16)
            joined = joined + (tl.dot(operand, codes, mixed[group] * shrink[:, None]),)
        mixed = joined
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
@triton.jit(do_not_specialize=["blocks", "start", "new", "base", "held", "sinks"])
@no_type_check
def _prefill(
    q, k_codes, k_scale, k_low, v_codes, v_scale, v_low, sink_k, sink_v, dense_k, dense_v, out,
    blocks, start, new, base, held, sinks, factor,
    SHARED: tl.constexpr, STACK: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr,
    K_BITS: tl.constexpr, V_BITS: tl.constexpr, ASSEMBLY: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program (tile, stack of query heads). Longest tiles first."""
    GROUPS: tl.constexpr = DIM // GROUP
    STACKS: tl.constexpr = SHARED // STACK
    ROWS: tl.constexpr = STACK * UNIT
    head = (tl.program_id(1) // STACKS).to(tl.int64)  # counted through all rows
    own = (start + new - 1 - sinks + UNIT) // UNIT - 1 - tl.program_id(0)
    row = tl.arange(0, ROWS)
    q_head = head * SHARED + tl.program_id(1) % STACKS * STACK + row // UNIT
    position = sinks + own * UNIT + row % UNIT
    is_query = (position >= start) & (position < start + new)
    q_at = (q_head * new + position - start)[:, None] * DIM + tl.arange(0, DIM)[None, :]
    query = tl.load(q + q_at, mask=is_query[:, None], other=0.0)
    small = (query.to(tl.float32) * factor).to(tl.float16)
    highest = tl.full((ROWS,), START, tl.float32)
    sums = tl.zeros((ROWS, _WIDTH), tl.float32)
    mixed = ()
    for _ in tl.static_range(GROUPS):
        mixed = mixed + (tl.zeros((ROWS, GROUP), tl.float32),)
    closed = tl.maximum(tl.minimum(own, blocks), 0)
    k_codes += head * blocks * (UNIT * DIM * K_BITS // 16)
    v_codes += head * blocks * (UNIT * DIM * V_BITS // 16)
    sums, mixed, highest = _see_codes(
        small, sums, mixed, highest, k_codes, k_scale + head * blocks * DIM, k_low + head * blocks * DIM, v_codes,
        v_scale + head * blocks * (UNIT * GROUPS), v_low + head * blocks * (UNIT * GROUPS), closed,
        DIM, UNIT, GROUP, K_BITS, V_BITS, ASSEMBLY, STAGES,
    )  # fmt: skip
    query = query.to(dense_k.dtype.element_ty)
    token = tl.arange(0, _WIDTH)
    for first in tl.range(0, sinks, _WIDTH, num_stages=1):
        is_seen = (first + token < sinks)[None, :] & (first + token[None, :] <= position[:, None])
        sums, mixed, highest = _see_dense(
            query, sums, mixed, highest, sink_k + head * sinks * DIM, sink_v + head * sinks * DIM, first + token,
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


def attend(
    q: Float[Tensor, "rows q_heads new d"], blocks: Blocks, tokens: int, k_bits: int, v_bits: int,
    group: int, scale: float, stack: int = 1, warps: int = 4, stages: int = 3,
    assembly: bool = True,
) -> Float[Tensor, "rows q_heads new d"]:  # fmt: skip
    """Causal attention of the newest `new` of `tokens` tokens. A query sees the closed blocks before its own as codes,
    and what comes after them in 16 bits: the open block of `blocks` holds as many of the last tokens as are needed for
    that, so closed ones too where a query comes before they closed."""
    rows, heads, new, dim = q.shape
    k, v = (side.each(Tensor.contiguous) for side in (blocks.k, blocks.v))
    assert k.closed is not None
    assert v.closed is not None
    kv_heads, unit, sinks, held = k.open.shape[1], k.closed.unit, k.sinks.shape[2], k.open.shape[2]
    shared, start = heads // kv_heads, tokens - new
    stack = math.gcd(stack, shared)
    tiles = (tokens - 1 - sinks) // unit - (start - sinks) // unit + 1
    query = q.contiguous()
    out = torch.empty_like(query)
    _prefill[tiles, rows * heads // stack](
        query, k.closed["codes"].view(torch.int16), k.closed["scale"], k.closed["low"],
        v.closed["codes"].view(torch.int16), v.closed["scale"], v.closed["low"],
        k.sinks, v.sinks, k.open, v.open, out,
        k.closed["codes"].shape[2], start, new, tokens - held, held, sinks,
        scale * math.log2(math.e),
        SHARED=shared, STACK=stack, DIM=dim, UNIT=unit, GROUP=group, K_BITS=k_bits, V_BITS=v_bits, ASSEMBLY=assembly,
        STAGES=stages, num_warps=warps,
    )  # fmt: skip
    return out
