"""Affine quantisation along one axis, and codes packed into bytes.

A code stands for `scale * code + low`; nothing else is ever stored for a value, which is what lets attention be
computed on the codes themselves (see `thrifty.kv.homomorphic`).
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

SHRINKS = (0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28, 0.32, 0.36, 0.4)
"""By how much `quantise_unbiased` tries to shrink the range of a group."""


def quantise(
    x: Tensor, bits: int, dim: int, dtype: torch.dtype, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise `x` to integers 0 .. 2**bits - 1 with one scale and one low along `dim`.

    scale and low are rounded to `dtype` first and the codes are chosen for the rounded pair, so a reader of the
    stored tensors restores exactly what the writer meant. Codes are nearest, or stochastic where `noise` in [0, 1)
    of the shape of `x` is given (Gupta et al., 2015: floor(y + noise)).

    Returns (codes as uint8, scale, low), the latter two with `dim` of size 1. The error of a value is at most
    scale / 2 (scale when stochastic), plus the rounding of low and of the range to `dtype`.
    """
    levels = 2**bits - 1
    x = x.float()
    low = x.amin(dim, keepdim=True)
    scale = (x.amax(dim, keepdim=True) - low) / levels
    low, scale = low.to(dtype), scale.to(dtype)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    steps = (x - low.float()) / scale.float()
    steps = steps.round() if noise is None else (steps + noise).floor()
    return steps.clamp(0, levels).to(torch.uint8), scale, low


def quantise_unbiased(x: Tensor, bits: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """As `quantise`, but what the codes of a group stand for has the mean of the group, and follows its values one to
    one: a regression of the restored on the given values has slope 1.

    The range is shrunk about its centre, by the one of `SHRINKS` whose codes correlate best with the values; values
    outside count as the nearest end. The scale of least squares would make every value a little smaller, an error that
    adds up over channels and tokens; this one only adds noise, which averages out.
    """
    levels = 2**bits - 1
    x = x.float().movedim(dim, -1)
    low, reach = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    reach, above = reach - low, x - low
    mean, variance = _moments(x)
    best, code_mean, covariance = torch.full_like(mean, -1), torch.zeros_like(mean), torch.zeros_like(mean)
    factor, offset = torch.zeros_like(reach), torch.zeros_like(reach)
    for shrink in SHRINKS:
        tried = _nearest(above, reach, (1 - shrink) / levels, shrink / 2, levels)
        tried_mean, tried_variance = _moments_of_codes(tried)
        together = (x * tried).mean(-1, keepdim=True, dtype=torch.float64) - mean * tried_mean
        correlation = together.square() / tried_variance.clamp_min(1e-9)
        is_better = correlation > best
        best = torch.where(is_better, correlation, best)
        factor = torch.where(is_better, (1 - shrink) / levels, factor)
        offset = torch.where(is_better, shrink / 2, offset)
        code_mean = torch.where(is_better, tried_mean, code_mean)
        covariance = torch.where(is_better, together, covariance)
    codes = _nearest(above, reach, factor, offset, levels)
    scale = torch.where(covariance > 0, variance / covariance, torch.zeros_like(mean)).to(dtype)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    low = (mean - scale.double() * code_mean).to(dtype)
    codes, scale, low = (found.movedim(-1, dim) for found in (codes.to(torch.uint8), scale, low))
    return codes, scale, low


def _nearest(above: Tensor, reach: Tensor, factor: Tensor | float, offset: Tensor | float, levels: int) -> Tensor:
    """The codes of values that lie `above` the low of their group, with a step of `factor` times its `reach`."""
    step = (reach * factor).clamp_min(torch.finfo(torch.float32).tiny)
    return (above - reach * offset).div_(step).round_().clamp_(0, levels)


def _moments(x: Float[Tensor, "*_ values"]) -> tuple[Float[Tensor, "*_ 1"], Float[Tensor, "*_ 1"]]:
    """Mean and variance in float64, so that the order of the sum, which depends on the shape, changes no code."""
    x = x.double()
    mean = x.mean(-1, keepdim=True)
    return mean, (x.square().mean(-1, keepdim=True) - mean.square()).clamp_min(0)


def _moments_of_codes(codes: Float[Tensor, "*_ values"]) -> tuple[Float[Tensor, "*_ 1"], Float[Tensor, "*_ 1"]]:
    """As `_moments` for whole numbers up to 255, of which float32 adds 256 squares exactly."""
    count = codes.shape[-1]
    if count > 256:
        return _moments(codes)
    mean = codes.sum(-1, keepdim=True).double() / count
    return mean, ((codes * codes).sum(-1, keepdim=True).double() / count - mean.square()).clamp_min(0)


def quantise_operand(x: Float[Tensor, "..."], dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise a query or a row of attention weights to 8 bits along `dim`; scale and low stay float32.

    The codes come back as float32 numbers that are whole: products with other codes then stay exact in float32
    as long as a sum is below 2**24, which partitions of up to 256 keep.
    """
    low = x.amin(dim, keepdim=True)
    scale = ((x.amax(dim, keepdim=True) - low) / 255).clamp_min(torch.finfo(torch.float32).tiny)
    return ((x - low) / scale).round_(), scale, low


def pack(codes: UInt8[Tensor, "... values"], bits: int) -> UInt8[Tensor, "... bytes"]:
    """Pack codes along the last axis, a multiple of 8 long, into `bits` / 8 bytes each.

    Code i of 1, 2 or 4 bits starts at bit `bits * i` (little-endian). Other widths are planes, all the four or two low
    bits and then all the rest, so that one shift and one mask unpack any width.
    """
    if bits == 8:
        return codes.contiguous()
    if low := _low_plane(bits):
        return torch.cat([pack(codes & (2**low - 1), low), pack(codes >> low, bits - low)], -1)
    fields = codes.unflatten(-1, (-1, 8 // bits))
    packed = fields[..., 0].clone()
    for index in range(1, 8 // bits):
        packed |= fields[..., index] << (bits * index)
    return packed


def unpack(packed: UInt8[Tensor, "... bytes"], bits: int) -> UInt8[Tensor, "... values"]:
    """The inverse of `pack`."""
    if bits == 8:
        return packed
    if low := _low_plane(bits):
        planes = packed.split([packed.shape[-1] // bits * low, packed.shape[-1] // bits * (bits - low)], -1)
        return unpack(planes[0], low) | (unpack(planes[1], bits - low) << low)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)


def _low_plane(bits: int) -> int:
    """The bits of the low plane of codes that do not divide a byte; 0 for those that do."""
    return 0 if bits in (1, 2, 4) else 4 if bits > 4 else 2


def position_noise(shape: torch.Size, start: int, seed: int, device: torch.device) -> Float[Tensor, "heads tokens d"]:
    """Noise in [0, 1) that depends on seed, head, absolute token position and channel, and on nothing else.

    A token gets the same noise whether it comes alone, in a chunk, or in another row of a batch, so appending one
    by one equals encoding at once. `shape` is [rows, heads, tokens, d]; the result is shared by the rows.
    """
    _, heads, tokens, width = shape
    head = torch.arange(heads, device=device).view(-1, 1, 1)
    token = torch.arange(start, start + tokens, device=device).view(1, -1, 1)
    channel = torch.arange(width, device=device).view(1, 1, -1)
    value = (token * 0x9E3779B1 + head * 0x85EBCA77 + channel * 0xC2B2AE3D + seed * 0x27D4EB2F) & 0xFFFFFFFF
    for multiplier in (0x7FEB352D, 0x846CA68B):
        value = ((value ^ (value >> 16)) * multiplier) & 0xFFFFFFFF
    return ((value ^ (value >> 16)) >> 8).float() / 2**24
