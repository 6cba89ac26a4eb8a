# ruff: noqa: ANN001, ANN202, RUF005 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""Attention of many new tokens on codes in Triton (layout atc of `thrifty.kv.codecs.hack`), queries and weights not
quantised.

First `thrifty.kv.kernels.whole` unpacks the codes, as whole numbers, once for all queries. A tile of queries is one
block of tokens, so the closed blocks before it are seen whole and need no mask; its own block is seen in 16 bits. For
each closed block the query takes the scales of keys, the weights those of values, and the codes enter the tensor cores
as they are; what the lows add comes from two thin products. Otherwise this is FlashAttention-2 (Dao, 2023).

Products in 8 bits would be twice as fast, but each block has scales of its own: the query, or the weights, would have
to be quantised again for every block, and the sums of every block scaled. By count (not measured) that takes longer.
"""

import math
from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from thrifty.kv.blocks import Blocks
from thrifty.kv.kernels.codes import FAR, START
from thrifty.kv.kernels.fields import zeros
from thrifty.kv.kernels.shapes import on
from thrifty.kv.kernels.whole import WIDTH, Whole

_WIDTH = tl.constexpr(WIDTH)


@triton.jit
@no_type_check
def _soften(scores, constant, highest):
    """(weights, the new maximum, by what earlier sums shrink); `constant` is a part of every score of a query."""
    found = tl.maximum(highest, tl.max(scores, 1) + constant)
    return tl.exp2(scores + (constant - found)[:, None]), found, tl.exp2(highest - found)


@triton.jit
@no_type_check
def _row_of(x, row, COLUMNS: tl.constexpr):
    return tl.reshape(x.load([row, 0]), (COLUMNS,))


@triton.jit
@no_type_check
def _see_codes(
    query, sums, mixed, highest, k, k_scales, k_low, v, v_scales, thin, blocks, place,
    DIM: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The first `blocks` closed blocks of the key head whose first block in the workspace is `place`. `sums`
    [queries, 16] are, by column, what the lows of each group of channels add, and after them the weights."""
    GROUPS: tl.constexpr = DIM // GROUP
    channel, column = tl.arange(0, DIM), tl.arange(0, _WIDTH)
    constants = tl.zeros((query.shape[0], _WIDTH), tl.float32)
    for block in tl.range(0, blocks, num_stages=STAGES):
        # What the lows of keys add is the same for all tokens of a block, and found for sixteen blocks at once.
        if block % 16 == 0:
            row = block + column
            low = tl.load(k_low + row[:, None] * DIM + channel[None, :], mask=(row < blocks)[:, None], other=0.0)
            constants = tl.dot(query, tl.trans(low.to(tl.float16)))
        at = place + block
        scale = _row_of(k_scales, at, DIM)
        scores = tl.dot(query * scale[None, :], tl.trans(k.load([at * UNIT, 0])))
        constant = tl.sum(tl.where((column == block % 16)[None, :], constants, 0.0), 1)
        weights, highest, shrink = _soften(scores, constant, highest)
        weights = weights.to(tl.float16)
        joined = ()
        for group in tl.static_range(GROUPS):
            scale = _row_of(v_scales, at * GROUPS + group, UNIT)
            codes = v.load([at * UNIT, group * GROUP])
            joined = joined + (tl.dot(weights * scale[None, :], codes, mixed[group] * shrink[:, None]),)
        mixed = joined
        sums = tl.dot(weights, thin.load([at * UNIT, 0]), sums * shrink[:, None])
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
@triton.jit(do_not_specialize=["blocks", "tiles", "first", "start", "new", "base", "held", "sinks"])
@no_type_check
def _prefill(
    q, k, k_scales, k_low, v, v_scales, thin, sink_k, sink_v, dense_k, dense_v, out,
    blocks, tiles, first, start, new, base, held, sinks, factor,
    SHARED: tl.constexpr, STACK: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr,
    ASSEMBLY: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program (key head of those in the workspace, tile, stack of query heads), longest tiles first; those that run at
    a time read the same keys."""
    GROUPS: tl.constexpr = DIM // GROUP
    STACKS: tl.constexpr = SHARED // STACK
    ROWS: tl.constexpr = STACK * UNIT
    program = tl.program_id(0)
    slot = program // (STACKS * tiles)
    head = (first + slot).to(tl.int64)  # counted through all rows
    own = (start + new - 1 - sinks + UNIT) // UNIT - 1 - program // STACKS % tiles
    row, channel = tl.arange(0, ROWS), tl.arange(0, DIM)
    q_head = head * SHARED + program % STACKS * STACK + row // UNIT
    position = sinks + own * UNIT + row % UNIT
    is_query = (position >= start) & (position < start + new)
    q_at = (q_head * new + position - start)[:, None] * DIM + channel[None, :]
    query = tl.load(q + q_at, mask=is_query[:, None], other=0.0)
    # A product with ones on the diagonal changes nothing but which registers hold what: those from which the tensor
    # cores take a query once it is scaled. Without it each block would send the scaled query through shared memory.
    query = (query.to(tl.float32) * factor).to(tl.float16)
    query = tl.dot(query, (channel[:, None] == channel[None, :]).to(tl.float16)).to(tl.float16)
    highest = tl.full((ROWS,), START, tl.float32)
    sums = tl.zeros((ROWS, _WIDTH), tl.float32)
    mixed = zeros(GROUPS, ROWS, GROUP)
    closed = tl.maximum(tl.minimum(own, blocks), 0)
    sums, mixed, highest = _see_codes(
        query, sums, mixed, highest, k, k_scales, k_low + head * blocks * DIM, v, v_scales, thin, closed,
        slot * blocks, DIM, UNIT, GROUP, STAGES,
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
    _store(out, sums, mixed, (q_head * new + position - start)[:, None] * DIM, is_query[:, None], GROUPS, GROUP)


@triton.jit
@no_type_check
def _store(out, sums, mixed, at, is_query, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    column = tl.arange(0, _WIDTH)[None, :]
    total = tl.sum(tl.where(column == GROUPS, sums, 0.0), 1)
    for group in tl.static_range(GROUPS):
        value = (mixed[group] + tl.sum(tl.where(column == group, sums, 0.0), 1)[:, None]) / total[:, None]
        place = out + at + group * GROUP + tl.arange(0, GROUP)[None, :]
        tl.store(place, value.to(out.dtype.element_ty), mask=is_query)


@dataclass(frozen=True)
class Tuning:
    """How the kernel runs: queries in a tile (one block of tokens, of as many query heads as that takes), warps for
    each 64 of them, stages of the pipeline, bytes for unpacked codes, and whether products are those of a GPU, which
    Triton's interpreter is not.

    Measured on an H100, 32k tokens, 32 query and 8 key heads of 128 channels (torch 2.11, Triton 3.6; FlashAttention-2
    365 TFLOP/s, cuDNN 666): four warps and 64 queries 370 TFLOP/s; eight and 128 290, 338 with two blocks of keys at a
    time; pointers in place of descriptors 287; scaling sums only where the maximum grew much 346; Gluon, two groups of
    warps that work apart, 352."""

    queries: int = 64
    warps: int = 4
    stages: int = 2
    workspace: int = 256 * 2**20
    assembly: bool = True


_USUAL = Tuning()


def attend(
    q: Float[Tensor, "rows q_heads new d"], blocks: Blocks, tokens: int, k_bits: int, v_bits: int,
    group: int, scale: float, tuning: Tuning = _USUAL,
) -> Float[Tensor, "rows q_heads new d"]:  # fmt: skip
    """Causal attention of the newest `new` of `tokens` tokens. A query sees the closed blocks before its own as codes,
    and what comes after them in 16 bits: the open block of `blocks` holds as many of the last tokens as are needed for
    that, so closed ones too where a query comes before they closed.

    Key heads are treated in as many turns as the workspace asks for, at least one at a time: about 4 d + 36 bytes for
    each token of a head, 143 MB for 8 heads of 128 channels and 32k tokens."""
    rows, heads, new, dim = q.shape
    k, v = (side.each(Tensor.contiguous) for side in (blocks.k, blocks.v))
    assert k.closed is not None
    assert v.closed is not None
    kv_heads, unit, sinks, held = k.open.shape[1], k.closed.unit, k.sinks.shape[2], k.open.shape[2]
    units, groups = k.closed["codes"].shape[2], dim // group
    shared, start = heads // kv_heads, tokens - new
    stack = math.gcd(max(1, tuning.queries // unit), shared)
    tiles = (tokens - 1 - sinks) // unit - (start - sinks) // unit + 1
    query = q.contiguous()
    out = torch.empty_like(query)
    fitting = tuning.workspace // (units * Whole.bytes_per_block(dim, unit, groups))
    each = max(1, min(rows * kv_heads, fitting))
    whole = Whole.empty(each * units, dim, unit, groups, q.device)
    read_k, k_scales, *read_v = whole.described(unit, group)
    with on(q.device):
        for first in range(0, rows * kv_heads, each):
            count = min(each, rows * kv_heads - first)
            whole.fill(k.closed, v.closed, first, count, k_bits, v_bits, group)
            _prefill[(count * tiles * shared // stack,)](
                query, read_k, k_scales, k.closed["low"], *read_v, k.sinks, v.sinks, k.open, v.open, out,
                units, tiles, first, start, new, tokens - held, held, sinks, scale * math.log2(math.e),
                SHARED=shared, STACK=stack, DIM=dim, UNIT=unit, GROUP=group, ASSEMBLY=tuning.assembly,
                STAGES=tuning.stages, num_warps=tuning.warps * max(1, stack * unit // 64),
            )  # fmt: skip
    return out
