# ruff: noqa: ANN001, ANN202, SIM108 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""A few tokens (decoding) through experts that share stored channels, in Triton.

Time here is bytes of weights. Channels are walked in the order in which they are stored, all tokens together: a tile
that no token's expert has is skipped, and of other tiles only the rows that some token needs are read, each once. One
token reads what its expert has; many tokens of all experts read at most what the dense MLP reads. As experts are a few
runs of rows (`thrifty.moe.packing`), nearly every tile is either skipped or read whole.

Four launches: route, hidden channels, output (its sum over channels split over programs), joining the splits. Nothing
comes back to the CPU, so that a CUDA graph can hold them.
"""

from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.moe.kernels.act import activated

MOST_TOKENS = 64


@dataclass(frozen=True)
class Tuning:
    """How the kernels run: channels and columns of a tile, splits of the sum, warps and stages."""

    channels: int = 16
    columns: int = 128
    warps: int = 4
    stages: int = 4
    out_channels: int = 64
    out_columns: int = 128
    out_warps: int = 4
    splits: int = 16


_USUAL = Tuning()


@triton.jit
@no_type_check
def _route(
    x, router, choice, tokens, num_experts, width,
    ROWS: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program: some tokens. The first of the largest of `router x`, in float32."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    is_token = token < tokens
    is_expert = expert < num_experts
    total = tl.zeros((ROWS, EXPERTS), tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        is_column = column < width
        at = token[:, None] * width + column[None, :]
        value = tl.load(x + at, mask=is_token[:, None] & is_column[None, :], other=0.0).to(tl.float32)
        at = expert[:, None] * width + column[None, :]
        weight = tl.load(router + at, mask=is_expert[:, None] & is_column[None, :], other=0.0).to(tl.float32)
        total += tl.sum(value[:, None, :] * weight[None, :, :], 2)
    total = tl.where(is_expert[None, :], total, float("-inf"))
    tl.store(choice + token, tl.argmax(total, 1).to(tl.int32), mask=is_token)


@triton.jit
@no_type_check
def _split(router, parts, num_experts, width, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """Program: some columns of the router, each float32 weight as a sum of three in bfloat16, and zeros."""
    expert = tl.arange(0, EXPERTS)[:, None]
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    at = expert * width + column
    is_column = (expert >= 0) & (column < width)
    rest = tl.load(router + at, mask=is_column & (expert < num_experts), other=0.0).to(tl.float32)
    for _ in tl.static_range(4):
        part = rest.to(tl.bfloat16)
        tl.store(parts + at, part, mask=is_column)
        rest -= part.to(tl.float32)
        at += EXPERTS * width


@triton.jit
@no_type_check
def _route_many(
    x, parts, choice, tokens, num_experts, width,
    ROWS: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As `_route`, of tokens in bfloat16, on tensor cores: products of two numbers in bfloat16 are exact."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.arange(0, 4 * EXPERTS)
    row = token[:, None].to(tl.int64) * width
    total = tl.zeros((ROWS, 4 * EXPERTS), tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        mask = (token < tokens)[:, None] & (column < width)[None, :]
        value = tl.load(x + row + column[None, :], mask=mask, other=0.0)
        at = part[None, :] * width + column[:, None]
        total = tl.dot(value, tl.load(parts + at, mask=(column < width)[:, None], other=0.0), total)
    score = tl.sum(total.reshape(ROWS, 4, EXPERTS), 1)
    score = tl.where((tl.arange(0, EXPERTS) < num_experts)[None, :], score, float("-inf"))
    tl.store(choice + token, tl.argmax(score, 1).to(tl.int32), mask=token < tokens)


@triton.jit
@no_type_check
def _owned(choice, members, channel, token, tokens, stored, ROUTED: tl.constexpr):
    """Which channels each token has, [channels, tokens], 0 or 1."""
    is_here = (channel < stored)[:, None] & (token < tokens)[None, :]
    if ROUTED:
        expert = tl.load(choice + token, mask=token < tokens, other=0)
        at = expert[None, :].to(tl.int64) * stored + channel[:, None]
        return tl.load(members + at, mask=is_here, other=0).to(tl.int32)
    else:
        return is_here.to(tl.int32)


@triton.jit
@no_type_check
def _hidden(
    x, choice, members, gate, up, gate_bias, up_bias, hidden, tokens, stored, width,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, ROUTED: tl.constexpr,
    HAS_GATE: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program: a tile of channels for all tokens."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    token = tl.arange(0, TOKENS)
    owned = _owned(choice, members, channel, token, tokens, stored, ROUTED)
    is_read = tl.max(owned, 1) > 0
    if tl.max(is_read.to(tl.int32), 0) > 0:
        opened = tl.zeros((CHANNELS, TOKENS), tl.float32)
        raised = tl.zeros((CHANNELS, TOKENS), tl.float32)
        row = channel[:, None].to(tl.int64) * width
        for first in range(0, width, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            is_column = column < width
            at = row + column[None, :]
            mask = is_read[:, None] & is_column[None, :]
            seen = (token < tokens)[None, :] & is_column[:, None]
            value = tl.load(x + token[None, :] * width + column[:, None], mask=seen, other=0.0)
            raised = tl.dot(tl.load(up + at, mask=mask, other=0.0), value, raised, input_precision=PRECISION)
            if HAS_GATE:
                opened = tl.dot(tl.load(gate + at, mask=mask, other=0.0), value, opened, input_precision=PRECISION)
        if HAS_BIAS:
            raised += tl.load(up_bias + channel, mask=is_read, other=0.0).to(tl.float32)[:, None]
            if HAS_GATE:
                opened += tl.load(gate_bias + channel, mask=is_read, other=0.0).to(tl.float32)[:, None]
        if HAS_GATE:
            value = activated(opened, ACTIVATION) * raised
        else:
            value = activated(raised, ACTIVATION)
        at = token[None, :] * stored + channel[:, None]
        tl.store(hidden + at, value.to(hidden.dtype.element_ty), mask=owned > 0)


@triton.jit
@no_type_check
def _output(
    hidden, choice, members, down, part, tokens, stored, width, splits,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, ROUTED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (columns, split): what every `splits`-th tile of channels adds to these columns."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    token = tl.arange(0, TOKENS)
    is_column = column < width
    total = tl.zeros((COLUMNS, TOKENS), tl.float32)
    for first in range(split * CHANNELS, stored, splits * CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        owned = _owned(choice, members, channel, token, tokens, stored, ROUTED)
        is_read = tl.max(owned, 1) > 0
        if tl.max(is_read.to(tl.int32), 0) > 0:
            at = channel[:, None].to(tl.int64) * width + column[None, :]
            weight = tl.load(down + at, mask=is_read[:, None] & is_column[None, :], other=0.0)
            value = tl.load(hidden + token[None, :] * stored + channel[:, None], mask=owned > 0, other=0.0)
            total = tl.dot(tl.trans(weight), value, total, input_precision=PRECISION)
    at = (split * tokens + token[None, :]).to(tl.int64) * width + column[:, None]
    tl.store(part + at, total, mask=(token < tokens)[None, :] & is_column[:, None])


@triton.jit
@no_type_check
def _join(part, bias, out, size, width, splits, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """Program: some numbers of the output, summed over the splits."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_here = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        total += tl.load(part + split * size + at, mask=is_here, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + at % width, mask=is_here, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=is_here)


def route(x: Float[Tensor, "tokens d"], router: Float[Tensor, "experts d"]) -> Int[Tensor, " tokens"]:
    """The expert of each token."""
    tokens, width = x.shape
    choice = torch.empty(tokens, dtype=torch.int32, device=x.device)
    experts, rows = triton.next_power_of_2(len(router)), 1 if tokens <= MOST_TOKENS else 8
    if tokens > MOST_TOKENS and x.dtype == torch.bfloat16:
        experts = max(8, experts)
        parts = torch.empty(4 * experts, width, dtype=x.dtype, device=x.device)
        _split[(triton.cdiv(width, 128),)](router, parts, len(router), width, experts, BLOCK=128, num_warps=4)
        rows, block = (32, max(32, 2048 // experts)) if experts <= 64 else (16, 32)
        _route_many[(triton.cdiv(tokens, rows),)](
            x, parts, choice, tokens, len(router), width, rows, experts, block, num_warps=4,
            num_stages=4 if experts <= 64 else 2,
        )  # fmt: skip
        return choice
    block = max(32, 8192 // experts // rows)
    _route[(triton.cdiv(tokens, rows),)](
        x, router, choice, tokens, len(router), width, rows, experts, BLOCK=block, num_warps=4
    )
    return choice


def run_few(
    mlp: Any, x: Float[Tensor, "tokens d"], choice: Int[Tensor, " tokens"] | None, activation: str,
    tuning: Tuning = _USUAL,
) -> Float[Tensor, "tokens d"]:  # fmt: skip
    """At most 64 tokens through the experts of a `PackedMlp`; without `choice` all through all channels."""
    (tokens, width), stored = x.shape, mlp.shape.stored
    assert tokens <= MOST_TOKENS
    padded = max(16, triton.next_power_of_2(tokens))
    hidden = torch.empty(tokens, stored, dtype=x.dtype, device=x.device)
    part = torch.empty(tuning.splits, tokens, width, dtype=torch.float32, device=x.device)
    out = torch.empty_like(x)
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    routed, nothing = choice is not None, mlp.up
    _hidden[(triton.cdiv(stored, tuning.channels),)](
        x, nothing if choice is None else choice, mlp.members, nothing if mlp.gate is None else mlp.gate, mlp.up,
        nothing if mlp.gate_bias is None else mlp.gate_bias, nothing if mlp.up_bias is None else mlp.up_bias,
        hidden, tokens, stored, width, padded, tuning.channels, tuning.columns, routed, mlp.gate is not None,
        mlp.up_bias is not None, activation, precision, num_warps=tuning.warps, num_stages=tuning.stages,
    )  # fmt: skip
    _output[(triton.cdiv(width, tuning.out_columns), tuning.splits)](
        hidden, nothing if choice is None else choice, mlp.members, mlp.down, part, tokens, stored, width,
        tuning.splits, padded, tuning.out_channels, tuning.out_columns, routed, precision, num_warps=tuning.out_warps,
    )  # fmt: skip
    bias = mlp.out_bias
    _join[(triton.cdiv(out.numel(), 256),)](
        part, nothing if bias is None else bias, out, out.numel(), width, tuning.splits, bias is not None, BLOCK=256,
        num_warps=4,
    )  # fmt: skip
    return out
