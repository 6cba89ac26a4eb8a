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


@functools.cache
def has_triton() -> bool:
    """Whether kernels in Triton can be had."""
    return importlib.util.find_spec("triton") is not None


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
    if suits_tiles(x, down):
        from thrifty.moe.kernels.experts import run_experts

        return run_experts(x, choice, gate_up, down, activation)
    return run_offsets(x, choice, gate_up, down, activation)


def suits_tiles(x: Float[Tensor, "tokens d"], down: Float[Tensor, "experts d width"]) -> bool:
    """Whether the copy engine of a Hopper GPU can bring the tiles: rows of 16 bytes or multiples of them."""
    is_hopper = x.is_cuda and torch.cuda.get_device_capability(x.device)[0] == 9
    is_half = x.dtype in {torch.bfloat16, torch.float16}
    return is_hopper and is_half and len(x) > 0 and down.shape[1] % 8 == 0 and down.shape[2] % 8 == 0


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
