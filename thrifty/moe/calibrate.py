"""What the MLPs see: one pass of the dense model over some windows, layer after layer."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.moe.distill import hidden_states
from thrifty.moe.job import MoeJob
from thrifty.moe.sites import Site

Look = Callable[[Site, Float[Tensor, "tokens d"], Float[Tensor, "tokens channels"]], None]
"""Called once a layer with the inputs of its MLP and the inputs of its down projection, of all tokens, in float32."""


@torch.no_grad()
def visit(job: MoeJob, look: Look, windows: Int[Tensor, "windows window"] | None = None) -> None:
    """Call `look` for each layer in order. All windows pass a layer together, so that what a layer sees is in memory
    while it is looked at and no longer; choose `job.calibration` by the memory there is."""
    seen: dict[int, Tensor] = {}
    handles = []
    for site in job.sites:

        def enter(module: torch.nn.Module, inputs: tuple[Tensor, ...], site: Site = site) -> None:
            seen[site.index] = inputs[0].flatten(0, -2)

        def leave(module: torch.nn.Module, inputs: tuple[Tensor, ...], site: Site = site) -> None:
            look(site, seen.pop(site.index).float(), inputs[0].flatten(0, -2).float())

        handles += [site.mlp.register_forward_pre_hook(enter), site.down.register_forward_pre_hook(leave)]
    try:
        hidden_states(job.model, job.calibration_windows() if windows is None else windows)
    finally:
        for handle in handles:
            handle.remove()


LookAtAttention = Callable[
    [Site, Float[Tensor, "tokens d"], Float[Tensor, "tokens q"], Float[Tensor, "tokens k"], Float[Tensor, "tokens o"]],
    None,
]
"""Called once a layer with the inputs of its attention, its queries and keys before the rotation, and the inputs of its
output projection, of all tokens, in float32."""


@torch.no_grad()
def visit_attention(job: MoeJob, look: LookAtAttention) -> None:
    """Call `look` for each layer in order, as `visit` does."""
    seen: dict[str, Tensor] = {}
    handles = []
    for site in job.sites:

        def enter(module: torch.nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
            seen["x"] = inputs[0] if inputs else keywords["hidden_states"]

        def leave(module: torch.nn.Module, inputs: tuple[Tensor, ...], site: Site = site) -> None:
            sides = (seen.pop("x"), seen.pop("q"), seen.pop("k"), inputs[0])
            look(site, *(side.flatten(0, -2).float() for side in sides))

        attention = site.attention
        handles.append(attention.module.register_forward_pre_hook(enter, with_kwargs=True))
        for name, side in (("q", attention.q), ("k", attention.k)):

            def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                seen[name] = output

            handles.append(side.register_forward_hook(keep))
        handles.append(attention.o.register_forward_pre_hook(leave))
    try:
        hidden_states(job.model, job.calibration_windows())
    finally:
        for handle in handles:
            handle.remove()


def column_norms(site: Site) -> Float[Tensor, " channels"]:
    """How strongly each channel of the MLP is heard: the norm of its column in the down projection, in float32."""
    return site.down.weight.detach().float().norm(dim=0)
