# ruff: noqa: ANN001, ANN202 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""Many tokens through experts with matrices of their own, on a Hopper GPU: two launches of grouped products.

Tokens are brought into the order of their experts first. `_hidden` multiplies a tile of rows with the gate and the up
channels of the same numbers at once, so that gate and up never leave the registers; `_output` multiplies the hidden
channels and writes each row where its token stands. Tiles come through the copy engine (TMA).

An expert's rows are tiles of 128; up to 64 that are left over are added to the last tile, which then is 192 high:
alone they would take nearly the time of a whole tile, since weights would come for them once more. Tiles of one expert
and the same weights follow each other, so that weights leave memory once. No length is read back to the CPU.
"""

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from thrifty.moe.kernels.act import activated
from thrifty.moe.kernels.order import gathered, order_of


@dataclass(frozen=True)
class Tuning:
    """Rows of a tile, numbers of a product at a time, warps, and how many loads are under way: for tiles as they are
    and for those with half a tile more."""

    rows: int = 128
    depth: int = 64
    warps: int = 8
    stages: int = 4
    tall_stages: int = 3
    columns: int = 256


_USUAL = Tuning()


@triton.jit
@no_type_check
def _place(ends, program, num_experts, columns, ROWS: tl.constexpr, EXPERTS: tl.constexpr):
    """The expert of a program (-1: none), its tile of columns, its first row, the one after the expert's last, and
    whether it takes the rows that are left over as well."""
    number = tl.arange(0, EXPERTS)
    is_expert = number < num_experts
    end = tl.load(ends + number, mask=is_expert, other=0)
    begin = tl.load(ends + number - 1, mask=is_expert & (number > 0), other=0)
    whole = (end - begin) // ROWS
    rest = (end - begin) % ROWS
    joins = ((rest > 0) & (rest <= ROWS // 2) & (whole > 0)).to(tl.int32)
    tiles = whole + (rest > 0).to(tl.int32) - joins
    before = (tl.cumsum(tiles, 0) - tiles) * columns
    is_it = (program >= before) & (program < before + tiles * columns)
    tiles = tl.maximum(tiles, 1)
    row = (program - before) % tiles
    is_tall = tl.sum((is_it & (joins > 0) & (row == whole - 1)).to(tl.int32), 0)
    expert = tl.max(tl.where(is_it, number, -1), 0)
    column = tl.sum(tl.where(is_it, (program - before) // tiles, 0), 0)
    first = tl.sum(tl.where(is_it, begin + row * ROWS, 0), 0)
    last = tl.sum(tl.where(is_it, end, 0), 0)
    return expert, column, first, last, is_tall


@triton.jit
@no_type_check
def _store_hidden(
    total, hidden, first, last, column, width,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Gate and up, side by side in `total`, as hidden channels."""
    opened, raised = total.reshape(ROWS, 2, CHANNELS).permute(0, 2, 1).split()
    result = (activated(opened, ACTIVATION) * raised).to(hidden.dtype.element_ty)
    row = first + tl.arange(0, ROWS)
    channel = column * CHANNELS + tl.arange(0, CHANNELS)
    at = row[:, None].to(tl.int64) * width + channel[None, :]
    tl.store(hidden + at, result, mask=(row < last)[:, None] & (channel < width)[None, :])


@triton.jit
@no_type_check
def _hidden(
    x, x_half, weight, hidden, ends, num_experts, columns, width,
    SIZE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr, EXPERTS: tl.constexpr,
    STAGES: tl.constexpr, TALL_STAGES: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Program: a tile of rows of one expert, and as many gate as up channels."""
    expert, column, first, last, is_tall = _place(ends, tl.program_id(0), num_experts, columns, ROWS, EXPERTS)
    if expert >= 0:
        if is_tall > 0:
            total = tl.zeros((ROWS, 2 * CHANNELS), tl.float32)
            more = tl.zeros((ROWS // 2, 2 * CHANNELS), tl.float32)
            for start in tl.range(0, SIZE, DEPTH, num_stages=TALL_STAGES):
                upper = x.load([first, start])
                lower = x_half.load([first + ROWS, start])
                tile = weight.load([2 * expert, column * CHANNELS, start])
                total = tl.dot(upper, tile.reshape(2 * CHANNELS, DEPTH).T, total)
                more = tl.dot(lower, tile.reshape(2 * CHANNELS, DEPTH).T, more)
            _store_hidden(total, hidden, first, last, column, width, ROWS, CHANNELS, ACTIVATION)
            _store_hidden(more, hidden, first + ROWS, last, column, width, ROWS // 2, CHANNELS, ACTIVATION)
        else:
            total = tl.zeros((ROWS, 2 * CHANNELS), tl.float32)
            for start in tl.range(0, SIZE, DEPTH, num_stages=STAGES):
                upper = x.load([first, start])
                tile = weight.load([2 * expert, column * CHANNELS, start])
                total = tl.dot(upper, tile.reshape(2 * CHANNELS, DEPTH).T, total)
            _store_hidden(total, hidden, first, last, column, width, ROWS, CHANNELS, ACTIVATION)


@triton.jit
@no_type_check
def _store_output(total, out, order, first, last, column, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows to where their tokens stand."""
    row = first + tl.arange(0, ROWS)
    token = tl.load(order + row, mask=row < last, other=0).to(tl.int64)
    channel = column * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < last)[:, None] & (channel < width)[None, :]
    tl.store(out + token[:, None] * width + channel[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def _output(
    hidden, hidden_half, weight, out, order, ends, num_experts, columns, width,
    SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EXPERTS: tl.constexpr,
    STAGES: tl.constexpr, TALL_STAGES: tl.constexpr,
):  # fmt: skip
    """Program: a tile of rows of one expert, a tile of columns of the output."""
    expert, column, first, last, is_tall = _place(ends, tl.program_id(0), num_experts, columns, ROWS, EXPERTS)
    if expert >= 0:
        if is_tall > 0:
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
            more = tl.zeros((ROWS // 2, COLUMNS), tl.float32)
            for start in tl.range(0, SIZE, DEPTH, num_stages=TALL_STAGES):
                upper = hidden.load([first, start])
                lower = hidden_half.load([first + ROWS, start])
                tile = weight.load([expert, column * COLUMNS, start])
                total = tl.dot(upper, tile.reshape(COLUMNS, DEPTH).T, total)
                more = tl.dot(lower, tile.reshape(COLUMNS, DEPTH).T, more)
            _store_output(total, out, order, first, last, column, width, ROWS, COLUMNS)
            _store_output(more, out, order, first + ROWS, last, column, width, ROWS // 2, COLUMNS)
        else:
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
            for start in tl.range(0, SIZE, DEPTH, num_stages=STAGES):
                upper = hidden.load([first, start])
                tile = weight.load([expert, column * COLUMNS, start])
                total = tl.dot(upper, tile.reshape(COLUMNS, DEPTH).T, total)
            _store_output(total, out, order, first, last, column, width, ROWS, COLUMNS)


def run_experts(
    x: Float[Tensor, "tokens d"], choice: Int[Tensor, " tokens"], gate_up: Float[Tensor, "experts two_width d"],
    down: Float[Tensor, "experts d width"], activation: str, tuning: Tuning = _USUAL,
) -> Float[Tensor, "tokens d"]:  # fmt: skip
    """Each token through its expert, where `thrifty.moe.whole.suits_tiles`: x and weights in one half-precision type,
    d and width multiples of 8."""
    (tokens, size), (num_experts, _, width) = x.shape, down.shape
    order, ends = order_of(choice, num_experts)
    rows, hidden, out = gathered(x, order), x.new_empty(tokens, width), torch.empty_like(x)
    tiles = tokens // tuning.rows + num_experts
    kinds = {"ROWS": tuning.rows, "DEPTH": tuning.depth, "EXPERTS": triton.next_power_of_2(num_experts)}
    kinds |= {"STAGES": tuning.stages, "TALL_STAGES": tuning.tall_stages, "num_warps": tuning.warps}
    channels = tuning.columns // 2
    columns = triton.cdiv(width, channels)
    pairs = gate_up.view(2 * num_experts, width, size)
    _hidden[(tiles * columns,)](
        *_tiles_of(rows, tuning), TensorDescriptor.from_tensor(pairs, [2, channels, tuning.depth]), hidden, ends,
        num_experts, columns, width, SIZE=size, CHANNELS=channels,
        ACTIVATION=activation, **kinds,
    )  # fmt: skip
    columns = triton.cdiv(size, tuning.columns)
    _output[(tiles * columns,)](
        *_tiles_of(hidden, tuning), TensorDescriptor.from_tensor(down, [1, tuning.columns, tuning.depth]), out, order,
        ends, num_experts, columns, size, SIZE=width, COLUMNS=tuning.columns, **kinds,
    )  # fmt: skip
    return out


def _tiles_of(rows: Tensor, tuning: Tuning) -> list[TensorDescriptor]:
    """The rows in tiles as they are, and in halves of them."""
    return [TensorDescriptor.from_tensor(rows, [height, tuning.depth]) for height in (tuning.rows, tuning.rows // 2)]
