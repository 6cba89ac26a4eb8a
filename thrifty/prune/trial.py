"""Try groups out: does the small network equal the masked one on the example inputs?"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thrifty.prune.apply import smaller
from thrifty.prune.coupling import Coupling, Group
from thrifty.prune.gating import masked

TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the largest output."""


SHARES = (1 / 3, 3 / 4, 1 / 2, 2 / 3, 1 / 4)
"""Kept of neighbouring groups: no two alike, or a size that two groups have in common could hide that they share it."""


def trouble(model: nn.Module, coupling: Coupling, groups: Sequence[Group]) -> str:
    """Drop about half of the parts of `groups`, then other shares of each; an empty text where the small network equals
    the masked one on the example inputs, else what went wrong. Works on copies (see `unsettled`)."""
    generator = torch.Generator().manual_seed(0)
    halves = {group.name: half(group.size, generator) for group in groups}
    said = _trouble(model, coupling, groups, halves, generator)
    if said:
        return said
    shares = [SHARES[index % len(SHARES)] for index in range(len(groups))]
    parts = {group.name: some(group.size, share, generator) for group, share in zip(groups, shares, strict=True)}
    return _trouble(model, coupling, groups, parts, generator)


def _trouble(
    model: nn.Module,
    coupling: Coupling,
    groups: Sequence[Group],
    keep: dict[str, Tensor],
    generator: torch.Generator,
) -> str:
    double = unsettled(copy.deepcopy(model).eval(), generator)
    with torch.no_grad():
        with masked(double, groups, keep):
            expected = tensors_of(double(*copy.deepcopy(coupling.inputs)))
        try:
            found = tensors_of(smaller(double, coupling, keep)(*copy.deepcopy(coupling.inputs)))
        except Exception as error:  # whatever the model's own code raises on sizes that it did not expect
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return f"the smaller network does not run: {said}"
    if not expected:
        return "its output holds no tensors to compare"
    for one, other in zip(expected, found, strict=True):
        scale = float(one.double().abs().max()) + 1e-12
        is_close = one.shape == other.shape and float((one.double() - other).abs().max()) <= TOLERANCE * scale
        if not is_close:  # also where it is no number
            return "the smaller network does not equal the masked one"
    return ""


def half(size: int, generator: torch.Generator) -> Tensor:
    """0 and 1 for about half of `size` parts each, at least one of either."""
    return some(size, 1 / 2, generator)


def some(size: int, share: float, generator: torch.Generator) -> Tensor:
    """1 for about this share of `size` parts, at least one; 0 for the rest, at least one where there are two."""
    keep = torch.zeros(size)
    keep[torch.randperm(size, generator=generator)[: max(1, int(size * share))]] = 1.0
    return keep


@torch.no_grad()
def unsettled(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """The model with random batch norm statistics, and random values where a parameter is constant or nearly zero (as
    norms and layer scales are at first), in place: outputs that are equal there are equal for a reason."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            _draw(module.running_mean, -0.5, 0.5, generator)
            _draw(module.running_var, 0.5, 1.5, generator)
            _draw(module.bias, -0.5, 0.5, generator)
    for parameter in model.parameters():
        is_settled = parameter.numel() > 0 and (parameter.abs().max() < 0.01 or parameter.max() == parameter.min())
        if is_settled and parameter.ndim > 1:
            reach = (parameter.numel() / len(parameter)) ** -0.5
            _draw(parameter, -reach, reach, generator)
        elif is_settled:
            _draw(parameter, 0.5, 1.5, generator)
    return model


def _draw(tensor: Tensor | None, low: float, high: float, generator: torch.Generator) -> None:
    if tensor is not None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)


def tensors_of(output: object) -> list[Tensor]:
    """All tensors in what a model gives: a tensor, or lists and dictionaries of them."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else []
    return [tensor for part in parts for tensor in tensors_of(part)]
