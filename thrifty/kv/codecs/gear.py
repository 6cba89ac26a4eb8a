"""GEAR: codes, the largest errors kept apart, and a low-rank rest (Kang et al., 2024, arXiv:2403.05527)."""

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
class Gear:
    """Blocks of `buffer` tokens; in each, for every head: the `outliers` share of largest and smallest values of each
    group is taken out and kept in 16 bits, the rest is coded (keys per channel, values per token), and what the codes
    miss is approximated with rank `rank` (algorithm 1 and 2 of the paper).

    Published: rank 4 over a whole prompt and 2 over a buffer of 20 tokens; here every block is a buffer, so that a
    cache does not depend on how its tokens came. `power_steps` is the number of power iterations for the low rank.
    """

    k_bits: Literal[2, 3, 4, 8] = 4
    v_bits: Literal[2, 3, 4, 8] = 4
    buffer: Literal[32, 64, 128] = 64
    rank: int = 2
    outliers: float = 0.02
    power_steps: int = 4
    dtype: Literal["auto", "bfloat16", "float16"] = "auto"

    def __post_init__(self) -> None:
        """Refuse values that do not exist."""
        settings.check(self)
        if not 1 <= self.rank <= 16 or not 0 <= self.outliers <= 0.25 or self.power_steps < 1:
            raise SettingError(
                f"Gear: rank={self.rank}, outliers={self.outliers}, power_steps={self.power_steps}; "
                "use a rank of 1 to 16, a share of 0 to 0.25, and 1 step or more"
            )

    @property
    def num_sinks(self) -> int:
        """GEAR has none."""
        return 0

    def closed(self, num_tokens: int) -> tuple[int, int]:
        """All full buffers but the one of the newest token."""
        blocks = max(0, num_tokens - 1) // self.buffer * self.buffer
        return blocks, blocks

    def dense_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """`dtype`; with auto the model's own where it has 16 bits, else bfloat16."""
        return dense.sixteen_bits(self.dtype, model_dtype)

    def check(self, head_dim: int) -> None:
        """Codes are packed eight at a time."""
        if head_dim % 8:
            raise SettingError(
                f"Gear: heads of {head_dim} channels; a multiple of 8 is needed: use the codec plain, which holds any"
            )

    def encode_k(self, k: Float[Tensor, "rows heads tokens d"], start: int) -> Coded:
        """Keys, per channel."""
        return self._encode(k, self.k_bits, along=-2)

    def encode_v(self, v: Float[Tensor, "rows heads tokens d"], start: int) -> Coded:
        """Values, per token."""
        return self._encode(v, self.v_bits, along=-1)

    def restore_k(self, coded: Coded) -> Float[Tensor, "rows heads tokens d"]:
        """Codes and low rank, with the outliers put back."""
        return self._restore(coded, self.k_bits, along=-2)

    def restore_v(self, coded: Coded) -> Float[Tensor, "rows heads tokens d"]:
        """Codes and low rank, with the outliers put back."""
        return self._restore(coded, self.v_bits, along=-1)

    def attend(self, q: Float[Tensor, "rows q_heads queries d"], blocks: Blocks, scale: float) -> Tensor:
        """Restore everything, then exact attention."""
        return dense.attend(q, *restore(self, blocks), scale)

    def bytes_per_token(self, shape: HeadShape, num_tokens: int) -> float:
        """Codes, scale and low, factors, outliers with their places, and the open block."""
        closed, _ = self.closed(num_tokens)
        d, held = shape.head_dim, 0.0
        for bits, groups, length in ((self.k_bits, d, self.buffer), (self.v_bits, self.buffer, d)):
            codes = self.buffer * d * bits / 8 + 4 * groups
            held += codes + 2 * self.rank * (self.buffer + d) + 2 * self._taken(length) * groups * 3
        block = held / self.buffer
        return shape.kv_heads * (closed * block + (num_tokens - closed) * 2 * d * 2) / num_tokens

    def _taken(self, length: int) -> int:
        """Outliers on either side of a group of `length` values."""
        return round(self.outliers / 2 * length)

    def _encode(self, x: Tensor, bits: int, along: int) -> Coded:
        blocks = rearrange(x, "r h (b t) c -> r h b t c", t=self.buffer)
        # Block by block: sums in a product may depend on how many there are, and a cache must not.
        parts = [self._encode_block(block.float(), bits, along, x.dtype) for block in blocks.split(1, 2)]
        return Coded(self.buffer, {name: torch.cat([part[name] for part in parts], 2) for name in parts[0]})

    def _encode_block(self, x: Tensor, bits: int, along: int, model_dtype: torch.dtype) -> dict[str, Tensor]:
        stored = self.dense_dtype(model_dtype)
        taken = self._taken(x.shape[along])
        order = x.argsort(along)
        length = x.shape[along]
        places = torch.cat([order.narrow(along, 0, taken), order.narrow(along, length - taken, taken)], along)
        values = x.gather(along, places).to(stored)
        # An outlier counts as the middle of the others while the group is coded; its place restores its value.
        rest = x.scatter(along, places, torch.nan).nanmean(along, keepdim=True)
        inner = x.scatter(along, places, rest.expand(places.shape).contiguous()) if taken else x
        codes, scale, low = quantise(inner, bits, along, stored)
        missed = inner - (codes * scale.float() + low.float())
        left, right = self._low_rank(missed)
        tensors = {"codes": pack(codes, bits), "scale": scale, "low": low}
        tensors |= {"left": left.to(stored), "right": right.to(stored)}
        return tensors | {"outliers": values, "places": places.to(torch.uint8)}

    def _low_rank(self, x: Float[Tensor, "*batch tokens d"]) -> tuple[Tensor, Tensor]:
        """Factors [tokens, rank] and [rank, d] of the best approximation, by power iteration from fixed vectors."""
        generator = torch.Generator().manual_seed(0)
        right = torch.randn(x.shape[-1], self.rank, generator=generator).to(x.device).expand(*x.shape[:-2], -1, -1)
        left = x @ right
        for _ in range(self.power_steps):
            left = torch.linalg.qr(left)[0]
            left = x @ (x.mT @ left)
        left = torch.linalg.qr(left)[0]
        return left, left.mT @ x

    def _restore(self, coded: Coded, bits: int, along: int) -> Tensor:
        codes = unpack(coded["codes"], bits).float()
        x = codes * coded["scale"].float() + coded["low"].float() + coded["left"].float() @ coded["right"].float()
        x = x.scatter(along, coded["places"].long(), coded["outliers"].float())
        return rearrange(x, "r h b t c -> r h (b t) c")
