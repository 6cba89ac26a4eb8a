"""The weights of a small network back in the shapes of the whole one, with zeros where parts were dropped."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from thrifty.prune.apply import kept_indices
from thrifty.prune.coupling import Coupling


def whole_state(
    model: nn.Module, coupling: Coupling, keep: Mapping[str, Tensor], small: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state of `model` in which the parts that `keep` holds are those of the small network, all others 0.

    `small` is the state of the network that was cut to `keep`. The result computes the same as the small network does.
    """
    kept = kept_indices(model, coupling, keep)
    result = {}
    for name, whole in model.state_dict().items():
        if name not in kept:
            result[name] = small[name]
            continue
        result[name] = torch.zeros_like(whole)
        places = [kept[name].get(dim, torch.arange(size)).to(whole.device) for dim, size in enumerate(whole.shape)]
        spread = [
            place.view([-1 if axis == dim else 1 for axis in range(whole.dim())]) for dim, place in enumerate(places)
        ]
        result[name][tuple(spread)] = small[name].to(whole)
    return result
