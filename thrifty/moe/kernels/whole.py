# ruff: noqa: ANN001, ANN202 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""A few tokens through experts with matrices of their own (the standard layout), as products of matrix and vector.

Each token reads the matrices of its expert: one token needs a fraction of the dense MLP, several read as many times as
much. Two launches, of which the second loads its first rows while the first one ends, where the GPU can. Nothing comes
back to the CPU.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.moe.kernels.act import activated
from thrifty.moe.kernels.single import overlaps

MOST_TOKENS = 4
"""With more tokens grouped products run. Four take 242 us here, eight 429 in grouped products (H100, 8 experts of a
Llama-3-8B layer, results/moe_speed_gpu.jsonl); five to seven were not measured side by side."""


@triton.jit
@no_type_check
def _products(
    x, choice, weight, out, num_rows, num_out, width,
    STEPS: tl.constexpr, COLUMNS: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Program (rows, token): some numbers of the token's vector, each the product of a row of its expert's matrix and
    `x`; `GATED`: of the two rows of gate and up. Rows are loaded before those before them are used, and the first ones
    before the kernel before this one has ended: weights and choice do not depend on it."""
    token = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * STEPS
    column = tl.arange(0, COLUMNS)
    is_column = column < width
    apart = num_out.to(tl.int64) * width  # from a row of gate to that of up
    place = weight + (tl.load(choice + token).to(tl.int64) * num_rows + first) * width + column
    row = tl.load(place, mask=is_column & (first < num_out), other=0.0)
    if GATED:
        side = tl.load(place + apart, mask=is_column & (first < num_out), other=0.0)
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
    elif OVERLAP:
        tl.extra.cuda.gdc_wait()
    value = tl.load(x + token * width + column, mask=is_column, other=0.0).to(tl.float32)
    last = tl.minimum(first + STEPS, num_out)
    for number in range(first, last):
        place += width
        next_row = tl.load(place, mask=is_column & (number + 1 < last), other=0.0)
        if GATED:
            next_side = tl.load(place + apart, mask=is_column & (number + 1 < last), other=0.0)
        result = tl.sum(row.to(tl.float32) * value, 0)
        if GATED:
            result = activated(result, ACTIVATION) * tl.sum(side.to(tl.float32) * value, 0)
            side = next_side
        tl.store(out + token * num_out + number, result.to(out.dtype.element_ty))
        row = next_row


def run_vectors(
    x: Float[Tensor, "tokens d"],
    choice: Int[Tensor, " tokens"],
    gate_up: Float[Tensor, "experts two_width d"],
    down: Float[Tensor, "experts d width"],
    activation: str,
    steps: int = 8,
) -> Float[Tensor, "tokens d"]:
    """Each token through its expert."""
    (tokens, width), channels = x.shape, down.shape[2]
    assert gate_up.is_contiguous()
    assert down.is_contiguous()
    hidden = torch.empty(tokens, channels, dtype=torch.float32, device=x.device)
    out, overlap = torch.empty_like(x), overlaps(x.device)
    products = ((x, gate_up, hidden, width, True), (hidden, down, out, channels, False))
    for source, weight, target, size, is_first in products:
        columns = triton.next_power_of_2(size)
        early = {"launch_pdl": True} if overlap and not is_first else {}
        _products[(triton.cdiv(target.shape[1], steps), tokens)](
            source, choice, weight, target, weight.shape[1], target.shape[1], size, steps, columns, is_first,
            activation, overlap, num_warps=4 if columns <= 4096 else 8, **early,
        )  # fmt: skip
    return out
