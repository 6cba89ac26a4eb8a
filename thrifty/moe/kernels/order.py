# ruff: noqa: ANN001, ANN202 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""Tokens in the order of their experts, in Triton: which they are, and their rows moved there and back."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor


@triton.jit
@no_type_check
def _order(choice, order, ends, tokens, BLOCK: tl.constexpr):
    """Program: an expert. It counts the tokens of earlier experts, then lists its own."""
    expert = tl.program_id(0)
    place = 0
    for first in range(0, tokens, BLOCK):
        token = first + tl.arange(0, BLOCK)
        other = tl.load(choice + token, mask=token < tokens, other=expert).to(tl.int32)
        place += tl.sum((other < expert).to(tl.int32), 0)
    for first in range(0, tokens, BLOCK):
        token = first + tl.arange(0, BLOCK)
        is_own = (tl.load(choice + token, mask=token < tokens, other=-1).to(tl.int32) == expert).to(tl.int32)
        tl.store(order + place + tl.cumsum(is_own, 0) - 1, token, mask=is_own > 0)
        place += tl.sum(is_own, 0)
    tl.store(ends + expert, place)


@triton.jit
@no_type_check
def _move(source, order, target, width, GATHERS: tl.constexpr, BLOCK: tl.constexpr):
    """Program: a row, from where `order` says, or to there."""
    here = tl.program_id(0).to(tl.int64)
    there = tl.load(order + here).to(tl.int64)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        if GATHERS:
            value = tl.load(source + there * width + column, mask=column < width, other=0.0)
            tl.store(target + here * width + column, value, mask=column < width)
        else:
            value = tl.load(source + here * width + column, mask=column < width, other=0.0)
            tl.store(target + there * width + column, value, mask=column < width)


def order_of(
    choice: Int[Tensor, " tokens"], num_experts: int
) -> tuple[Int[Tensor, " tokens"], Int[Tensor, " experts"]]:
    """The tokens in the order of their experts, and where each expert's tokens end; as
    `thrifty.moe.grouped.sorted_by_expert`, in one launch."""
    order = torch.empty(len(choice), dtype=torch.int32, device=choice.device)
    ends = torch.empty(num_experts, dtype=torch.int32, device=choice.device)
    _order[(num_experts,)](choice, order, ends, len(choice), BLOCK=4096, num_warps=8)
    return order, ends


def gathered(x: Float[Tensor, "tokens d"], order: Int[Tensor, " rows"]) -> Float[Tensor, "rows d"]:
    """The rows of `x` that `order` lists, one after the other."""
    rows = torch.empty(len(order), x.shape[1], dtype=x.dtype, device=x.device)
    _moved(x, order, rows, True)
    return rows


def scatter(rows: Float[Tensor, "rows d"], order: Int[Tensor, " rows"], out: Float[Tensor, "tokens d"]) -> None:
    """Write each of `rows` to the row of `out` that `order` names."""
    _moved(rows, order, out, False)


def _moved(source: Tensor, order: Tensor, target: Tensor, gathers: bool) -> None:
    assert source.is_contiguous()
    assert target.is_contiguous()
    if len(order):
        block = min(4096, triton.next_power_of_2(source.shape[1]))
        _move[(len(order),)](source, order, target, source.shape[1], gathers, block, num_warps=4)
