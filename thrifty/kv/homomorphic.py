"""Matrix products on quantised operands, without restoring either of them (HACK, arXiv 2502.03589, equation 3).

With a ~ scale_a * a' + low_a and b ~ scale_b * b' + low_b, constant over a partition of the contracted axis,

    sum a b = scale_a scale_b sum a' b'  +  low_b scale_a sum a'  +  low_a scale_b sum b'  +  size low_a low_b

so the only large product is the one of the integer codes. `sum b'` does not depend on the query: it is stored with
the codes (summation elimination) or computed again at each call. Where b's scale changes along the contracted axis
(the layout of the released code: keys per channel, values per token) it is folded into a before a is quantised, and
b counts as b' with scale 1.

Codes come as [rows, heads, blocks, tokens, groups, channels]: `tokens` of a block, `channels` of a group. Queries
and weights come as [rows, heads, queries, ...]; the query heads of one key head are stacked along `queries`. Codes
are whole numbers in float32, so products of codes are exact (see `thrifty.kv.quantise.quantise_operand`).
"""

from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from thrifty.kv.quantise import quantise_operand

Codes = Float[Tensor, "rows heads blocks tokens groups channels"]


def scores_by_channel(
    q: Float[Tensor, "rows heads queries groups channels"],
    codes: Codes,
    scale: Float[Tensor, "rows heads blocks groups channels"],
    low: Float[Tensor, "rows heads blocks groups channels"],
    sums: Float[Tensor, "rows heads blocks tokens groups"] | None,
    exact: bool,
) -> Float[Tensor, "rows heads queries blocks tokens"]:
    """q k^T for keys with one scale per channel and block, folded into the query."""
    folded = einsum(q, scale, "r h q g c, r h b g c -> r h b g q c")
    right = rearrange(codes, "r h b t g c -> r h b g c t")
    if exact:
        scores = reduce(folded @ right, "r h b g q t -> r h q b t", "sum")
    else:
        left, left_scale, left_low = quantise_operand(folded, -1)
        sums = reduce(codes, "r h b t g c -> r h b t g", "sum") if sums is None else sums
        scores = reduce((left @ right).mul_(left_scale), "r h b g q t -> r h q b t", "sum")
        scores = scores + einsum(left_low.squeeze(-1), sums, "r h b g q, r h b t g -> r h q b t")
    return scores + einsum(q, low, "r h q g c, r h b g c -> r h q b").unsqueeze(-1)


def mix_by_token(
    weights: Float[Tensor, "rows heads queries blocks tokens"],
    codes: Codes,
    scale: Float[Tensor, "rows heads blocks tokens groups"],
    low: Float[Tensor, "rows heads blocks tokens groups"],
    sums: Float[Tensor, "rows heads blocks groups channels"] | None,
    exact: bool,
) -> Float[Tensor, "rows heads queries groups channels"]:
    """weights v for values with one scale per token and channel group, folded into the weights.

    As released, the weights of the `low` term are exact and those of the code term are rounded.
    """
    folded = einsum(weights, scale, "r h q b t, r h b t g -> r h b g q t")
    right = rearrange(codes, "r h b t g c -> r h b g t c")
    if exact:
        mixed = reduce(folded @ right, "r h b g q c -> r h q g c", "sum")
    else:
        left, left_scale, left_low = quantise_operand(folded, -1)
        sums = reduce(codes, "r h b t g c -> r h b g c", "sum") if sums is None else sums
        mixed = reduce((left @ right).mul_(left_scale), "r h b g q c -> r h q g c", "sum")
        mixed = mixed + einsum(left_low.squeeze(-1), sums, "r h b g q, r h b g c -> r h q g c")
    return mixed + einsum(weights, low, "r h q b t, r h b t g -> r h q g").unsqueeze(-1)


def scores_by_token(
    q: Float[Tensor, "rows heads queries groups channels"],
    codes: Codes,
    scale: Float[Tensor, "rows heads blocks tokens groups"],
    low: Float[Tensor, "rows heads blocks tokens groups"],
    sums: Float[Tensor, "rows heads blocks tokens groups"] | None,
    exact: bool,
) -> Float[Tensor, "rows heads queries blocks tokens"]:
    """q k^T for keys with one scale per token and channel group: all four terms of equation 3."""
    right = rearrange(codes, "r h b t g c -> r h g c (b t)")
    scale, low = (rearrange(tensor, "r h b t g -> r h g 1 (b t)") for tensor in (scale, low))
    left = rearrange(q, "r h q g c -> r h g q c")
    if exact:
        scores = (left @ right) * scale + left.sum(-1, keepdim=True) * low
    else:
        size = left.shape[-1]
        left, left_scale, left_low = quantise_operand(left, -1)
        sums = reduce(codes, "r h b t g c -> r h b t g", "sum") if sums is None else sums
        sums = rearrange(sums, "r h b t g -> r h g 1 (b t)")
        scores = (left @ right) * left_scale * scale + left.sum(-1, keepdim=True) * left_scale * low
        scores = scores + left_low * sums * scale + size * left_low * low
    return rearrange(scores.sum(2), "r h q (b t) -> r h q b t", b=codes.shape[2])


def mix_by_channel(
    weights: Float[Tensor, "rows heads queries blocks tokens"],
    codes: Codes,
    scale: Float[Tensor, "rows heads blocks groups channels"],
    low: Float[Tensor, "rows heads blocks groups channels"],
    sums: Float[Tensor, "rows heads blocks groups channels"] | None,
    exact: bool,
) -> Float[Tensor, "rows heads queries groups channels"]:
    """weights v for values with one scale per channel and block: all four terms of equation 3."""
    right = rearrange(codes, "r h b t g c -> r h b t (g c)")
    scale, low = (rearrange(tensor, "r h b g c -> r h b 1 (g c)") for tensor in (scale, low))
    left = rearrange(weights, "r h q b t -> r h b q t")
    if exact:
        mixed = (left @ right) * scale + left.sum(-1, keepdim=True) * low
    else:
        size = left.shape[-1]
        left, left_scale, left_low = quantise_operand(left, -1)
        sums = reduce(codes, "r h b t g c -> r h b g c", "sum") if sums is None else sums
        sums = rearrange(sums, "r h b g c -> r h b 1 (g c)")
        mixed = (left @ right) * left_scale * scale + left.sum(-1, keepdim=True) * left_scale * low
        mixed = mixed + left_low * sums * scale + size * left_low * low
    return rearrange(mixed.sum(2), "r h q (g c) -> r h q g c", g=codes.shape[4])
