"""No compression: keys and values as they are. The reference of every comparison."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.kv.blocks import Blocks, Coded, HeadShape


@dataclass(frozen=True)
class Plain:
    """Everything stays in the open block, in the model's dtype or in `dtype`."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"

    def __post_init__(self) -> None:
        """Refuse values that do not exist."""
        settings.check(self)

    @property
    def num_sinks(self) -> int:
        """None: nothing closes."""
        return 0

    def closed(self, num_tokens: int) -> tuple[int, int]:
        """Nothing closes."""
        return 0, 0

    def dense_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """`dtype`; with auto the model's own."""
        return model_dtype if self.dtype == "auto" else getattr(torch, self.dtype)

    def check(self, head_dim: int) -> None:
        """Any head will do."""

    def encode_k(self, k: Tensor, start: int) -> Coded:
        """Never called: nothing closes."""
        raise SettingError("Plain has no codes")

    def encode_v(self, v: Tensor, start: int) -> Coded:
        """Never called: nothing closes."""
        raise SettingError("Plain has no codes")

    def restore_k(self, coded: Coded) -> Tensor:
        """Never called: nothing closes."""
        raise SettingError("Plain has no codes")

    restore_v = restore_k

    def attend(self, q: Float[Tensor, "rows q_heads queries d"], blocks: Blocks, scale: float) -> Tensor:
        """PyTorch's own attention."""
        k, v = blocks.k.open.to(q.dtype), blocks.v.open.to(q.dtype)
        queries, tokens = q.shape[2], k.shape[2]
        mask = None
        if 1 < queries < tokens:
            mask = torch.ones(queries, tokens, dtype=torch.bool, device=q.device).tril(tokens - queries)
        is_causal = queries == tokens and queries > 1
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=True
        )

    def bytes_per_token(self, shape: HeadShape, num_tokens: int) -> float:
        """Two values a channel."""
        size = shape.element_bytes if self.dtype == "auto" else getattr(torch, self.dtype).itemsize
        return 2.0 * shape.kv_heads * shape.head_dim * size
