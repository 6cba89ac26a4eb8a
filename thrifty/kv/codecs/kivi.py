"""KIVI: keys per channel, values per token, both restored for attention (Liu et al., ICML 2024, arXiv:2402.02750)."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.kv import dense
from thrifty.kv.blocks import Blocks, Coded, HeadShape, restore
from thrifty.kv.quantise import pack, quantise, unpack


@dataclass(frozen=True)
class Kivi:
    """Groups of `group` values share a scale; the newest `residual` tokens stay in 16 bits.

    Keys close `residual` tokens at a time, as published. Values close `group` tokens at a time as they leave the
    window of the newest `residual` (published: one at a time), so up to `group - 1` more tokens stay in 16 bits.
    The error of a restored value is at most half a scale plus the rounding of low and scale to `dtype`.
    """

    k_bits: Literal[2, 3, 4, 8] = 2
    v_bits: Literal[2, 3, 4, 8] = 2
    group: Literal[32, 64, 128] = 32
    residual: int = 128
    dtype: Literal["auto", "bfloat16", "float16"] = "auto"

    def __post_init__(self) -> None:
        """Refuse values that do not exist."""
        settings.check(self)
        if self.residual < self.group or self.residual % self.group:
            raise SettingError(f"Kivi: residual={self.residual}; use a multiple of the group of {self.group}")

    @property
    def num_sinks(self) -> int:
        """KIVI has none."""
        return 0

    def closed(self, num_tokens: int) -> tuple[int, int]:
        """Keys by whole residuals, values as they leave the residual window."""
        keys = max(0, num_tokens - 1) // self.residual * self.residual
        values = max(0, num_tokens - self.residual) // self.group * self.group
        return keys, values

    def dense_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """`dtype`; with auto the model's own where it has 16 bits, else bfloat16."""
        return dense.sixteen_bits(self.dtype, model_dtype)

    def check(self, head_dim: int) -> None:
        """Heads must split into channel groups."""
        if head_dim % 8:
            raise SettingError(
                f"Kivi: heads of {head_dim} channels; a multiple of 8 is needed: use the codec plain, which holds any"
            )
        if head_dim % min(self.group, head_dim):
            fitting = [str(group) for group in (32, 64, 128) if head_dim % min(group, head_dim) == 0]
            remedy = f"group={' or '.join(fitting)}" if fitting else "the codec gear, which needs a multiple of 8 only"
            raise SettingError(f"Kivi: group={self.group} does not divide heads of {head_dim} channels; use {remedy}")

    def encode_k(self, k: Float[Tensor, "rows heads tokens d"], start: int) -> Coded:
        """Per channel over `group` tokens."""
        blocked = rearrange(k, "r h (b t) c -> r h b t c", t=self.group)
        codes, scale, low = quantise(blocked, self.k_bits, -2, self.dense_dtype(k.dtype))
        return Coded(self.group, {"codes": pack(codes, self.k_bits), "scale": scale, "low": low})

    def encode_v(self, v: Float[Tensor, "rows heads tokens d"], start: int) -> Coded:
        """Per token over `group` channels."""
        blocked = rearrange(v, "r h (b t) (g c) -> r h b t g c", t=self.group, c=min(self.group, v.shape[-1]))
        codes, scale, low = quantise(blocked, self.v_bits, -1, self.dense_dtype(v.dtype))
        return Coded(self.group, {"codes": pack(codes.flatten(-2), self.v_bits), "scale": scale, "low": low})

    def restore_k(self, coded: Coded) -> Float[Tensor, "rows heads tokens d"]:
        """scale * code + low."""
        codes = unpack(coded["codes"], self.k_bits).float()
        return rearrange(codes * coded["scale"].float() + coded["low"].float(), "r h b t c -> r h (b t) c")

    def restore_v(self, coded: Coded) -> Float[Tensor, "rows heads tokens d"]:
        """scale * code + low."""
        codes = rearrange(
            unpack(coded["codes"], self.v_bits).float(), "r h b t (g c) -> r h b t g c", g=coded["low"].shape[-2]
        )
        values = codes * coded["scale"].float() + coded["low"].float()
        return rearrange(values, "r h b t g c -> r h (b t) (g c)")

    def attend(self, q: Float[Tensor, "rows q_heads queries d"], blocks: Blocks, scale: float) -> Tensor:
        """Restore everything, then exact attention: the cost that computing on codes avoids."""
        return dense.attend(q, *restore(self, blocks), scale)

    def bytes_per_token(self, shape: HeadShape, num_tokens: int) -> float:
        """Codes, scale and low in 16 bits, and the residual."""
        closed_k, closed_v = self.closed(num_tokens)
        d = shape.head_dim
        k = d * self.k_bits / 8 + 4 * d / self.group
        v = d * self.v_bits / 8 + 4 * max(1.0, d / self.group)
        open_tokens = 2 * num_tokens - closed_k - closed_v
        return shape.kv_heads * (closed_k * k + closed_v * v + open_tokens * d * 2) / num_tokens
