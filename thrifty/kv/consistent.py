"""Products on codes that count a rounded weight as what it was rounded to everywhere, and need no sums of codes.

As released (`thrifty.kv.homomorphic`), HACK rounds the weights in the code term but not in the `low` term. Small
weights then round to nothing among the codes and still pull towards `low`: a bias that grows with the length. Here
the rounded weights stand in the code term, the `low` term and the normaliser alike, so every output is a true
average of restored values. Queries are rounded symmetrically and weights from 0 up, so no offset of theirs meets a
sum of codes; what rounding does to a query's sum is put right at the middle code. This is what the kernel in
`thrifty/kv/native` computes. Shapes as in `thrifty.kv.homomorphic`.
"""

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from thrifty.kv.homomorphic import Codes

_TINY = 1e-30


def scores_by_channel(
    q: Float[Tensor, "rows heads queries groups channels"],
    codes: Codes,
    scale: Float[Tensor, "rows heads blocks groups channels"],
    low: Float[Tensor, "rows heads blocks groups channels"],
    bits: int,
) -> Float[Tensor, "rows heads queries blocks tokens"]:
    """q k^T for keys with one scale per channel and block, folded into the query, then rounded to -127 .. 127."""
    middle = (2**bits - 1) / 2
    folded = einsum(q, scale, "r h q g c, r h b g c -> r h b g q c")
    step = folded.abs().amax(-1, keepdim=True).clamp_min(_TINY) / 127
    whole = (folded / step).round_()
    right = rearrange(codes, "r h b t g c -> r h b g c t")
    scores = reduce((whole @ right).mul_(step), "r h b g q t -> r h q b t", "sum")
    at_middle = einsum(q, low + middle * scale, "r h q g c, r h b g c -> r h q b")
    rounded = reduce(whole.sum(-1) * step.squeeze(-1), "r h b g q -> r h q b", "sum")
    return scores + (at_middle - middle * rounded).unsqueeze(-1)


def mix_by_token(
    weights: Float[Tensor, "rows heads queries blocks tokens"],
    codes: Codes,
    scale: Float[Tensor, "rows heads blocks tokens groups"],
    low: Float[Tensor, "rows heads blocks tokens groups"],
) -> tuple[Float[Tensor, "rows heads queries groups channels"], Float[Tensor, "rows heads queries groups"]]:
    """weights v for values with one scale per token and channel group, folded into the weights, then rounded to
    0 .. 255; with it the sum of the weights as they were rounded, by which the caller divides."""
    folded = einsum(weights, scale, "r h q b t, r h b t g -> r h b g q t")
    step = folded.amax(-1, keepdim=True).clamp_min(_TINY) / 255
    whole = (folded / step).round_()
    mixed = reduce(
        (whole @ rearrange(codes, "r h b t g c -> r h b g t c")).mul_(step), "r h b g q c -> r h q g c", "sum"
    )
    rounded = whole * step / rearrange(scale, "r h b t g -> r h b g 1 t")
    mixed = mixed + einsum(rounded, low, "r h b g q t, r h b t g -> r h q g").unsqueeze(-1)
    return mixed, reduce(rounded, "r h b g q t -> r h q g", "sum")


def normalise(
    mixed: Float[Tensor, "rows heads queries d"], totals: Float[Tensor, "rows heads queries groups"]
) -> Float[Tensor, "rows heads queries d"]:
    """Divide every channel by the sum of the weights of its group."""
    return mixed / totals.repeat_interleave(mixed.shape[-1] // totals.shape[-1], -1)


def total(*weights: Float[Tensor, "rows heads queries _"]) -> Float[Tensor, "rows heads queries 1"]:
    """The sum of exact weights."""
    return torch.stack([part.sum(-1) for part in weights]).sum(0).unsqueeze(-1)
