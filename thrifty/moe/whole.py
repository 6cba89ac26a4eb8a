"""Tokens on a GPU through experts with matrices of their own (the standard layout, and copies of tomoe's experts).

A few tokens are products of matrix and vector (`thrifty.moe.kernels.whole`). More are brought into the order of their
experts, and all experts are one grouped product: on a Hopper GPU by kernels in Triton that do activation and scatter on
the way (`thrifty.moe.kernels.experts`), else by torch's own, with kernels in Triton around it. No length comes back to
the CPU, so that a CUDA graph can hold everything.
"""

import functools
import importlib.util

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.moe.grouped import grouped_product


def run_whole(
    x: Float[Tensor, "tokens d"],
    choice: Int[Tensor, " tokens"],
    gate_up: Float[Tensor, "experts two_width d"],
    down: Float[Tensor, "experts d width"],
    activation: str,
) -> Float[Tensor, "tokens d"]:
    """Each token through its expert, by whichever way is faster; needs Triton, and gives no gradients."""
    from thrifty.moe.kernels.whole import MOST_TOKENS, run_vectors

    if 0 < len(x) <= MOST_TOKENS:
        return run_vectors(x, choice, gate_up, down, activation)
    if has_copy_engine(x.device) and suits_tiles(x, gate_up, down):
        from thrifty.moe.kernels.experts import run_experts

        return run_experts(x, choice, gate_up, down, activation)
    return run_offsets(x, choice, gate_up, down, activation)


@functools.cache
def has_copy_engine(device: torch.device) -> bool:
    """Whether this is a Hopper GPU, and Triton (3.4 or later) can describe tiles to its copy engine (TMA)."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device)[0] != 9:
        return False
    return importlib.util.find_spec("triton.tools.tensor_descriptor") is not None


def suits_tiles(
    x: Float[Tensor, "tokens d"],
    gate_up: Float[Tensor, "experts two_width d"],
    down: Float[Tensor, "experts d width"],
) -> bool:
    """Whether a copy engine can bring the tiles: one half-precision type, every row at a multiple of 16 bytes."""
    weights = (gate_up, down)
    is_half = x.dtype in {torch.bfloat16, torch.float16} and all(weight.dtype == x.dtype for weight in weights)
    is_aligned = all(
        weight.is_contiguous() and weight.shape[-1] % 8 == 0 and weight.data_ptr() % 16 == 0 for weight in weights
    )
    return is_half and is_aligned and len(x) > 0


def run_offsets(
    x: Float[Tensor, "tokens d"],
    choice: Int[Tensor, " tokens"],
    gate_up: Float[Tensor, "experts two_width d"],
    down: Float[Tensor, "experts d width"],
    activation: str,
) -> Float[Tensor, "tokens d"]:
    """As `thrifty.moe.grouped.run_grouped`, with kernels in Triton around the grouped products."""
    from thrifty.moe.kernels.act import gated
    from thrifty.moe.kernels.order import gathered, order_of, scatter

    order, ends = order_of(choice, len(gate_up))
    gate, up = grouped_product(gathered(x, order), gate_up.mT, ends).chunk(2, -1)
    out = torch.empty_like(x)
    scatter(grouped_product(gated(gate, up, activation), down.mT, ends), order, out)
    return out
