"""The Hadamard rotation of channels, which spreads outliers over all channels before they are coded (QuaRot, 2024).

The rotation keeps products: q k^T is the same after both are rotated, and what attention mixes from rotated values is
rotated back once per query. It is its own inverse.
"""

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
