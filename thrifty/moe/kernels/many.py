# ruff: noqa: ANN001, ANN202, SIM108 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""Many tokens (prefill) through experts that share stored channels, in Triton: grouped products that gather.

Tokens are taken in the order of their experts, and an expert's channels by number, while tiles are loaded: neither
tokens nor weights are copied. The activation is part of the first product, and the second one writes each token where
it belongs. Which expert a tile of tokens belongs to is found on the GPU, so that a CUDA graph can hold all of it.
"""

from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.moe.kernels.act import activated
from thrifty.moe.kernels.order import order_of


@dataclass(frozen=True)
class Tuning:
    """How the kernels run: tokens, channels and columns of a tile, warps and stages, for each of the two products."""

    rows: int = 128
    channels: int = 128
    columns: int = 64
    warps: int = 8
    stages: int = 3
    out_channels: int = 64
    out_columns: int = 256
    out_warps: int = 8
    out_stages: int = 3


_USUAL = Tuning()


@dataclass(frozen=True)
class Table:
    """The channels of each expert by number, in order, padded with the last one; `widths` says how many are real."""

    channels: Int[Tensor, "experts widest"]
    widths: Int[Tensor, " experts"]

    @staticmethod
    def of(members: Tensor) -> "Table":
        """Read from the mask of members, (experts, stored), and held on its device."""
        is_member = members.bool()
        widths = is_member.sum(1)
        order = (~is_member).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(widths.max())]
        return Table(order.int().contiguous(), widths.int())


@triton.jit
@no_type_check
def _place(tile, offsets, num_experts, ROWS: tl.constexpr):
    """The expert of a tile of tokens, its first token and the one after its last; expert -1 where there is no such
    tile."""
    found = -1
    first = 0
    last = 0
    begin = 0
    tiles = 0
    for expert in range(num_experts):
        end = tl.load(offsets + expert)
        count = tl.cdiv(end - begin, ROWS)
        is_it = (tile >= tiles) & (tile < tiles + count)
        found = tl.where(is_it, expert, found)
        first = tl.where(is_it, begin + (tile - tiles) * ROWS, first)
        last = tl.where(is_it, end, last)
        tiles += count
        begin = end
    return found, first, last


@triton.jit
@no_type_check
def _hidden(
    x, order, offsets, channels, widths, gate, up, gate_bias, up_bias, hidden, num_experts, widest, width, row_tiles,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, HAS_GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program: a tile of tokens of one expert, a tile of its channels; tokens change fastest, so that weights are
    found in the cache."""
    expert, first, last = _place(tl.program_id(0) % row_tiles, offsets, num_experts, ROWS)
    number = tl.program_id(0) // row_tiles * CHANNELS + tl.arange(0, CHANNELS)
    if expert >= 0:
        own = tl.load(widths + expert)
        if tl.min(number, 0) < own:
            is_channel = number < own
            place = first + tl.arange(0, ROWS)
            is_row = place < last
            token = tl.load(order + place, mask=is_row, other=0).to(tl.int64)
            channel = tl.load(channels + expert.to(tl.int64) * widest + number, mask=is_channel, other=0).to(tl.int64)
            opened = tl.zeros((ROWS, CHANNELS), tl.float32)
            raised = tl.zeros((ROWS, CHANNELS), tl.float32)
            for start in range(0, width, COLUMNS):
                column = start + tl.arange(0, COLUMNS)
                is_column = column < width
                mask = is_row[:, None] & is_column[None, :]
                value = tl.load(x + token[:, None] * width + column[None, :], mask=mask, other=0.0)
                at = channel[None, :] * width + column[:, None]
                mask = is_channel[None, :] & is_column[:, None]
                raised = tl.dot(value, tl.load(up + at, mask=mask, other=0.0), raised, input_precision=PRECISION)
                if HAS_GATE:
                    opened = tl.dot(value, tl.load(gate + at, mask=mask, other=0.0), opened, input_precision=PRECISION)
            if HAS_BIAS:
                raised += tl.load(up_bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
                if HAS_GATE:
                    opened += tl.load(gate_bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
            if HAS_GATE:
                result = activated(opened, ACTIVATION) * raised
            else:
                result = activated(raised, ACTIVATION)
            at = place[:, None].to(tl.int64) * widest + number[None, :]
            tl.store(hidden + at, result.to(hidden.dtype.element_ty), mask=is_row[:, None] & is_channel[None, :])


@triton.jit
@no_type_check
def _output(
    hidden, order, offsets, channels, widths, down, bias, out, num_experts, widest, width, row_tiles,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program: a tile of tokens of one expert, a tile of columns of the output."""
    expert, first, last = _place(tl.program_id(0) % row_tiles, offsets, num_experts, ROWS)
    column = tl.program_id(0) // row_tiles * COLUMNS + tl.arange(0, COLUMNS)
    if expert >= 0:
        own = tl.load(widths + expert)
        is_column = column < width
        place = first + tl.arange(0, ROWS)
        is_row = place < last
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        table = channels + expert.to(tl.int64) * widest
        for start in range(0, own, CHANNELS):
            number = start + tl.arange(0, CHANNELS)
            is_channel = number < own
            channel = tl.load(table + number, mask=is_channel, other=0).to(tl.int64)
            at = place[:, None].to(tl.int64) * widest + number[None, :]
            value = tl.load(hidden + at, mask=is_row[:, None] & is_channel[None, :], other=0.0)
            at = channel[:, None] * width + column[None, :]
            weight = tl.load(down + at, mask=is_channel[:, None] & is_column[None, :], other=0.0)
            total = tl.dot(value, weight, total, input_precision=PRECISION)
        if HAS_BIAS:
            total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
        token = tl.load(order + place, mask=is_row, other=0).to(tl.int64)
        at = token[:, None] * width + column[None, :]
        tl.store(out + at, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


def run_many(
    mlp: Any, x: Float[Tensor, "tokens d"], choice: Int[Tensor, " tokens"], table: Table, activation: str,
    tuning: Tuning = _USUAL,
) -> Float[Tensor, "tokens d"]:  # fmt: skip
    """Each token through the expert of a `PackedMlp` that `choice` names; `table` is that of its members."""
    (tokens, width), num_experts, widest = x.shape, mlp.shape.num_experts, table.channels.shape[1]
    order, offsets = order_of(choice, num_experts)
    row_tiles = triton.cdiv(tokens, tuning.rows) + num_experts - 1
    hidden = torch.empty(tokens, widest, dtype=x.dtype, device=x.device)
    out = torch.empty_like(x)
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    nothing, bias = mlp.up, mlp.out_bias
    _hidden[(row_tiles * triton.cdiv(widest, tuning.channels),)](
        x, order, offsets, table.channels, table.widths, nothing if mlp.gate is None else mlp.gate, mlp.up,
        nothing if mlp.gate_bias is None else mlp.gate_bias, nothing if mlp.up_bias is None else mlp.up_bias, hidden,
        num_experts, widest, width, row_tiles, tuning.rows, tuning.channels, tuning.columns, mlp.gate is not None,
        mlp.up_bias is not None, activation, precision, num_warps=tuning.warps, num_stages=tuning.stages,
    )  # fmt: skip
    _output[(row_tiles * triton.cdiv(width, tuning.out_columns),)](
        hidden, order, offsets, table.channels, table.widths, mlp.down, nothing if bias is None else bias, out,
        num_experts, widest, width, row_tiles, tuning.rows, tuning.out_channels, tuning.out_columns, bias is not None,
        precision, num_warps=tuning.out_warps, num_stages=tuning.out_stages,
    )  # fmt: skip
    return out
