"""Gates and masks on the parts of a network: what is read through a gate, what is zero for a while, what is zero for
good."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from thrifty.prune.coupling import Group
from thrifty.prune.layout import Layout


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of `model` by name, each under all of its names."""
    parameters = model.named_parameters(remove_duplicate=False)
    return dict(parameters) | dict(model.named_buffers(remove_duplicate=False))


class Reads:
    """The weights through which the parts of a network are read, ready to be multiplied by gates. Holds good until a
    tensor changes its shape."""

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        """Find the weights that read the parts of `groups`."""
        parameters, num_parts, first = dict(model.named_parameters()), Layout.of(groups).num_parts, 0
        places: dict[tuple[str, int], Tensor] = {}
        for group in groups:
            for one in group.slices:
                if one.role == "reads":
                    size = parameters[one.tensor].shape[one.dim]
                    rows = places.setdefault((one.tensor, one.dim), torch.full((size,), num_parts))
                    rows[one.index] = torch.arange(first, first + group.size)[:, None]
            first += group.size
        self._weights = {key: parameters[key[0]] for key in places}
        self._sizes = [len(rows) for rows in places.values()]
        if places:
            self._part_of_position = torch.cat(list(places.values())).to(next(iter(self._weights.values())).device)

    def gated(self, gates: Float[Tensor, " parts"]) -> dict[str, Tensor]:
        """These weights by name, multiplied by the gates of the parts that they read; differentiable in the gates."""
        if not self._weights:
            return {}
        whole = torch.cat([gates, gates.new_ones(1)])
        factors = whole.index_select(0, self._part_of_position).split(self._sizes)
        result: dict[str, Tensor] = {}
        for ((name, dim), weight), factor in zip(self._weights.items(), factors, strict=True):
            weight = result.get(name, weight)
            form = [-1 if axis == dim else 1 for axis in range(weight.ndim)]
            result[name] = weight * factor.to(weight.dtype).view(form)
        return result


def gated(model: nn.Module, groups: Sequence[Group], gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights through which parts are read, multiplied by the gates of the parts.

    Give them to `torch.func.functional_call(model, weights, inputs)`: that equals multiplying each part's values by its
    gate wherever a layer reads them, and is differentiable in the gates. Groups without gates are left alone.
    """
    groups = [group for group in groups if group.name in gates]
    return Reads(model, groups).gated(Layout.of(groups).flat(gates)) if groups else {}


@contextmanager
def masked(model: nn.Module, groups: Sequence[Group], keep: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """The model with all that belongs to dropped parts (keep 0) at zero; given back as it was."""
    state = state_of(model)
    touched = {part.tensor for group in groups if group.name in keep for part in group.slices}
    before = {name: state[name].detach().clone() for name in touched}
    try:
        zero(model, groups, keep)
        yield model
    finally:
        with torch.no_grad():
            for name, tensor in before.items():
                state[name].copy_(tensor)


@torch.no_grad()
def zero(
    model: nn.Module, groups: Sequence[Group], keep: Mapping[str, Tensor], optimizer: Optimizer | None = None
) -> None:
    """Set all that belongs to dropped parts (keep 0) to exactly 0, in place, and the optimiser's state of it too."""
    state = state_of(model)
    for group in groups:
        if group.name not in keep:
            continue
        dropped = keep[group.name].detach().cpu() == 0
        if not dropped.any():
            continue
        for part in group.slices:
            tensor = state[part.tensor]
            index = part.index[dropped].flatten().to(tensor.device)
            for held in [tensor, *_optimizer_tensors(optimizer, tensor)]:
                held.index_fill_(part.dim, index, 0.0)


def _optimizer_tensors(optimizer: Optimizer | None, parameter: Tensor) -> list[Float[Tensor, "..."]]:
    if optimizer is None or parameter not in optimizer.state:
        return []
    held = optimizer.state[parameter]
    return [value for value in held.values() if isinstance(value, Tensor) and value.shape == parameter.shape]
