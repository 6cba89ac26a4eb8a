# ruff: noqa: ANN001, ANN201, ANN202 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""Activations inside kernels, and gate and up projections side by side turned into hidden channels in one pass."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
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
def _gated(gate_up, out, size, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_here = at < size
    first = (at // width) * 2 * width + at % width
    gate = tl.load(gate_up + first, mask=is_here, other=0.0).to(tl.float32)
    up = tl.load(gate_up + first + width, mask=is_here, other=0.0).to(tl.float32)
    tl.store(out + at, (activated(gate, ACTIVATION) * up).to(out.dtype.element_ty), mask=is_here)


def gated(gate_up: Float[Tensor, "tokens two_width"], activation: str) -> Float[Tensor, "tokens width"]:
    """`activation(gate) * up` of rows that hold gate and up one after the other."""
    width = gate_up.shape[1] // 2
    out = torch.empty(gate_up.shape[0], width, dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        _gated[(triton.cdiv(out.numel(), 2048),)](
            gate_up.contiguous(), out, out.numel(), width, activation, BLOCK=2048, num_warps=8
        )
    return out
