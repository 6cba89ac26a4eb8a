# ruff: noqa: ANN001, ANN202, SIM108 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""Decode attention on packed codes in Triton: one new token per row, keys coded per channel and block, values per
token and channel group (layout atc of `thrifty.kv.codecs.hack`).

    S = (q scale_k) k' + q low_k        O = sum_j (p_j scale_v) v'_j + p_j low_v

Neither keys nor values are restored, in memory or in registers. One shift and one `lop3` turn a 32-bit word of codes
into two float16 numbers `offset + code` which enter the tensor cores as they are: the field's bits are laid into
the mantissa, and the offset is taken off through the sums of the other operand. `thrifty.kv.kernels.codes` has the
products. The sequence is split over programs (flash-decoding, Dao et al., 2023); sinks and open block are programs of
their own, sixteen tokens each; `_combine` joins them all. Where codes are in rotated channels, those programs take the
query as it was, and what they mix is kept apart until the rest is turned back: no token is turned at a step.

Blocks of codes are found by number, or through a table of pages: rows may then have any lengths, and the lengths are
read on the GPU, so that one captured graph serves a cache that grows.
"""

import functools
import math
from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from thrifty.kv.blocks import Blocks
from thrifty.kv.kernels.codes import (
    FAR,
    LIFT,
    SHRINK,
    START,
    by_column,
    by_eight,
    mixed_with,
    place_of,
    query_of,
    scores_of,
)
from thrifty.kv.kernels.fields import scaled, zeros
from thrifty.kv.kernels.shapes import on
from thrifty.kv.pages import Pages
from thrifty.kv.rotation import rotate_at_once, rotate_onto


@triton.jit
@no_type_check
def _store(
    highest, total, lows, mixed, part, stats, place,
    PADDED: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Store what a program found: each column its own group of channels."""
    HALVES: tl.constexpr = DIM * BITS // 16
    ROWS: tl.constexpr = max(HALVES, 16)
    column = tl.arange(0, COLUMNS)
    member, group = column % PADDED, column // PADDED
    at = place * PADDED + member
    tl.store(stats + at * 2, highest, mask=group == 0)
    tl.store(stats + at * 2 + 1, tl.sum(total, 0), mask=group == 0)
    lows = tl.sum(lows, 0)
    for index in tl.static_range(DIM // ROWS):
        channel, _ = place_of(tl.arange(0, ROWS), index, HALVES, BITS)
        value = mixed[index] + lows[None, :]
        is_own = (channel // GROUP)[:, None] == group[None, :]
        tl.store(part + at[None, :] * DIM + channel[:, None], value, mask=is_own)


@triton.jit
@no_type_check
def _attend_codes(
    q, k_codes, k_scale, k_low, v_codes, v_scale, v_low, table, part, stats,
    head, row, kv_head, split, slots, first, last, head_step, page_step, table_step, factor,
    SHARED: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr,
    GROUP: tl.constexpr, K_BITS: tl.constexpr, V_BITS: tl.constexpr, PAGED: tl.constexpr, ASSEMBLY: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One program: blocks `first` to `last` of one key head."""
    GROUPS: tl.constexpr = DIM // GROUP
    K_HALVES: tl.constexpr = DIM * K_BITS // 16
    V_HALVES: tl.constexpr = DIM * V_BITS // 16
    V_ROWS: tl.constexpr = max(V_HALVES, 16)
    token = tl.arange(0, UNIT)
    channel = tl.arange(0, DIM)
    k_at = token[:, None] * K_HALVES + tl.arange(0, K_HALVES)[None, :]
    v_at = tl.arange(0, V_HALVES)[:, None] + token[None, :] * V_HALVES
    scale_at = token[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
    query = query_of(q, head * SHARED, SHARED, PADDED, COLUMNS, DIM, K_BITS)
    factor = factor / SHRINK
    highest = tl.full((COLUMNS,), START, tl.float32)
    total, lows = tl.zeros((8, COLUMNS), tl.float32), tl.zeros((8, COLUMNS), tl.float32)
    mixed = zeros(DIM // V_ROWS, V_ROWS, COLUMNS)
    own = kv_head * head_step
    if not PAGED:
        own += row * page_step
    for block in tl.range(first, last, num_stages=STAGES):
        if PAGED:
            index = tl.load(table + row * table_step + block).to(tl.int64) * page_step + own
        else:
            index = block + own
        codes = tl.load(k_codes + index * (UNIT * K_HALVES) + k_at)
        scale, low = tl.load(k_scale + index * DIM + channel), tl.load(k_low + index * DIM + channel)
        scores = scores_of(query, codes, scale, low, COLUMNS, DIM, K_BITS, ASSEMBLY) * factor
        # The maximum is moved, and all sums scaled, only where weights would otherwise pass 2**(4 + LIFT).
        found = tl.maximum(highest, tl.max(scores, 0))
        if tl.max(found - highest, 0) > 4.0:
            shrink, highest = tl.exp2(highest - found)[None, :], found
            total *= shrink
            lows *= shrink
            mixed = scaled(mixed, shrink, DIM // V_ROWS)
        rounded = tl.exp2(scores - (highest - LIFT)[None, :]).to(tl.float16)
        weights = rounded.to(tl.float32)
        scale = by_column(tl.load(v_scale + index * (UNIT * GROUPS) + scale_at), PADDED)
        low = by_column(tl.load(v_low + index * (UNIT * GROUPS) + scale_at), PADDED)
        total += by_eight(weights, COLUMNS)
        lows += by_eight(weights * low.to(tl.float32), COLUMNS)
        operand = (weights * scale.to(tl.float32)).to(tl.float16)
        halves = tl.load(v_codes + index * (UNIT * V_HALVES) + v_at)
        mixed = mixed_with(mixed, operand, halves, DIM, V_BITS, ASSEMBLY)
    place = head * slots + split
    _store(highest, total, lows, mixed, part, stats, place, PADDED, COLUMNS, DIM, GROUP, V_BITS)


@triton.jit
@no_type_check
def _attend_dense(
    q, sink_k, sink_v, open_k, open_v, part, stats, head, place, first, sinks, opened, sink_room, open_room, factor,
    SHARED: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """One program: sixteen of the tokens of one key head that are held in 16 bits; `*_room` is what there is place
    for in memory."""
    row = tl.arange(0, 16)
    channel = tl.arange(0, DIM)
    query = tl.load(
        q + (head * SHARED + row)[:, None] * DIM + channel[None, :], mask=(row < SHARED)[:, None], other=0.0
    )
    query = query.to(open_k.dtype.element_ty)
    token = first + tl.arange(0, 16)
    is_sink = (token < sinks)[:, None]
    is_here = (token < sinks + opened)[:, None]
    sink_at = (head * sink_room + token)[:, None] * DIM + channel[None, :]
    open_at = (head * open_room + token - sinks)[:, None] * DIM + channel[None, :]
    k = tl.load(tl.where(is_sink, sink_k + sink_at, open_k + open_at), mask=is_here, other=0.0)
    v = tl.load(tl.where(is_sink, sink_v + sink_at, open_v + open_at), mask=is_here, other=0.0)
    if not ASSEMBLY:  # Triton's interpreter has no products in bfloat16
        k, v = k.to(tl.float32), v.to(tl.float32)
    scores = tl.dot(query.to(k.dtype), tl.trans(k)) * factor
    scores = tl.where((token < sinks + opened)[None, :], scores, FAR)
    highest = tl.maximum(tl.max(scores, 1), START)
    weights = tl.exp2(scores - (highest - LIFT)[:, None])
    mixed = tl.dot(weights.to(v.dtype), v)
    at = place * PADDED + row
    tl.store(stats + at * 2, highest, mask=row < PADDED)
    tl.store(stats + at * 2 + 1, tl.sum(weights, 1), mask=row < PADDED)
    tl.store(part + at[:, None] * DIM + channel[None, :], mixed, mask=(row < PADDED)[:, None])


# Lengths change at every step; a kernel compiled for one that divides by 16 would soon have to be compiled again.
@triton.jit(do_not_specialize=["splits", "slots", "each", "blocks", "sinks", "opened", "head_step", "page_step",
                               "table_step", "sink_room", "open_room"])  # fmt: skip
@no_type_check
def _decode(
    q, plain, k_codes, k_scale, k_low, v_codes, v_scale, v_low, sink_k, sink_v, open_k, open_v, table, lengths,
    part, stats, heads, splits, slots, each, blocks, sinks, opened, head_step, page_step, table_step,
    sink_room, open_room, factor,
    SHARED: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr,
    GROUP: tl.constexpr, K_BITS: tl.constexpr, V_BITS: tl.constexpr, PAGED: tl.constexpr, ASSEMBLY: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Program (head, slot): a part of the codes, or, after the last split, what is held in 16 bits."""
    head = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    row, kv_head = head // heads, head % heads
    if PAGED:
        blocks = tl.load(lengths + row * 3 + 1)
        each = tl.cdiv(blocks, splits)
    if split < splits:
        first = split * each
        _attend_codes(
            q, k_codes, k_scale, k_low, v_codes, v_scale, v_low, table, part, stats,
            head, row, kv_head, split, slots, first, tl.minimum(first + each, blocks), head_step, page_step,
            table_step, factor,
            SHARED, PADDED, COLUMNS, DIM, UNIT, GROUP, K_BITS, V_BITS, PAGED, ASSEMBLY, STAGES,
        )  # fmt: skip
    else:
        if PAGED:
            sinks, opened = tl.load(lengths + row * 3), tl.load(lengths + row * 3 + 2)
        _attend_dense(
            plain, sink_k, sink_v, open_k, open_v, part, stats, head, head * slots + split, (split - splits) * 16,
            sinks, opened, sink_room, open_room, factor, SHARED, PADDED, DIM, ASSEMBLY,
        )  # fmt: skip


@triton.jit(do_not_specialize=["splits", "slots"])
@no_type_check
def _combine(
    part, stats, out, beside, splits, slots,
    SHARED: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, STEP: tl.constexpr, CHANNELS: tl.constexpr,
    APART: tl.constexpr,
):  # fmt: skip
    """Program (head, member, part): join the slots of `CHANNELS` channels of a query head; with APART those after the
    splits, which hold what is not coded, in a sum of their own, `beside`."""
    head = tl.program_id(0).to(tl.int64)
    member = tl.program_id(1)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    highest = START
    total = 0.0
    mixed, dense = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, slots, STEP):
        slot = first + tl.arange(0, STEP)
        is_slot = slot < slots
        at = (head * slots + slot) * PADDED + member
        found = tl.load(stats + at * 2, mask=is_slot, other=FAR)
        totals = tl.load(stats + at * 2 + 1, mask=is_slot, other=0.0)
        values = tl.load(part + at[:, None] * DIM + channel[None, :], mask=is_slot[:, None], other=0.0)
        before = highest
        highest = tl.maximum(highest, tl.max(found, 0))
        shrink = tl.exp2(before - highest)
        factors = tl.exp2(found - highest)
        total = total * shrink + tl.sum(totals * factors, 0)
        if APART:
            dense = dense * shrink + tl.sum(values * tl.where(slot < splits, 0.0, factors)[:, None], 0)
            factors = tl.where(slot < splits, factors, 0.0)
        mixed = mixed * shrink + tl.sum(values * factors[:, None], 0)
    at = (head * SHARED + member) * DIM + channel
    tl.store(out + at, (mixed / total).to(out.dtype.element_ty))
    if APART:
        tl.store(beside + at, dense / total)


@dataclass(frozen=True)
class Tuning:
    """How the kernel runs: stages of the pipeline (None: by the size of a block), programs that share a multiprocessor,
    and whether codes are cut out by assembly, which Triton's interpreter does not know."""

    stages: int | None = None
    per_multiprocessor: int = 12
    assembly: bool = True


_USUAL = Tuning()


def attend(
    q: Float[Tensor, "rows q_heads queries d"], blocks: Blocks, k_bits: int, v_bits: int, group: int, scale: float,
    turned: tuple[bool, bool] = (False, False), tuning: Tuning = _USUAL,
) -> Float[Tensor, "rows q_heads queries d"]:  # fmt: skip
    """Attention of the newest token on `blocks`, where `thrifty.kv.kernels.shapes` says that they suit. Codes of keys
    or values are in rotated channels (`thrifty.kv.rotation`) where `turned` says so; nothing else is."""
    k, v = (side.each(Tensor.contiguous) for side in (blocks.k, blocks.v))
    assert k.closed is not None
    assert v.closed is not None
    heads, units = k.open.shape[1], k.closed["codes"].shape[2]
    return _run(
        q.contiguous(), (k.closed.tensors, v.closed.tensors), (k.sinks, v.sinks, k.open, v.open), None,
        k.closed.unit, units, (units, heads * units), k_bits, v_bits, group, scale, turned, tuning,
    )  # fmt: skip


def attend_pages(
    q: Float[Tensor, "rows q_heads queries d"], pages: Pages, k_bits: int, v_bits: int, group: int, scale: float,
    turned: tuple[bool, bool] = (False, False), tuning: Tuning = _USUAL,
) -> Float[Tensor, "rows q_heads queries d"]:  # fmt: skip
    """Attention of the newest token of each row on `pages`. Reads lengths and table on the GPU only, so it can be
    captured in a graph and replayed after they changed."""
    dense = (pages.sink_k, pages.sink_v, pages.open_k, pages.open_v)
    return _run(
        q.contiguous(), (pages.k, pages.v), dense, (pages.table, pages.lengths), pages.unit,
        pages.table.shape[1], (1, pages.open_k.shape[1]), k_bits, v_bits, group, scale, turned, tuning,
    )  # fmt: skip


def _run(
    query: Tensor, codes: tuple[dict[str, Tensor], dict[str, Tensor]], dense: tuple[Tensor, ...],
    paged: tuple[Tensor, Tensor] | None, unit: int, blocks: int, steps: tuple[int, int],
    k_bits: int, v_bits: int, group: int, scale: float, turned: tuple[bool, bool], tuning: Tuning,
) -> Tensor:  # fmt: skip
    """Both kernels. `steps` are those from head to head and from row (or page) to row, in blocks of codes; `blocks` is
    what a row holds, or with `paged` may hold at most."""
    rows, q_heads, _, dim = query.shape
    heads, sink_room, open_room = dense[2].shape[1], dense[0].shape[2], dense[2].shape[2]
    shared, groups = q_heads // heads, dim // group
    padded = max(triton.next_power_of_2(shared), 8 // groups)
    each = -(-blocks // max(1, multiprocessors(query.device) * tuning.per_multiprocessor // (rows * heads)))
    splits = -(-blocks // each)
    slots = splits + -(-(sink_room + open_room) // 16)
    part = torch.empty(rows * heads, slots, padded, dim, dtype=torch.float32, device=query.device)
    stats = torch.empty(rows * heads, slots, padded, 2, dtype=torch.float32, device=query.device)
    table, lengths = (None, None) if paged is None else paged
    # Measured on an H100: three stages, unless twelve programs then no longer fit into a multiprocessor.
    stages = tuning.stages or (3 if dim * (k_bits + v_bits) <= 512 else 2)
    k, v = codes
    out = torch.empty_like(query, dtype=torch.float32 if turned[1] else None)
    beside = torch.empty_like(out) if turned[1] else None
    with on(query.device):
        _decode[rows * heads, slots](
            rotate_at_once(query) if turned[0] else query, query,
            k["codes"].view(torch.int16), k["scale"], k["low"], v["codes"].view(torch.int16), v["scale"], v["low"],
            *dense, table, lengths, part, stats,
            heads, splits, slots, each, blocks, sink_room, open_room, *steps, blocks, sink_room, open_room,
            scale * math.log2(math.e),
            SHARED=shared, PADDED=padded, COLUMNS=padded * groups, DIM=dim, UNIT=unit, GROUP=group, K_BITS=k_bits,
            V_BITS=v_bits, PAGED=paged is not None, ASSEMBLY=tuning.assembly, STAGES=stages, num_warps=1,
        )  # fmt: skip
        _combine[rows * heads, shared, dim // 32](
            part, stats, out, beside, splits, slots, SHARED=shared, PADDED=padded, DIM=dim,
            STEP=min(128, triton.next_power_of_2(slots)), CHANNELS=32, APART=beside is not None, num_warps=4,
        )  # fmt: skip
    return out if beside is None else rotate_onto(beside, out).to(query.dtype)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of the GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
