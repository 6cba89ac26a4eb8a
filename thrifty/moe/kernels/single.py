# ruff: noqa: ANN001, ANN202 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""Decoding one token through experts that share stored channels: each weight that it needs is read once, in one stream.

As a channel is one row of `gate`, `up` and `down`, a program that has found a hidden channel adds that channel's row of
`down` right away: no other program has to be waited for. Every program has the same number of channels, and loads the
rows of the next ones before those of these are used. Two launches: `_stream` scores the experts (every program for
itself: the router is small) and sums its own channels; `_join` adds up what all programs found. Where the GPU can
(Hopper), `_join` starts while `_stream` ends (programmatic dependent launch). Sums are in float32 and always in the
same order: the same input gives the same bits. Nothing comes back to the CPU, so that a CUDA graph can hold both.
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


@dataclass(frozen=True)
class Tuning:
    """How the kernels run: of `_stream`, channels at a time, warps, and programs for each multiprocessor; columns of
    each program of `_join`."""

    rows: int = 2
    warps: int = 8
    programs: int = 1
    join_columns: int = 32


_USUAL = Tuning()


@triton.jit
@no_type_check
def _both(a, b, c, d):
    return a + c, b + d


@triton.jit
@no_type_check
def _best(x, router, num_experts, width, COLUMNS: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """The first of the experts with the largest score, in float32."""
    expert = tl.arange(0, EXPERTS)
    total = tl.zeros((EXPERTS, BLOCK), tl.float32)
    for start in tl.static_range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + column, mask=column < width, other=0.0).to(tl.float32)
        mask = (expert < num_experts)[:, None] & (column < width)[None, :]
        weight = tl.load(router + expert[:, None] * width + column[None, :], mask=mask, other=0.0)
        total += weight.to(tl.float32) * value[None, :]
    return tl.argmax(tl.where(expert < num_experts, tl.sum(total, 1), float("-inf")), 0)


@triton.jit
@no_type_check
def _channels(channels, place, last, LISTED: tl.constexpr):
    """The stored channels at some places of an expert's list."""
    if LISTED:
        return tl.load(channels + place, mask=place < last, other=0)
    else:
        return place


@triton.jit
@no_type_check
def _rows(weight, channel, place, last, column, width):
    """Rows of a weight, [channels, columns]; they are read once, so that a cache need not hold them."""
    mask = (place < last)[:, None] & (column < width)[None, :]
    at = channel.to(tl.int64)[:, None] * width + column[None, :]
    return tl.load(weight + at, mask=mask, other=0.0, eviction_policy="evict_first")


@triton.jit
@no_type_check
def _result(
    opening, raising, gate_bias, up_bias, channel, is_here, value,
    HAS_GATE: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Hidden channels of rows of gate and up, zero where there is no channel."""
    if HAS_GATE:
        opened, raised = tl.reduce((opening.to(tl.float32) * value, raising.to(tl.float32) * value), 1, _both)
        if HAS_BIAS:
            opened += tl.load(gate_bias + channel, mask=is_here, other=0.0).to(tl.float32)
            raised += tl.load(up_bias + channel, mask=is_here, other=0.0).to(tl.float32)
        result = activated(opened, ACTIVATION) * raised
    else:
        raised = tl.sum(raising.to(tl.float32) * value, 1)
        if HAS_BIAS:
            raised += tl.load(up_bias + channel, mask=is_here, other=0.0).to(tl.float32)
        result = activated(raised, ACTIVATION)
    return tl.where(is_here, result, 0.0)


@triton.jit
@no_type_check
def _stream(
    x, router, choice, chosen, channels, widths, gate, up, down, gate_bias, up_bias, part, num_experts, stored, widest,
    width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr, SCORED: tl.constexpr,
    LISTED: tl.constexpr, HAS_GATE: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Program: its share of the expert's channels, `ROWS` at a time, and what they add to the output."""
    program = tl.program_id(0).to(tl.int64)
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    column = tl.arange(0, COLUMNS)
    own = stored
    if LISTED:
        if SCORED:
            expert = _best(x, router, num_experts, width, COLUMNS, EXPERTS, BLOCK)
            if program == 0:
                tl.store(chosen, expert)
        else:
            expert = tl.load(choice)
        own = tl.load(widths + expert)
        channels += expert.to(tl.int64) * widest
    first = (program * own // tl.num_programs(0)).to(tl.int32)
    last = ((program + 1) * own // tl.num_programs(0)).to(tl.int32)
    value = tl.load(x + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((COLUMNS,), tl.float32)
    place = first + tl.arange(0, ROWS)
    channel = _channels(channels, place, last, LISTED)
    raising = _rows(up, channel, place, last, column, width)
    opening = raising
    if HAS_GATE:
        opening = _rows(gate, channel, place, last, column, width)
    adding = _rows(down, channel, place, last, column, width)
    next_channel = _channels(channels, place + ROWS, last, LISTED)
    for _ in range(first, last, ROWS):
        next_raising = _rows(up, next_channel, place + ROWS, last, column, width)
        if HAS_GATE:
            next_opening = _rows(gate, next_channel, place + ROWS, last, column, width)
        next_adding = _rows(down, next_channel, place + ROWS, last, column, width)
        later_channel = _channels(channels, place + 2 * ROWS, last, LISTED)
        result = _result(
            opening, raising, gate_bias, up_bias, channel, place < last, value, HAS_GATE, HAS_BIAS, ACTIVATION
        )
        if HAS_GATE:
            opening = next_opening
        total += tl.sum(adding.to(tl.float32) * result[:, None], 0)
        raising = next_raising
        adding = next_adding
        channel = next_channel
        next_channel = later_channel
        place += ROWS
    tl.store(part + program * width + column, total, mask=column < width)


@triton.jit
@no_type_check
def _join(
    part, bias, out, programs, width,
    PROGRAMS: tl.constexpr, COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Program: some columns of the output, the sum of what all programs found."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    program = tl.arange(0, PROGRAMS)
    mask = (program < programs)[:, None] & (column < width)[None, :]
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    total = tl.sum(tl.load(part + program[:, None] * width + column[None, :], mask=mask, other=0.0), 0)
    if HAS_BIAS:
        total += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(out + column, total.to(out.dtype.element_ty), mask=column < width)


def run_single(
    mlp: Any, x: Float[Tensor, "1 d"], choice: Int[Tensor, " 1"] | None, activation: str, tuning: Tuning = _USUAL
) -> tuple[Float[Tensor, "1 d"], Int[Tensor, " 1"] | None]:
    """One token through the experts of a `PackedMlp`, and which expert it took: that of `choice`, or of its router;
    None where there is one expert for all."""
    (num_experts, stored), width, nothing = mlp.members.shape, x.shape[1], mlp.up
    is_scored = choice is None and mlp.router is not None
    is_listed = choice is not None or is_scored
    overlap = overlaps(x.device)
    programs = tuning.programs * processors(x.device)
    part = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    chosen = torch.empty(1, dtype=torch.int32, device=x.device) if is_scored else choice
    out, bias = torch.empty_like(x), mlp.out_bias
    lists = (mlp.table.channels, mlp.table.widths) if is_listed else (nothing, nothing)
    columns, experts = triton.next_power_of_2(width), triton.next_power_of_2(num_experts)
    _stream[(programs,)](
        x, mlp.router if is_scored else nothing, nothing if choice is None else choice,
        nothing if chosen is None else chosen, *lists, nothing if mlp.gate is None else mlp.gate, mlp.up, mlp.down,
        nothing if mlp.gate_bias is None else mlp.gate_bias, nothing if mlp.up_bias is None else mlp.up_bias, part,
        num_experts, stored, lists[0].shape[1], width, ROWS=tuning.rows, COLUMNS=columns, EXPERTS=experts,
        BLOCK=min(columns, max(16, 1024 * tuning.warps // experts)), SCORED=is_scored, LISTED=is_listed,
        HAS_GATE=mlp.gate is not None, HAS_BIAS=mlp.up_bias is not None, ACTIVATION=activation,
        OVERLAP=overlap, num_warps=tuning.warps,
    )  # fmt: skip
    _join[(triton.cdiv(width, tuning.join_columns),)](
        part, nothing if bias is None else bias, out, programs, width, PROGRAMS=triton.next_power_of_2(programs),
        COLUMNS=tuning.join_columns, HAS_BIAS=bias is not None, OVERLAP=overlap, num_warps=8,
        **({"launch_pdl": True} if overlap else {}),
    )  # fmt: skip
    return out, chosen


@functools.cache
def overlaps(device: torch.device) -> bool:
    """Whether a kernel can start before the one before it has ended."""
    is_nvidia = device.type == "cuda" and not torch.version.hip
    return is_nvidia and torch.cuda.get_device_capability(device)[0] >= 9 and hasattr(tl.extra.cuda, "gdc_wait")


@functools.cache
def processors(device: torch.device) -> int:
    """How many programs a GPU runs side by side; a few where there is none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 5
