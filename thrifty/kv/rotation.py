"""The Hadamard rotation of channels, which spreads outliers over all channels before they are coded (QuaRot, 2024).

The rotation keeps products: q k^T is the same after both are rotated, and what attention mixes from rotated values is
rotated back once per query. It is its own inverse.
"""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor


def rotate(x: Float[Tensor, "*_ d"]) -> Float[Tensor, "*_ d"]:
    """Rotate the last axis, in float32, by the Walsh-Hadamard matrix of the largest power of two that divides it; wider
    heads rotate piece by piece.

    Sums and differences only: a token is rotated alike, bit for bit, whatever comes with it.
    """
    width = x.shape[-1] & -x.shape[-1]
    x, size = x.float(), 1
    while size < width:
        left, right = x.unflatten(-1, (-1, 2, size)).unbind(-2)
        x = torch.stack([left + right, left - right], -2).flatten(-3)
        size *= 2
    return x * width**-0.5


def rotate_at_once(x: Float[Tensor, "*_ d"]) -> Float[Tensor, "*_ d"]:
    """`rotate` as one product with the matrix: a tenth of the time, and the same but for rounding, which depends on
    what comes along. For what attends; what is coded needs `rotate`."""
    if torch.is_autocast_enabled(x.device.type):  # which would make a product of 16 bits of it
        return rotate(x)
    width = x.shape[-1] & -x.shape[-1]
    return (x.float().unflatten(-1, (-1, width)) @ _matrix(width, x.device)).flatten(-2)


def rotate_onto(y: Float[Tensor, "*_ d"], x: Float[Tensor, "*_ d"]) -> Float[Tensor, "*_ d"]:
    """`y + rotate_at_once(x)` of float32, in one product."""
    if torch.is_autocast_enabled(x.device.type):
        return y + rotate(x)
    width = x.shape[-1] & -x.shape[-1]
    return torch.addmm(y.reshape(-1, width), x.reshape(-1, width), _matrix(width, x.device)).view(x.shape)


@cache
def _matrix(width: int, device: torch.device) -> Float[Tensor, "width width"]:
    with torch.inference_mode(False):  # so that it serves any later call
        return rotate(torch.eye(width, device=device))
