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


def trouble(model: nn.Module, coupling: Coupling, groups: Sequence[Group]) -> str:
    """Drop about half of the parts of `groups`; an empty text where the small network equals the masked one on the
    example inputs, else what went wrong. Works on copies whose batch norms have random statistics and weights."""
    generator = torch.Generator().manual_seed(0)
    keep = {group.name: half(group.size, generator) for group in groups}
    double = unsettled(copy.deepcopy(model).eval(), generator)
    with torch.no_grad():
        with masked(double, groups, keep):
            expected = tensors_of(double(*copy.deepcopy(coupling.inputs)))
        try:
            found = tensors_of(smaller(double, coupling, keep)(*copy.deepcopy(coupling.inputs)))
        except Exception as error:  # whatever the model's own code raises on sizes that it did not expect
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return f"the smaller network does not run: {said}"
    for one, other in zip(expected, found, strict=True):
        scale = float(one.abs().max()) + 1e-12
        if one.shape != other.shape or not float((one - other).abs().max()) <= TOLERANCE * scale:  # also where NaN
            return "the smaller network does not equal the masked one"
    return ""


def half(size: int, generator: torch.Generator) -> Tensor:
    """0 and 1 for about half of `size` parts each, at least one of either."""
    keep = torch.zeros(size)
    keep[torch.randperm(size, generator=generator)[: max(1, size // 2)]] = 1.0
    return keep


def unsettled(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """The model with random batch norm statistics, weights and biases, in place: equality there means equality."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                if tensor is not None:
                    drawn = torch.rand(tensor.shape, generator=generator) * (high - low) + low
                    with torch.no_grad():
                        tensor.copy_(drawn)
    return model


def tensors_of(output: object) -> list[Tensor]:
    """All tensors in what a model gives: a tensor, or lists and dictionaries of them."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else []
    return [tensor for part in parts for tensor in tensors_of(part)]
