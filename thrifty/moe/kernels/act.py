# ruff: noqa: ANN001, ANN201, ANN202 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""Activations inside kernels, and gate and up projections turned into hidden channels in one pass."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor


@triton.jit
@no_type_check
def activated(x, ACTIVATION: tl.constexpr):
    """`silu`, or `gelu` in its tanh form, of float32."""
    if ACTIVATION == "silu":
        return x * (1.0 / (1.0 + tl.exp(-x)))
    else:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x * (1.0 / (1.0 + tl.exp(-2.0 * inner)))


@triton.jit
@no_type_check
def _gated(
    gate, up, choice, members, out, width, stride,
    ACTIVATION: tl.constexpr, HAS_GATE: tl.constexpr, ROUTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (row, block of columns)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_here = column < width
    value = tl.load(up + row * stride + column, mask=is_here, other=0.0).to(tl.float32)
    if HAS_GATE:
        value *= activated(tl.load(gate + row * stride + column, mask=is_here, other=0.0).to(tl.float32), ACTIVATION)
    else:
        value = activated(value, ACTIVATION)
    if ROUTED:
        expert = tl.load(choice + row).to(tl.int64)
        is_member = tl.load(members + expert * width + column, mask=is_here, other=0) > 0
        value = tl.where(is_member, value, 0.0)
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), mask=is_here)


def gated(
    gate: Float[Tensor, "tokens width"] | None, up: Float[Tensor, "tokens width"], activation: str,
    choice: Int[Tensor, " tokens"] | None = None, members: Tensor | None = None, out: Tensor | None = None,
) -> Float[Tensor, "tokens width"]:  # fmt: skip
    """`activation(gate) * up`, or `activation(up)`, in one pass; with `choice` and `members` (experts, width) zero
    where the token's expert lacks the channel. Gate and up may be halves of the same rows; `out` is contiguous."""
    out = torch.empty(up.shape, dtype=up.dtype, device=up.device) if out is None else out
    assert out.is_contiguous()
    assert up.stride(1) == 1
    assert gate is None or gate.stride() == up.stride()
    if out.numel():
        _gated[(len(out), triton.cdiv(out.shape[1], 1024))](
            up if gate is None else gate, up, up if choice is None else choice, up if members is None else members,
            out, out.shape[1], up.stride(0), activation, gate is not None, choice is not None, BLOCK=1024, num_warps=4,
        )  # fmt: skip
    return out
