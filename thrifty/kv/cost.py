"""What bits cost: bytes per token of a whole cache, as a function of a plan's bits."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from thrifty.budget import Keep
from thrifty.errors import SettingError
from thrifty.kv.blocks import Codec, HeadShape

WHOLE_BITS = 16


def has_bits(codec: Codec) -> bool:
    """Whether the codec has bits of keys and of values to choose."""
    return is_dataclass(codec) and {"k_bits", "v_bits"} <= {field.name for field in fields(codec)}


def with_bits(codec: Codec, k_bits: int, v_bits: int) -> Codec:
    """`codec` at other bits. Raises `SettingError` where it has no bits to choose or not these."""
    if not has_bits(codec):
        raise SettingError(f"{type(codec).__name__} has no bits to choose; use a codec with k_bits and v_bits")
    return cast("Codec", replace(cast("Any", codec), k_bits=k_bits, v_bits=v_bits))


def bytes_per_token(codec: Codec, shape: HeadShape, num_tokens: int) -> Callable[[Keep], Tensor]:
    """The cost of a keep with entries `layers.N.k` and `layers.N.v` of bits per head, in bytes per token of one
    sequence of `num_tokens`: sinks, open block, scales and sums included. 16 bits stand for a layer left plain."""
    one_head = HeadShape(1, shape.head_dim, shape.element_bytes)
    known: dict[tuple[int, int], float] = {}

    def of_head(k_bits: int, v_bits: int) -> float:
        if (k_bits, v_bits) not in known:
            if WHOLE_BITS in (k_bits, v_bits):
                known[k_bits, v_bits] = 2.0 * shape.head_dim * shape.element_bytes
            else:
                known[k_bits, v_bits] = with_bits(codec, k_bits, v_bits).bytes_per_token(one_head, num_tokens)
        return known[k_bits, v_bits]

    def cost(keep: Keep) -> Tensor:
        total = 0.0
        for name, k_bits in keep.items():
            if name.endswith(".k"):
                pairs = zip(k_bits.tolist(), keep[f"{name[:-1]}v"].tolist(), strict=True)
                total += sum(of_head(int(k), int(v)) for k, v in pairs)
        return torch.tensor(total, dtype=torch.float64)

    return cost
