"""Top-1 experts as grouped products: tokens sorted by expert, one product for all experts. Runs in a CUDA graph."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Copies:
    """Experts that share channels as whole matrices of their own, padded to the widest: more memory, fewer steps."""

    gate_up: Float[Tensor, "experts two_width d"]
    down: Float[Tensor, "experts d width"]

    @staticmethod
    def of(mlp: Any) -> "Copies":
        """Copy the experts of a `PackedMlp` with a gate and no biases before the output."""
        members = mlp.members.bool()
        widest = -(-int(members.sum(1).max()) // 16) * 16
        index = [row.nonzero().flatten() for row in members]

        def padded(weight: Tensor) -> Tensor:
            rows = [torch.nn.functional.pad(weight[own], (0, 0, 0, widest - len(own))) for own in index]
            return torch.stack(rows).detach()

        gate_up = torch.cat((padded(mlp.gate), padded(mlp.up)), 1)
        return Copies(gate_up, padded(mlp.down).mT.contiguous())


def run_grouped(
    x: Float[Tensor, "tokens d"],
    choice: Int[Tensor, " tokens"],
    gate_up: Float[Tensor, "experts two_width d"],
    down: Float[Tensor, "experts d width"],
    gated: Callable[[Tensor], Tensor],
) -> Float[Tensor, "tokens d"]:
    """Each token through its expert; `gated` makes gate and up, side by side, into hidden channels. No length is read
    back to the CPU."""
    order, offsets = sorted_by_expert(choice, len(gate_up))
    out = grouped_product(gated(grouped_product(x[order], gate_up.mT, offsets)), down.mT, offsets)
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
