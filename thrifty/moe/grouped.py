"""Top-1 experts as grouped products: tokens sorted by expert, one product for all experts. Runs in a CUDA graph."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor


def run_grouped(
    x: Float[Tensor, "tokens d"],
    choice: Int[Tensor, " tokens"],
    gate_up: Float[Tensor, "experts two_width d"],
    down: Float[Tensor, "experts d width"],
    activation: Callable[[Tensor], Tensor],
) -> Float[Tensor, "tokens d"]:
    """Each token through its expert; no length is read back to the CPU."""
    order, offsets = sorted_by_expert(choice, len(gate_up))
    gate, up = grouped_product(x[order], gate_up.mT, offsets).chunk(2, -1)
    out = grouped_product(activation(gate) * up, down.mT, offsets)
    return torch.empty_like(x).index_copy_(0, order, out)


def sorted_by_expert(choice: Int[Tensor, " tokens"], num_experts: int) -> tuple[Tensor, Tensor]:
    """The tokens in the order of their experts, and where each expert's tokens end (int32)."""
    ordered, order = choice.sort(stable=True)
    experts = torch.arange(num_experts, device=choice.device, dtype=choice.dtype)
    return order, torch.searchsorted(ordered, experts, right=True).int()


def grouped_product(
    x: Float[Tensor, "tokens m"], weight: Float[Tensor, "experts m n"], offsets: Int[Tensor, " experts"]
) -> Float[Tensor, "tokens n"]:
    """`x[first:last] @ weight[expert]` for each expert, by torch's own kernel (torch 2.9 or later)."""
    product = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm  # pyright: ignore[reportPrivateImportUsage]
    return product(x, weight, offs=offsets)
