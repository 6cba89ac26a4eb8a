# ruff: noqa: ANN001, ANN202 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""Decoding: one token, or a handful, through experts that share stored channels, as products of matrix and vector.

Time here is bytes of weights and what lies between kernels. One token walks the list of its expert's channels, so that
every program has the same work; a handful walk all channels as stored, and rows that no token needs are not read. Sums
are in float32 and always in the same order: the same input gives the same bits.

Three launches. `_scores` scores the experts. `_hidden` takes the best one and computes its hidden channels. `_output`
computes columns of the output, its sum over channels split over programs, the last of which joins what all found. On a
GPU that can (Hopper), a kernel starts while the one before it ends (programmatic dependent launch) and loads what does
not depend on it: x, lists of channels, first rows of `down`. Nothing comes back to the CPU, so that a CUDA graph can
hold them.
"""

import functools
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.moe.kernels.act import activated

MOST_TOKENS = 8
FASTER_UP_TO = 1
"""With more tokens `few.py` is faster: 2 tokens through 8 experts of a Llama-3-8B layer take 157 us here, 130 there."""


@dataclass(frozen=True)
class Tuning:
    """How the kernels run. `rows` channels at a time and `steps` of them in each program of the first product; tiles of
    `out_rows` channels and `out_columns` columns, and `splits` of the sum, in the second one. Warps of each; `overlap`:
    start kernels before the one before them has ended, where the GPU can."""

    rows: int = 1
    steps: int = 16
    warps: int = 4
    out_rows: int = 16
    out_columns: int = 256
    out_warps: int = 4
    splits: int = 49
    overlap: bool = True


def usual(tokens: int) -> Tuning:
    """The fastest tuning of those that benchmarks/moe_speed.py tries, for so many tokens."""
    return Tuning() if tokens == 1 else Tuning(steps=8, out_warps=8, splits=33)


@triton.jit
@no_type_check
def _scores(
    x, router, scores, num_experts, width, COLUMNS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Program (expert, token): one number of `router x`, in float32."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    expert = tl.program_id(0)
    token = tl.program_id(1)
    column = tl.arange(0, COLUMNS)
    is_column = column < width
    weight = tl.load(router + expert.to(tl.int64) * width + column, mask=is_column, other=0.0).to(tl.float32)
    value = tl.load(x + token.to(tl.int64) * width + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(scores + token * num_experts + expert, tl.sum(weight * value, 0))


@triton.jit
@no_type_check
def _chosen(
    scores, choice, widths, tokens, num_experts, stored,
    TOKENS: tl.constexpr, EXPERTS: tl.constexpr, ROUTED: tl.constexpr, SCORED: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """The expert of each token, the first of the largest scores or as `choice` says, and how many channels to walk."""
    token = tl.arange(0, TOKENS)
    found = tl.zeros((TOKENS,), tl.int32)
    if SCORED:
        expert = tl.arange(0, EXPERTS)
        is_here = (token < tokens)[:, None] & (expert < num_experts)[None, :]
        score = tl.load(scores + token[:, None] * num_experts + expert[None, :], mask=is_here, other=float("-inf"))
        found = tl.argmax(score, 1).to(tl.int32)
    elif ROUTED:
        found = tl.load(choice + token, mask=token < tokens, other=0).to(tl.int32)
    if LISTED:
        only = tl.max(found, 0)
        return only, tl.load(widths + only)
    else:
        return found, stored


@triton.jit
@no_type_check
def _rows(weight, channel, is_own, column, width):
    """Rows of a weight, [numbers, 1, columns], where some token has the channel."""
    is_read = (tl.max(is_own.to(tl.int32), 1) > 0)[:, None, None] & (column < width)
    return tl.load(weight + channel[:, None, None] * width + column, mask=is_read, other=0.0)


@triton.jit
@no_type_check
def _place(
    number, expert, token, tokens, members, channels, own, stored, widest, ROUTED: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """The stored channels that `number`, [numbers], counts, and which of them each token has, [numbers, tokens]."""
    is_here = (number < own)[:, None] & (token < tokens)[None, :]
    channel = number
    is_own = is_here
    if LISTED:  # one token: `number` counts the channels of its expert
        at = expert.to(tl.int64) * widest + number
        channel = tl.load(channels + at, mask=number < own, other=0)
    elif ROUTED:
        at = expert[None, :].to(tl.int64) * stored + number[:, None]
        is_own = tl.load(members + at, mask=is_here, other=0) > 0
    return channel.to(tl.int64), is_own


@triton.jit
@no_type_check
def _hidden(
    x, scores, choice, members, channels, widths, gate, up, gate_bias, up_bias, hidden, chosen, counters,
    tokens, num_experts, stored, widest, width, num_counters,
    TOKENS: tl.constexpr, EXPERTS: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, COLUMNS: tl.constexpr,
    COUNTERS: tl.constexpr, ROUTED: tl.constexpr, SCORED: tl.constexpr, LISTED: tl.constexpr, HAS_GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Program: some channels, `ROWS` at a time, for all tokens; the next rows are loaded before these are used."""
    token = tl.arange(0, TOKENS)
    column = tl.arange(0, COLUMNS)[None, None, :]
    seen = (token < tokens)[None, :, None] & (column < width)
    value = tl.load(x + token[None, :, None] * width + column, mask=seen, other=0.0).to(tl.float32)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    expert, own = _chosen(scores, choice, widths, tokens, num_experts, stored, TOKENS, EXPERTS, ROUTED, SCORED, LISTED)
    if tl.program_id(0) == 0:
        tl.store(counters + tl.arange(0, COUNTERS), 0, mask=tl.arange(0, COUNTERS) < num_counters)
        if SCORED:
            tl.store(chosen + token, expert, mask=token < tokens)
    first = tl.program_id(0) * ROWS * STEPS
    if first < own:
        number = first + tl.arange(0, ROWS)
        channel, is_own = _place(number, expert, token, tokens, members, channels, own, stored, widest, ROUTED, LISTED)
        raising = _rows(up, channel, is_own, column, width)
        if HAS_GATE:
            opening = _rows(gate, channel, is_own, column, width)
        for step in range(STEPS):
            next_number = first + (step + 1) * ROWS + tl.arange(0, ROWS)
            limit = tl.where(step + 1 < STEPS, own, 0)
            next_channel, next_own = _place(
                next_number, expert, token, tokens, members, channels, limit, stored, widest, ROUTED, LISTED
            )
            next_raising = _rows(up, next_channel, next_own, column, width)
            if HAS_GATE:
                next_opening = _rows(gate, next_channel, next_own, column, width)
            raised = tl.sum(raising.to(tl.float32) * value, 2)
            if HAS_BIAS:
                raised += tl.load(up_bias + channel, mask=number < own, other=0.0).to(tl.float32)[:, None]
            if HAS_GATE:
                opened = tl.sum(opening.to(tl.float32) * value, 2)
                if HAS_BIAS:
                    opened += tl.load(gate_bias + channel, mask=number < own, other=0.0).to(tl.float32)[:, None]
                result = activated(opened, ACTIVATION) * raised
                opening = next_opening
            else:
                result = activated(raised, ACTIVATION)
            target = hidden + token[None, :] * stored + number[:, None]
            is_here = (number < own)[:, None] & (token < tokens)[None, :]
            tl.store(target, tl.where(is_own, result, 0.0), mask=is_here)
            raising = next_raising
            number = next_number
            channel = next_channel
            is_own = next_own


@triton.jit
@no_type_check
def _output(
    hidden, scores, choice, members, channels, widths, down, bias, part, counters, out,
    tokens, num_experts, stored, widest, width, splits,
    TOKENS: tl.constexpr, EXPERTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr,
    ROUTED: tl.constexpr, SCORED: tl.constexpr, LISTED: tl.constexpr, HAS_BIAS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Program (columns, split): what every `splits`-th tile of channels adds to these columns; the last program of
    these columns adds up what all of them found. Scores and choice were there before the kernel before this one."""
    block = tl.program_id(0)
    split = tl.program_id(1)
    token = tl.arange(0, TOKENS)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < width
    wide = column[None, None, :]  # a tile is [channels, tokens, columns] from the start, so that no layout is changed
    expert, own = _chosen(scores, choice, widths, tokens, num_experts, stored, TOKENS, EXPERTS, ROUTED, SCORED, LISTED)
    number = split * ROWS + tl.arange(0, ROWS)
    channel, is_own = _place(number, expert, token, tokens, members, channels, own, stored, widest, ROUTED, LISTED)
    weight = _rows(down, channel, is_own, wide, width)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((ROWS, TOKENS, COLUMNS), tl.float32)
    for first in range(split * ROWS, own, splits * ROWS):
        number = first + splits * ROWS + tl.arange(0, ROWS)
        channel, is_own = _place(number, expert, token, tokens, members, channels, own, stored, widest, ROUTED, LISTED)
        next_weight = _rows(down, channel, is_own, wide, width)
        here = (first + tl.arange(0, ROWS))[:, None]
        is_here = (here < own) & (token < tokens)[None, :]
        value = tl.load(hidden + token[None, :] * stored + here, mask=is_here, other=0.0)
        total += weight.to(tl.float32) * value[:, :, None]
        weight = next_weight
    at = token[:, None] * width + column[None, :]
    is_here = (token < tokens)[:, None] & is_column[None, :]
    size = tokens * width
    tl.store(part + split * size + at, tl.sum(total, 0), mask=is_here)
    tl.debug_barrier()  # all of this program's part is written before it counts as done
    if tl.atomic_add(counters + block, 1, sem="acq_rel", scope="gpu") == splits - 1:
        found = tl.arange(0, SPLITS)[:, None]
        for one in range(tokens):
            mask = (found < splits) & is_column[None, :]
            parts = tl.load(part + found * size + one * width + column[None, :], mask=mask, other=0.0,
                            cache_modifier=".cg")  # fmt: skip
            joined = tl.sum(parts, 0)
            if HAS_BIAS:
                joined += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
            tl.store(out + one * width + column, joined.to(out.dtype.element_ty), mask=is_column)


def run_decode(
    mlp: Any, x: Float[Tensor, "tokens d"], choice: Int[Tensor, " tokens"] | None, activation: str,
    tuning: Tuning | None = None,
) -> tuple[Float[Tensor, "tokens d"], Int[Tensor, " tokens"] | None]:  # fmt: skip
    """At most 8 tokens through the experts of a `PackedMlp`, and which expert each took: that of `choice`, or of its
    router; None where there is one expert for all."""
    (tokens, width), (num_experts, stored) = x.shape, mlp.members.shape
    assert 0 < tokens <= MOST_TOKENS
    tuning = tuning or usual(tokens)
    is_scored = choice is None and mlp.router is not None
    is_routed = choice is not None or is_scored
    is_listed = is_routed and tokens == 1
    overlap = tuning.overlap and overlaps(x.device)
    table, widest = (mlp.table, mlp.table.channels.shape[1]) if is_listed else (None, stored)
    blocks = triton.cdiv(width, tuning.out_columns)
    scores = torch.empty(tokens, num_experts, dtype=torch.float32, device=x.device)
    chosen = torch.empty(tokens, dtype=torch.int32, device=x.device) if is_scored else choice
    counters = torch.empty(blocks, dtype=torch.int32, device=x.device)
    hidden = torch.empty(tokens, stored, dtype=torch.float32, device=x.device)
    part = torch.empty(tuning.splits, tokens, width, dtype=torch.float32, device=x.device)
    out = torch.empty_like(x)
    columns, experts = triton.next_power_of_2(width), triton.next_power_of_2(num_experts)
    if is_scored:
        _scores[(num_experts, tokens)](x, mlp.router, scores, num_experts, width, columns, overlap, num_warps=8)
    lists = (table.channels, table.widths) if table else (counters, counters)
    where = (scores, counters if choice is None else choice, mlp.members, *lists)
    flags = {"ROUTED": is_routed, "SCORED": is_scored, "LISTED": is_listed, "OVERLAP": overlap}
    kinds = {"TOKENS": triton.next_power_of_2(tokens), "EXPERTS": experts} | flags
    nothing = mlp.up
    _hidden[(triton.cdiv(widest, tuning.rows * tuning.steps),)](
        x, *where, nothing if mlp.gate is None else mlp.gate, mlp.up,
        nothing if mlp.gate_bias is None else mlp.gate_bias, nothing if mlp.up_bias is None else mlp.up_bias,
        hidden, counters if chosen is None else chosen, counters, tokens, num_experts, stored, widest, width, blocks,
        ROWS=tuning.rows, STEPS=tuning.steps, COLUMNS=columns, COUNTERS=triton.next_power_of_2(blocks),
        HAS_GATE=mlp.gate is not None, HAS_BIAS=mlp.up_bias is not None, ACTIVATION=activation, **kinds,
        num_warps=tuning.warps, **({"launch_pdl": True} if overlap and is_scored else {}),
    )  # fmt: skip
    bias = mlp.out_bias
    _output[(blocks, tuning.splits)](
        hidden, *where, mlp.down, nothing if bias is None else bias, part, counters, out, tokens, num_experts, stored,
        widest, width, tuning.splits, ROWS=tuning.out_rows, COLUMNS=tuning.out_columns,
        SPLITS=triton.next_power_of_2(tuning.splits), HAS_BIAS=bias is not None, **kinds, num_warps=tuning.out_warps,
        **({"launch_pdl": True} if overlap else {}),
    )  # fmt: skip
    return out, chosen


@functools.cache
def overlaps(device: torch.device) -> bool:
    """Whether a kernel can start before the one before it has ended."""
    is_new = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
    return is_new and hasattr(tl.extra.cuda, "gdc_wait")
