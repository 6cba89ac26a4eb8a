"""EMS: tokens are evicted, then merged into the kept ones most like them (Li et al., 2024, arXiv:2412.08521)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.kv import dense, presets
from thrifty.kv.blocks import Blocks, Coded, CountingCodec, HeadShape, PairCodec, Side, restore
from thrifty.kv.quantise import pack, unpack

_LATE = 4096
"""A length at which every codec has long begun to close."""


@dataclass(frozen=True)
class Ems:
    """Of `unit` tokens a head keeps `kept`; what is left is coded by `inner`, a codec or preset as it would be typed.

    An evicted token joins the kept one whose key is most similar (cosine); members are averaged, keys and values alike,
    and their number counts in the softmax. So attention is the exact one on restored tokens, where a token that was
    merged is restored as its average. Where `inner` can, it attends on its integer codes, with the logarithms of the
    counts added to the scores. Bits are those of `inner` unless given.

    What differs from the paper: a codec sees no queries, so tokens are ranked not by attention scores, global and
    local, but by how little their keys resemble the mean key of the unit (KeyDiff, Park et al., 2025,
    arXiv:2504.15364). All evicted tokens are merged; the paper drops those that resemble none (its zero class). Every
    head and every stretch of a text keeps the same share, where the paper has one budget for the whole. Counts are not
    the paper's (KeepKV, Tian et al., 2025, arXiv:2504.09936, calls them votes).
    """

    inner: str = "hack"
    k_bits: Literal[2, 3, 4, 8] | None = None
    v_bits: Literal[2, 3, 4, 8] | None = None
    unit: Literal[64, 128, 256] = 128
    kept: int = 64

    def __post_init__(self) -> None:
        """Fill in the bits of `inner`; refuse values that do not exist."""
        settings.check(self)
        if not 8 <= self.kept < self.unit or self.kept % 8:
            raise SettingError(f"Ems: kept={self.kept} of {self.unit} tokens; use a multiple of 8 below {self.unit}")
        step = [
            after - before for before, after in zip(*map(self.codec.closed, (_LATE, _LATE + self.kept)), strict=True)
        ]
        if step != [self.kept] * 2 or isinstance(self.codec, PairCodec):
            raise SettingError(
                f"Ems: inner={self.inner} cannot code {self.kept} tokens of a head at a time; "
                "use another codec, or for kept a multiple of its block"
            )
        for side in ("k_bits", "v_bits"):
            object.__setattr__(self, side, getattr(self.codec, side))

    @cached_property
    def codec(self) -> Any:
        """What holds the tokens that are kept."""
        bits = {side: getattr(self, side) for side in ("k_bits", "v_bits")}
        return presets.codec_of(self.inner, {side: str(chosen) for side, chosen in bits.items() if chosen is not None})

    @property
    def num_sinks(self) -> int:
        """Those of the inner codec."""
        return self.codec.num_sinks

    def closed(self, num_tokens: int) -> tuple[int, int]:
        """All full units but the one of the newest token."""
        units = max(0, num_tokens - self.num_sinks - 1) // self.unit * self.unit
        return units, units

    def dense_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """That of the inner codec."""
        return self.codec.dense_dtype(model_dtype)

    def check(self, head_dim: int) -> None:
        """Heads must suit the inner codec."""
        try:
            self.codec.check(head_dim)
        except SettingError as error:
            raise SettingError(f"Ems: {error}") from None

    def encode_pair(
        self, k: Float[Tensor, "rows heads tokens d"], v: Float[Tensor, "rows heads tokens d"], start: int
    ) -> tuple[Coded, Coded]:
        """Choose who stays and who joins whom by the keys; code the averages, note the choice with either."""
        blocks = rearrange(k, "r h (b t) c -> r h b t c", t=self.unit)
        kept, owner = self._choose(blocks)
        choice = {"kept": pack(kept.to(torch.uint8), 1)}
        evicted = owner[~kept].view(*kept.shape[:-1], self.unit - self.kept)
        choice["owners"] = pack(evicted.to(torch.uint8), self._owner_bits)
        first = self.num_sinks + (start - self.num_sinks) // self.unit * self.kept
        coded = []
        for x, encode in ((k, self.codec.encode_k), (v, self.codec.encode_v)):
            mean = _means(rearrange(x, "r h (b t) c -> r h b t c", t=self.unit), owner, self.kept)
            inner = encode(mean.flatten(2, 3).to(x.dtype), first)
            blocked = inner.each(lambda tensor: tensor.unflatten(2, (owner.shape[2], -1)))
            coded.append(Coded(self.unit, blocked.tensors | choice))
        return coded[0], coded[1]

    def encode_k(self, k: Tensor, start: int) -> Coded:
        """Never called: see `encode_pair`."""
        raise SettingError("Ems codes keys and values together")

    def encode_v(self, v: Tensor, start: int) -> Coded:
        """Never called: see `encode_pair`."""
        raise SettingError("Ems codes keys and values together")

    def restore_k(self, coded: Coded) -> Float[Tensor, "rows heads tokens d"]:
        """For each token what the codes of its representative stand for."""
        return self._spread(self.codec.restore_k(self._inner(coded)), coded)

    def restore_v(self, coded: Coded) -> Float[Tensor, "rows heads tokens d"]:
        """For each token what the codes of its representative stand for."""
        return self._spread(self.codec.restore_v(self._inner(coded)), coded)

    def attend(self, q: Float[Tensor, "rows q_heads queries d"], blocks: Blocks, scale: float) -> Tensor:
        """By the inner codec, on its codes, each as often as its tokens. Queries are among the tokens still open."""
        if blocks.k.closed is None or blocks.v.closed is None:
            return self.codec.attend(q, blocks, scale)
        if not isinstance(self.codec, CountingCodec):
            return dense.attend(q, *restore(self, blocks), scale)
        inner = (Side(x.sinks, self._inner(x.closed), x.open) for x in (blocks.k, blocks.v) if x.closed)
        owner = self.owner(blocks.k.closed)
        counts = torch.zeros(*owner.shape[:3], self.kept, device=owner.device)
        counts.scatter_add_(3, owner, torch.ones_like(owner, dtype=counts.dtype))
        return self.codec.attend_counted(q, Blocks(*inner), counts.flatten(2), scale)

    def owner(self, coded: Coded) -> Int[Tensor, "rows heads units tokens"]:
        """Which of the kept tokens of its unit stands for each token."""
        kept = unpack(coded["kept"], 1).bool()
        return (kept.long().cumsum(-1) - 1).masked_scatter(~kept, unpack(coded["owners"], self._owner_bits).long())

    def bytes_per_token(self, shape: HeadShape, num_tokens: int) -> float:
        """What the kept tokens cost the inner codec, the choice, noted twice, and sinks and open tokens in 16 bits."""
        before, after = (self.codec.bytes_per_token(shape, n) * n for n in (_LATE, _LATE + self.kept))
        choice = self.unit / 8 + (self.unit - self.kept) * self._owner_bits / 8
        units = self.closed(num_tokens)[0] // self.unit
        dense_tokens = num_tokens - units * self.unit
        held = units * (after - before + 2 * shape.kv_heads * choice)
        return (held + dense_tokens * shape.kv_heads * shape.head_dim * 4) / num_tokens

    @property
    def _owner_bits(self) -> int:
        return (self.kept - 1).bit_length()

    def _choose(self, k: Float[Tensor, "*batch tokens d"]) -> tuple[Tensor, Int[Tensor, "*batch tokens"]]:
        """Who is kept, and for each token the number, among the kept, of the one it joins.

        In float64, where the order of a sum, which depends on how many units come at once, changes no choice.
        """
        unit = normalize(k.double(), dim=-1)
        likeness = (unit * normalize(unit.mean(-2, keepdim=True), dim=-1)).sum(-1)
        chosen = likeness.argsort(dim=-1, stable=True)[..., : self.kept].sort(-1).values
        kept = torch.zeros_like(likeness, dtype=torch.bool).scatter(-1, chosen, True)
        representatives = unit.gather(-2, chosen.unsqueeze(-1).expand(*chosen.shape, k.shape[-1]))
        owner = (unit @ representatives.mT).argmax(-1)
        return kept, torch.where(kept, kept.long().cumsum(-1) - 1, owner)

    def _inner(self, coded: Coded) -> Coded:
        """What the inner codec made of the kept tokens."""
        tensors = {name: tensor for name, tensor in coded.tensors.items() if name not in ("kept", "owners")}
        unit = self.kept // next(iter(tensors.values())).shape[3]
        return Coded(unit, {name: tensor.flatten(2, 3) for name, tensor in tensors.items()})

    def _spread(self, x: Float[Tensor, "rows heads kept d"], coded: Coded) -> Float[Tensor, "rows heads tokens d"]:
        owner = self.owner(coded).unsqueeze(-1)
        blocks = rearrange(x, "r h (b t) c -> r h b t c", t=self.kept)
        return blocks.gather(3, owner.expand(*owner.shape[:-1], x.shape[-1])).flatten(2, 3)


def _means(
    x: Float[Tensor, "*batch tokens d"], owner: Int[Tensor, "*batch tokens"], kept: int
) -> Float[Tensor, "*batch kept d"]:
    """The average of the tokens of each owner; in float64, one token after the other, so that it never varies."""
    index = owner.unsqueeze(-1).expand(x.shape)
    sums = torch.zeros(*x.shape[:-2], kept, x.shape[-1], dtype=torch.float64, device=x.device)
    counts = torch.zeros_like(sums).scatter_add_(-2, index, torch.ones_like(index, dtype=torch.float64))
    return sums.scatter_add_(-2, index, x.double()) / counts
