"""Multi-head attention with fewer heads than its width holds, which `nn.MultiheadAttention` refuses."""

import math
from typing import TypeGuard

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


class FewerHeads(nn.Module):
    """Stands where an `nn.MultiheadAttention` stood, with its parameters under the same names.

    Its width is `num_heads * head_dim`; what it reads and gives is `embed_dim` wide as before. Made by `of`.
    """

    in_proj_weight: nn.Parameter
    in_proj_bias: nn.Parameter | None
    out_proj: nn.Linear
    _qkv_same_embed_dim = False  # so that nn.TransformerEncoderLayer calls forward, not its own kernel

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        """Take over what `whole` holds; `can_replace` must be true of it."""
        super().__init__()
        self.embed_dim, self.head_dim = whole.embed_dim, whole.head_dim
        self.num_heads = whole.in_proj_weight.shape[0] // (3 * whole.head_dim)
        self.dropout, self.batch_first = whole.dropout, whole.batch_first
        self.in_proj_weight = whole.in_proj_weight
        self.in_proj_bias = whole.in_proj_bias
        self.out_proj = whole.out_proj
        self.train(whole.training)

    @staticmethod
    def can_replace(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
        """Whether `module` is a multi-head attention of the plain kind: one matrix for q, k and v, nothing appended."""
        if not isinstance(module, nn.MultiheadAttention) or module.in_proj_weight is None:
            return False
        return module.bias_k is None and not module.add_zero_attn

    def forward(
        self,
        query: Float[Tensor, "first second width"],
        key: Float[Tensor, "_ _ width"],
        value: Float[Tensor, "_ _ width"],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward` of batched inputs; (batch, tokens, width) where `batch_first`."""
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None,) * 3
        q, k, v = (
            self._heads(functional.linear(x if self.batch_first else x.transpose(0, 1), weight, bias))
            for x, weight, bias in zip((query, key, value), self.in_proj_weight.chunk(3), biases, strict=True)
        )
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = (q @ k.transpose(-2, -1) / math.sqrt(self.head_dim) + (0 if mask is None else mask)).softmax(-1)
            mixed = functional.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _heads(self, x: Float[Tensor, "batch tokens inner"]) -> Float[Tensor, "batch heads tokens head_dim"]:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(
        self, q: Tensor, k: Tensor, padding: Bool[Tensor, "batch tokens"] | Tensor | None, mask: Tensor | None
    ) -> Tensor | None:
        """Both masks as one that is added to the scores; of a bool mask True means: not attended."""
        found = None
        for given, shape in ((padding, (len(k), 1, 1, k.shape[2])), (mask, None)):
            if given is None:
                continue
            if given.dtype == torch.bool:
                given = torch.zeros_like(given, dtype=q.dtype).masked_fill(given, -torch.inf)
            if shape is not None:
                given = given.view(shape)
            elif given.ndim == 3:  # (batch * heads, from, to)
                given = given.unflatten(0, (len(q), -1))
            found = given if found is None else found + given
        return found
