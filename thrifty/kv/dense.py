"""Exact attention on the 16-bit parts of a cache, and the softmax over all parts. Tools that codecs call."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def sixteen_bits(dtype: str, model_dtype: torch.dtype) -> torch.dtype:
    """The dtype called `dtype`; for `auto` the model's own where it has 16 bits, else bfloat16."""
    if dtype == "auto":
        return model_dtype if model_dtype.itemsize == 2 else torch.bfloat16
    return getattr(torch, dtype)


def stack_queries(
    q: Float[Tensor, "rows q_heads queries d"], kv_heads: int
) -> Float[Tensor, "rows kv_heads stacked d"]:
    """Put the query heads that share a key head beside its queries, in float32."""
    return rearrange(q, "r (h g) q d -> r h (g q) d", h=kv_heads).float()


def unstack_queries(
    out: Float[Tensor, "rows kv_heads stacked d"], like: Float[Tensor, "rows q_heads queries d"]
) -> Float[Tensor, "rows q_heads queries d"]:
    """The inverse of `stack_queries`, in the dtype of `like`."""
    return rearrange(out, "r h (g q) d -> r (h g) q d", q=like.shape[2]).to(like.dtype)


def scores(
    q: Float[Tensor, "rows heads stacked d"], k: Float[Tensor, "rows heads tokens d"]
) -> Float[Tensor, "rows heads stacked tokens"]:
    """q k^T in float32."""
    return q @ k.float().mT


def mix(
    weights: Float[Tensor, "rows heads stacked tokens"], v: Float[Tensor, "rows heads tokens d"]
) -> Float[Tensor, "rows heads stacked d"]:
    """weights v in float32."""
    return weights @ v.float()


def causal_softmax(
    logits: Float[Tensor, "rows heads stacked tokens"], queries: int
) -> Float[Tensor, "rows heads stacked tokens"]:
    """Softmax over the tokens, where the last `queries` of them belong to the queries and none sees a later one."""
    if queries > 1:
        tokens = logits.shape[-1]
        position = torch.arange(queries, device=logits.device).repeat(logits.shape[-2] // queries)
        later = torch.arange(tokens, device=logits.device) > (tokens - queries + position).unsqueeze(-1)
        logits = logits.masked_fill(later, -torch.inf)
    return logits.softmax(-1)


def attend(
    q: Float[Tensor, "rows q_heads queries d"],
    k: Float[Tensor, "rows heads tokens d"],
    v: Float[Tensor, "rows heads tokens d"],
    scale: float,
) -> Float[Tensor, "rows q_heads queries d"]:
    """Exact causal attention of the newest `queries` tokens on all, in float32; the reference of every codec."""
    weights = causal_softmax(scores(stack_queries(q, k.shape[1]), k) * scale, q.shape[2])
    return unstack_queries(mix(weights, v), q)
