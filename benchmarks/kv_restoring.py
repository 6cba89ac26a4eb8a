# ruff: noqa: RUF005 -- Triton does not unpack tuples
"""The usual way on a GPU, as a peer of `thrifty.kv.kernels.decode`: decode attention that makes float16 keys and values
from the same codes in registers (KIVI, CacheGen), split over the sequence in the same way."""

import math

import torch
import triton
import triton.language as tl

from thrifty.kv.blocks import Blocks
from thrifty.kv.kernels import decode
from thrifty.kv.kernels.fields import by_field, offset_of, unpacked

TUNED = [{"per_sm": 8, "stages": 3, "warps": 1}, {"per_sm": 8, "stages": 2, "warps": 4}]


@triton.jit
def _scores(query, k_codes, k_scale, k_low, block, DIM: tl.constexpr, UNIT: tl.constexpr, BITS: tl.constexpr):
    FIELDS: tl.constexpr = 16 // BITS
    HALVES: tl.constexpr = DIM // FIELDS
    token, channel, half = tl.arange(0, UNIT), tl.arange(0, DIM), tl.arange(0, HALVES)
    at = block * DIM + channel[None, :]
    scale = by_field(tl.reshape(tl.load(k_scale + at).to(tl.float16), (1, HALVES, FIELDS)), FIELDS)
    low = by_field(tl.reshape(tl.load(k_low + at).to(tl.float16), (1, HALVES, FIELDS)), FIELDS)
    halves = tl.load(k_codes + (block * UNIT + token)[:, None] * HALVES + half[None, :])
    scores = tl.zeros((16, UNIT), tl.float32)
    for field in tl.static_range(FIELDS):
        codes = unpacked(halves, BITS, field, True) - tl.full((), offset_of(BITS, field), tl.float16)
        scores = tl.dot(query[field], tl.trans(codes * scale[field] + low[field]), scores)
    return scores


@triton.jit
def _mixed(
    mixed, weights, shrink, v_codes, v_scale, v_low, block,
    DIM: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    FIELDS: tl.constexpr = 16 // BITS
    GROUPS: tl.constexpr = DIM // GROUP
    WIDTH: tl.constexpr = GROUP // FIELDS
    token, width = tl.arange(0, UNIT), tl.arange(0, WIDTH)
    summed = ()
    for g in tl.static_range(GROUPS):
        at = (block * UNIT + token) * GROUPS + g
        scale = tl.load(v_scale + at).to(tl.float16)[:, None]
        low = tl.load(v_low + at).to(tl.float16)[:, None]
        halves = tl.load(v_codes + (block * UNIT + token)[:, None] * (DIM // FIELDS) + g * WIDTH + width[None, :])
        for field in tl.static_range(FIELDS):
            codes = unpacked(halves, BITS, field, True) - tl.full((), offset_of(BITS, field), tl.float16)
            old = mixed[g * FIELDS + field] * shrink[:, None]
            summed = summed + (tl.dot(weights, codes * scale + low, old),)
    return summed


@triton.jit(do_not_specialize=["splits", "slots", "blocks", "blocks_each", "sinks", "opened"])
def _restoring(
    q, k_codes, k_scale, k_low, v_codes, v_scale, v_low, sink_k, sink_v, open_k, open_v, part, stats,
    splits, slots, blocks, blocks_each, sinks, opened, factor,
    SHARED: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr,
    BITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    place = head * slots + split
    if split >= splits:
        decode._attend_dense(
            q, sink_k, sink_v, open_k, open_v, part, stats, head, place, (split - splits) * 16, sinks, opened, sinks,
            opened, factor, SHARED, PADDED, DIM, True,
        )  # fmt: skip
        return
    FIELDS: tl.constexpr = 16 // BITS
    HALVES: tl.constexpr = DIM // FIELDS
    WIDTH: tl.constexpr = GROUP // FIELDS
    row, channel = tl.arange(0, 16), tl.arange(0, DIM)
    query = tl.load(q + (head * SHARED + row)[:, None] * DIM + channel, mask=(row < SHARED)[:, None], other=0.0)
    query = by_field(tl.reshape(query.to(tl.float16), (16, HALVES, FIELDS)), FIELDS)
    highest, total = tl.full((16,), -1.0e20, tl.float32), tl.zeros((16,), tl.float32)
    mixed = ()
    for _ in tl.static_range(DIM // GROUP * FIELDS):
        mixed = mixed + (tl.zeros((16, WIDTH), tl.float32),)
    first = head * blocks + split * blocks_each
    last = head * blocks + tl.minimum(split * blocks_each + blocks_each, blocks)
    for block in tl.range(first, last, num_stages=STAGES):
        scores = _scores(query, k_codes, k_scale, k_low, block, DIM, UNIT, BITS) * factor
        before = highest
        highest = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp2(before - highest)
        weights = tl.exp2(scores - (highest - 2.0)[:, None])
        total = total * shrink + tl.sum(weights, 1)
        weights = weights.to(tl.float16)
        mixed = _mixed(mixed, weights, shrink, v_codes, v_scale, v_low, block, DIM, UNIT, GROUP, BITS)
    at = place * PADDED + row
    tl.store(stats + at * 2, highest, mask=row < PADDED)
    tl.store(stats + at * 2 + 1, total, mask=row < PADDED)
    for index in tl.static_range(DIM // GROUP * FIELDS):
        half = index // FIELDS * WIDTH + tl.arange(0, WIDTH)
        own = half * FIELDS + index % FIELDS
        tl.store(part + at[:, None] * DIM + own[None, :], mixed[index], mask=(row < PADDED)[:, None])


def attend(q: torch.Tensor, blocks: Blocks, bits: int, per_sm: int, stages: int, warps: int) -> torch.Tensor:
    """As `thrifty.kv.kernels.decode.attend`, keys and values restored on the way."""
    rows, heads, _, dim = q.shape
    k, v = blocks.k, blocks.v
    kv_heads, units = k.open.shape[1], k.closed["codes"].shape[2]
    each = -(-units // max(1, decode.multiprocessors(q.device) * per_sm // (rows * kv_heads)))
    splits, shared = -(-units // each), heads // kv_heads
    slots = splits + -(-(k.sinks.shape[2] + k.open.shape[2]) // 16)
    padded = triton.next_power_of_2(shared)
    part = torch.empty(rows * kv_heads, slots, padded, dim, device=q.device)
    stats = torch.empty(rows * kv_heads, slots, padded, 2, device=q.device)
    out = torch.empty_like(q)
    _restoring[rows * kv_heads, slots](
        q, k.closed["codes"].view(torch.int16), k.closed["scale"], k.closed["low"],
        v.closed["codes"].view(torch.int16), v.closed["scale"], v.closed["low"],
        k.sinks, v.sinks, k.open, v.open, part, stats,
        splits, slots, units, each, k.sinks.shape[2], k.open.shape[2], dim**-0.5 * math.log2(math.e),
        SHARED=shared, PADDED=padded, DIM=dim, UNIT=k.closed.unit, GROUP=64, BITS=bits, STAGES=stages,
        num_warps=warps,
    )  # fmt: skip
    decode._combine[rows * kv_heads, shared, dim // 32](
        part, stats, out, slots, SHARED=shared, PADDED=padded, DIM=dim,
        STEP=min(128, triton.next_power_of_2(slots)), CHANNELS=32, num_warps=4,
    )  # fmt: skip
    return out
