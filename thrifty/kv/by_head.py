"""Heads of one layer at different bits: heads of equal bits are held, and attended on, together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from thrifty.errors import SettingError
from thrifty.kv.blocks import Blocks, Codec, Coded, HeadShape, PairCodec, Side
from thrifty.kv.cost import with_bits


@dataclass(frozen=True)
class ByHead:
    """`inner`, but that head h has `k_bits[h]` and `v_bits[h]`; further heads start again from the first.

    Raises `SettingError` for a codec without bits, or one that codes keys and values together.
    """

    inner: Codec
    k_bits: tuple[int, ...]
    v_bits: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be held head by head."""
        if not self.k_bits or len(self.k_bits) != len(self.v_bits):
            raise SettingError(f"ByHead: bits for {len(self.k_bits)} heads of keys and {len(self.v_bits)} of values")
        if isinstance(self.inner, PairCodec):
            raise SettingError(f"{type(self.inner).__name__} cannot have other bits in each head; choose bits by layer")
        self._codecs(len(self.k_bits))

    @property
    def num_sinks(self) -> int:
        """Those of the inner codec."""
        return self.inner.num_sinks

    def closed(self, num_tokens: int) -> tuple[int, int]:
        """As the inner codec, whose bits do not matter for that."""
        return self.inner.closed(num_tokens)

    def dense_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """That of the inner codec."""
        return self.inner.dense_dtype(model_dtype)

    def check(self, head_dim: int) -> None:
        """Heads must suit the inner codec."""
        self.inner.check(head_dim)

    def encode_k(self, k: Float[Tensor, "rows heads tokens d"], start: int) -> Coded:
        """Each head by its codec; names of tensors begin with the bits."""
        return self._encode(k, lambda codec, x: codec.encode_k(x, start))

    def encode_v(self, v: Float[Tensor, "rows heads tokens d"], start: int) -> Coded:
        """Each head by its codec; names of tensors begin with the bits."""
        return self._encode(v, lambda codec, x: codec.encode_v(x, start))

    def restore_k(self, coded: Coded) -> Float[Tensor, "rows heads tokens d"]:
        """What the codes of each head stand for."""
        return self._restore(coded, lambda codec, part: codec.restore_k(part))

    def restore_v(self, coded: Coded) -> Float[Tensor, "rows heads tokens d"]:
        """What the codes of each head stand for."""
        return self._restore(coded, lambda codec, part: codec.restore_v(part))

    def attend(self, q: Float[Tensor, "rows q_heads queries d"], blocks: Blocks, scale: float) -> Tensor:
        """Each group of heads by its codec."""
        heads = blocks.k.open.shape[1]
        grouped = rearrange(q, "r (h g) q d -> r h g q d", h=heads)
        out = torch.empty_like(grouped)
        for codec, own in self._codecs(heads).items():
            part = Blocks(_side(blocks.k, codec, own), _side(blocks.v, codec, own))
            mixed = codec.attend(grouped[:, own].flatten(1, 2), part, scale)
            out[:, own] = mixed.unflatten(1, (len(own), -1))
        return out.flatten(1, 2)

    def bytes_per_token(self, shape: HeadShape, num_tokens: int) -> float:
        """The sum over the heads."""
        groups = self._codecs(shape.kv_heads).items()
        return sum(codec.bytes_per_token(replace(shape, kv_heads=len(own)), num_tokens) for codec, own in groups)

    def _codecs(self, num_heads: int) -> dict[Codec, list[int]]:
        """The codec of each pair of bits, and its heads."""
        found: dict[Codec, list[int]] = {}
        for head in range(num_heads):
            turn = head % len(self.k_bits)
            found.setdefault(with_bits(self.inner, self.k_bits[turn], self.v_bits[turn]), []).append(head)
        return found

    def _encode(self, x: Tensor, encode: Callable[[Codec, Tensor], Coded]) -> Coded:
        unit, tensors = 0, {}
        for codec, own in self._codecs(x.shape[1]).items():
            coded = encode(codec, x[:, own])
            unit = coded.unit
            tensors |= {_prefix(codec) + name: tensor for name, tensor in coded.tensors.items()}
        return Coded(unit, tensors)

    def _restore(self, coded: Coded, restore: Callable[[Codec, Coded], Tensor]) -> Tensor:
        heads = sum({name.partition(" ")[0]: tensor.shape[1] for name, tensor in coded.tensors.items()}.values())
        found = {}
        for codec, own in self._codecs(heads).items():
            found |= dict(zip(own, restore(codec, _part(coded, codec)).unbind(1), strict=True))
        return torch.stack([found[head] for head in range(heads)], 1)


def _prefix(codec: Any) -> str:
    return f"{codec.k_bits}/{codec.v_bits} "


def _part(coded: Coded, codec: Codec) -> Coded:
    """What `codec` made."""
    prefix = _prefix(codec)
    named = {name.removeprefix(prefix): t for name, t in coded.tensors.items() if name.startswith(prefix)}
    return replace(coded, tensors=named)


def _side(side: Side, codec: Codec, heads: list[int]) -> Side:
    closed = _part(side.closed, codec) if side.closed else None
    return Side(side.sinks[:, heads], closed, side.open[:, heads])


def for_heads(codec: Codec, k_bits: Sequence[int], v_bits: Sequence[int]) -> Codec:
    """`codec` at these bits of each head; itself, with other bits, where all heads have the same."""
    if len({*zip(k_bits, v_bits, strict=True)}) == 1:
        return with_bits(codec, k_bits[0], v_bits[0])
    return ByHead(codec, tuple(k_bits), tuple(v_bits))
