"""Several processes that train one network: what they must agree on. With one process nothing happens here."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from thrifty.errors import SettingError


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each tensor over all ranks, in one exchange."""
    if count() == 1:
        return list(tensors)
    flat = torch.cat([one.reshape(-1) for one in tensors])
    dist.all_reduce(flat)
    pieces = (flat / count()).split([one.numel() for one in tensors])
    return [piece.view_as(one) for piece, one in zip(pieces, tensors, strict=True)]


def of_first(tensor: Tensor) -> Tensor:
    """What the first rank has, on every rank."""
    if count() > 1:
        tensor = tensor.contiguous()
        dist.broadcast(tensor, 0)
    return tensor


def inner(model: nn.Module) -> nn.Module:
    """The network itself, of a model that may be wrapped for several ranks.

    Raises `SettingError` where its parameters are spread over the ranks (FSDP): a part of a group would then lie on
    several of them, and no rank could cut it. Also for `DataParallel`, whose copies of a network know nothing of gates.
    """
    if isinstance(model, DistributedDataParallel):
        return model.module
    if isinstance(model, nn.DataParallel):
        raise SettingError("a network in DataParallel cannot be pruned; use DistributedDataParallel, or one GPU")
    is_spread = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if is_spread or any(type(one).__name__ == "DTensor" for one in model.parameters()):
        raise SettingError(
            "the parameters of this model are spread over the ranks (FSDP), whose parts cannot be cut out; "
            "prune it under DistributedDataParallel, and wrap the small network in FSDP afterwards"
        )
    return model


def rewrapped(model: nn.Module) -> nn.Module:
    """A wrapper like `model` around the same network, whose parameters have changed their shapes."""
    if not isinstance(model, DistributedDataParallel):
        return model
    sync: dict[str, Any] = {} if model.broadcast_buffers else {"broadcast_buffers": False}
    return DistributedDataParallel(
        model.module,
        device_ids=model.device_ids,
        output_device=model.output_device,
        dim=model.dim,
        find_unused_parameters=model.find_unused_parameters,
        gradient_as_bucket_view=model.gradient_as_bucket_view,
        static_graph=model.static_graph,
        **sync,
    )
