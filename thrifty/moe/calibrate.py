"""What the MLPs see: one pass of the dense model over some windows, layer after layer."""

from collections.abc import Callable

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


def column_norms(site: Site) -> Float[Tensor, " channels"]:
    """How strongly each channel of the MLP is heard: the norm of its column in the down projection, in float32."""
    return site.down.weight.detach().float().norm(dim=0)
