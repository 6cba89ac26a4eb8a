"""Attention with fewer rotary pairs of queries and keys, and with values masked for each token.

Dropped pairs make queries, keys and the cache smaller, and the scale stays that of the whole head. The mask of values
saves nothing in time, since it differs from token to token: it counts as active parameters, never as speed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.moe.masking import TokenMask
from thrifty.moe.sites import Attention


class TokenMaskNetwork(nn.Module):
    """The small network of `TokenMask` as parameters, in float32."""

    def __init__(self, width: int, inner: int, head_dim: int) -> None:
        """Make room for the weights."""
        super().__init__()
        self.down = nn.Parameter(torch.empty(inner, width))
        self.norm_weight, self.norm_bias, self.shift = (nn.Parameter(torch.empty(inner)) for _ in range(3))
        self.up = nn.Parameter(torch.empty(head_dim, inner))

    def mask(self, x: Tensor, count: int) -> Tensor:
        """The mask of each token, (*tokens, head_dim)."""
        network = TokenMask(count, self.down, self.norm_weight, self.norm_bias, self.shift, self.up)
        return network(x)


class MaskedValues(nn.Module):
    """The value projection; each token's values keep the `count` channels of a head that its network chooses."""

    def __init__(self, attention: Attention, count: int, inner: int) -> None:
        """Wrap the projection of `attention`."""
        super().__init__()
        self.inner = attention.v
        self.token_mask = TokenMaskNetwork(attention.v.in_features, inner, attention.head_dim)
        self.count = count
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Masked values, and the mask kept for the output projection of the same call."""
        self.mask = self.token_mask.mask(x, self.count)
        return _times(self.inner(x), self.mask)


class MaskedOutput(nn.Module):
    """The output projection, its input masked as the values of the same token were."""

    def __init__(self, attention: Attention, values: MaskedValues) -> None:
        """Wrap the projection of `attention`."""
        super().__init__()
        self.inner = attention.o
        self._values = (values,)  # in a tuple, so that it does not become a submodule

    def forward(self, x: Tensor) -> Tensor:
        """Project the masked heads."""
        mask = self._values[0].mask
        assert mask is not None
        return self.inner(_times(x, mask))


class KeptPairs(nn.Module):
    """Which rotary pairs are left: their numbers."""

    kept: Tensor

    def __init__(self, count: int) -> None:
        """Make room for `count` numbers."""
        super().__init__()
        self.register_buffer("kept", torch.zeros(count, dtype=torch.long))

    def of(self, rotation: Tensor) -> Tensor:
        """The cosines or sines of the pairs that are left, (rows, tokens, 2 pairs)."""
        half = rotation[..., : rotation.shape[-1] // 2][..., self.kept]
        return torch.cat((half, half), -1)


class ThinAttention(nn.Module):
    """Attention whose queries and keys have `num_pairs` rotary pairs; values and output are those of `attention`."""

    def __init__(self, attention: Attention, config: Any, num_pairs: int) -> None:
        """Take over values and output of `attention`; queries and keys are to be loaded."""
        super().__init__()
        module, dim = attention.module, 2 * num_pairs
        self.config = config
        self.layer_idx: Any = module.layer_idx
        self.head_dim, self.qk_dim = attention.head_dim, dim
        self.num_key_value_groups = attention.heads // attention.kv_heads
        self.scaling = attention.head_dim**-0.5
        self.is_causal = True
        self.sliding_window: Any = getattr(module, "sliding_window", getattr(config, "sliding_window", None))
        has_bias = attention.q.bias is not None
        self.q_proj = nn.Linear(attention.q.in_features, attention.heads * dim, bias=has_bias)
        self.k_proj = nn.Linear(attention.k.in_features, attention.kv_heads * dim, bias=has_bias)
        self.v_proj: Any = module.v_proj
        self.o_proj: Any = module.o_proj
        self.pairs = KeptPairs(num_pairs)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the attention of a Llama layer."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

        shape = hidden_states.shape[:-1]
        q = self.q_proj(hidden_states).view(*shape, -1, self.qk_dim).transpose(1, 2)
        k = self.k_proj(hidden_states).view(*shape, -1, self.qk_dim).transpose(1, 2)
        v = self.v_proj(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
        cos, sin = (self.pairs.of(rotation) for rotation in position_embeddings)
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        kwargs |= {"sliding_window": self.sliding_window} if self.sliding_window else {}
        mixed, weights = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(mixed.reshape(*shape, -1).contiguous()), weights


def _times(x: Tensor, mask: Tensor) -> Tensor:
    heads = x.view(*x.shape[:-1], -1, mask.shape[-1])
    return (heads * mask[..., None, :].to(x.dtype)).view(x.shape)
