"""A plan becomes a smaller network: the only file that changes a shape."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim import Optimizer

from thrifty.errors import SettingError
from thrifty.plan import Plan
from thrifty.prune.coupling import Coupling
from thrifty.prune.gating import state_of
from thrifty.prune.heads import FewerHeads
from thrifty.prune.rules import prunes_whole_blocks

_COUNTS_OF = ("head", "group", "channel", "dim", "feature", "width", "hidden", "plane")
_SIZES_OF_EACH = ("head_dim", "dim_head", "head_size", "per_head", "head_width")

Kept = dict[str, dict[int, Int[Tensor, " kept"]]]


def apply(plan: Plan, model: nn.Module, coupling: Coupling) -> nn.Module:
    """A copy of `model` that has only what the plan keeps. Raises `SettingError` for a plan of another model."""
    return smaller(model, coupling, plan.keep)


def smaller(model: nn.Module, coupling: Coupling, keep: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` that has only the parts with keep 1."""
    small = copy.deepcopy(model)
    shrink(small, coupling, keep)
    return small


def kept_indices(model: nn.Module, coupling: Coupling, keep: Mapping[str, Tensor]) -> Kept:
    """For each tensor and dimension that loses something the positions that stay, ascending.

    Raises `SettingError` where `keep` is not of this model, drops parts of a frozen group, or empties a group.
    """
    groups = {group.name: group for group in coupling.groups}
    state = state_of(model)
    stays: dict[tuple[str, int], Tensor] = {}
    for name, kept in keep.items():
        group = groups.get(name)
        if group is None or group.size != kept.numel():
            found = "no group of that name" if group is None else f"a group of {group.size} parts"
            raise SettingError(f"the plan decides on {kept.numel()} parts of {name}; the model has {found}")
        gone = kept.detach().cpu().flatten() == 0
        if not gone.any():
            continue
        if group.reason or gone.all():
            why = group.reason or "all of its parts are dropped; keep at least one"
            raise SettingError(f"group {name} cannot lose these parts: {why}")
        for part in group.slices:
            key = (part.tensor, part.dim)
            stays.setdefault(key, torch.ones(state[part.tensor].shape[part.dim], dtype=torch.bool))
            stays[key][part.index[gone].flatten()] = False
    result: Kept = {}
    for (tensor, dim), mask in stays.items():
        result.setdefault(tensor, {})[dim] = mask.nonzero().flatten()
    return result


@torch.no_grad()
def shrink(
    model: nn.Module, coupling: Coupling, keep: Mapping[str, Tensor], optimizer: Optimizer | None = None
) -> None:
    """Take the dropped parts (keep 0) out of `model` in place; parameters stay the same objects.

    Gradients go; the optimiser's state of what stays, stays. A part must no longer matter before it goes: zero it first
    (`gating.zero`), and the next step of the small network is the next step of the large one.
    """
    kept = kept_indices(model, coupling, keep)
    lengths = lengths_of(coupling, keep)
    cut(model, kept, lengths, optimizer)


def cut(
    model: nn.Module,
    kept: Kept,
    lengths: Mapping[str, Mapping[int, int]],
    optimizer: Optimizer | None = None,
) -> None:
    """Slice every tensor in `kept`, and set what modules say about their sizes to what they now are.

    The optimiser's state of another shape than its tensor is forgotten. `lengths` holds for modules whose own code
    depends on a size: what it was, and what it is.
    """
    state = state_of(model)
    done: set[int] = set()
    for name, dims in kept.items():
        tensor = state[name]
        if id(tensor) in done:
            continue
        done.add(id(tensor))
        held = optimizer.state.get(tensor, {}) if optimizer is not None else {}
        for key, value in list(held.items()):
            if isinstance(value, Tensor) and value.shape == tensor.shape:
                held[key] = _sliced(value, dims)
            elif isinstance(value, Tensor) and value.numel() > 1:  # Adafactor's sums over rows and columns
                held.clear()  # begun anew: what they are of is no longer there
                break
        sliced = _sliced(tensor.data, dims)
        tensor.data = sliced.to(torch.float16 if sliced.dtype == torch.float32 else torch.float32)
        tensor.data = sliced  # by way of another type, so that autograd forgets the old shape even where a graph lives
        tensor.grad = None
    for path, module in list(model.named_modules()):
        if FewerHeads.can_replace(module):
            if len(module.in_proj_weight) != 3 * module.embed_dim:
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, FewerHeads(module))
        else:
            _tell(module, lengths.get(path, {}))


def _sliced(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    is_channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    for dim, index in dims.items():
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor.contiguous(memory_format=torch.channels_last if is_channels_last else torch.contiguous_format)


def lengths_of(coupling: Coupling, keep: Mapping[str, Tensor]) -> dict[str, dict[int, int]]:
    """For each module that holds sizes in its own code: what each was and what it becomes."""
    found: dict[str, dict[int, int]] = {}
    for size in coupling.sizes:
        length = int(size.extent.length(keep))
        if length != size.size:
            found.setdefault(size.module, {})[size.size] = length
    return found


def _tell(module: nn.Module, lengths: Mapping[int, int]) -> None:
    """Set a module's numbers of channels, features, groups and heads to what its tensors now say."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, _ConvTransposeNd):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, _ConvNd):
        if prunes_whole_blocks(module.groups, module.in_channels):
            module.groups = module.groups * weight.shape[0] // module.out_channels
        module.in_channels, module.out_channels = weight.shape[1] * module.groups, weight.shape[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, _NormBase):
        held: Any = weight if weight is not None else module.running_mean
        module.num_features = len(held) if held is not None else module.num_features
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_groups = module.num_groups * len(weight) // module.num_channels
        module.num_channels = len(weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    for name, value in list(vars(module).items()):
        is_of_each = any(word in name for word in _SIZES_OF_EACH) and not name.startswith("all_")
        is_count = any(word in name for word in _COUNTS_OF) and not is_of_each
        if is_count and isinstance(value, int) and not isinstance(value, bool) and value in lengths:
            setattr(module, name, lengths[value])
