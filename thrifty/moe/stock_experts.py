"""Top-1 experts of stock mixtures (Mixtral, Qwen2-MoE, Qwen3-MoE) run without copies of weights.

Registered under the name `thrifty` with transformers' experts interface; `thrifty.moe.apply.load` chooses it. One
token on a CPU reads its expert as a view. More tokens are sorted, and each expert is one product on its contiguous
weights; on a GPU all experts are one grouped product without a length that comes back to the CPU, so that it can be
captured in a CUDA graph (`thrifty.moe.whole`).
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

IMPLEMENTATION = "thrifty"


def register_experts() -> None:
    """Make transformers know the implementation; a second call changes nothing."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, run_experts)


def run_experts(
    experts: Any,
    hidden_states: Float[Tensor, "tokens d"],
    top_k_index: Int[Tensor, "tokens k"],
    top_k_weights: Float[Tensor, "tokens k"],
) -> Float[Tensor, "tokens d"]:
    """As the forward of a stock experts module. For several experts a token it hands over to transformers' grouped
    products."""
    if top_k_index.shape[1] > 1 or experts.has_bias or experts.is_transposed or not experts.has_gate:
        from transformers.integrations.moe import grouped_mm_experts_forward

        return grouped_mm_experts_forward(experts, hidden_states, top_k_index, top_k_weights)
    choice = top_k_index[:, 0]
    if hidden_states.is_cuda:
        with torch.cuda.device(hidden_states.device):  # Triton launches on the current GPU
            out = _on_gpu(experts, hidden_states.contiguous(), choice)
    else:
        out = run_views(hidden_states, choice, experts.gate_up_proj, experts.down_proj, experts.act_fn)
    return out * top_k_weights.to(out.dtype)


def _on_gpu(experts: Any, x: Tensor, choice: Tensor) -> Tensor:
    from transformers.integrations import moe

    from thrifty.moe.experts import KERNEL_NAMES
    from thrifty.moe.grouped import run_grouped
    from thrifty.moe.whole import run_whole
    from thrifty.native_build import has_triton

    gated = experts._apply_gate  # transformers' own way to say how gate and up become hidden channels
    name = KERNEL_NAMES.get(type(experts.act_fn).__name__)
    is_usual = type(experts)._apply_gate is getattr(moe, "_default_apply_gate", None)
    if name and is_usual and has_triton() and not torch.is_grad_enabled() and x.dtype == experts.down_proj.dtype:
        return run_whole(x, choice, experts.gate_up_proj, experts.down_proj, name)
    return run_grouped(x, choice, experts.gate_up_proj, experts.down_proj, gated)


def run_views(x: Tensor, choice: Tensor, gate_up: Tensor, down: Tensor, activation: Any) -> Tensor:
    """Experts on views of their weights: `gate_up` (experts, 2 width, d), `down` (experts, d, width)."""
    if len(x) == 1:
        return _expert(x, gate_up[int(choice)], down[int(choice)], activation)
    order = choice.argsort(stable=True)
    counts = torch.bincount(choice, minlength=len(gate_up)).tolist()
    parts = [
        _expert(rows, gate_up[number], down[number], activation)
        for number, rows in enumerate(x[order].split(counts))
        if len(rows)
    ]
    return torch.empty_like(x).index_copy(0, order, torch.cat(parts))


def _expert(x: Tensor, gate_up: Tensor, down: Tensor, activation: Any) -> Tensor:
    gate, up = linear(x, gate_up).chunk(2, -1)
    return linear(activation(gate) * up, down)
