"""HACK: attention on the codes of a quantised cache (arXiv 2502.03589; ATC 2026).

Two layouts are published under the name. `atc`, of the released code: keys are coded per channel over blocks of
`partition` tokens, values per token over groups of channels, four sinks and the open block stay in 16 bits, rounding
is to nearest. `v1`, of the arXiv paper: keys per token over groups of channels (closed at once), values per channel
over blocks of tokens with a 16-bit open block, no sinks, stochastic rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.kv import consistent, dense, homomorphic, native_kernel
from thrifty.kv.blocks import Blocks, Coded, HeadShape, Side, encode
from thrifty.kv.kernels import shapes
from thrifty.kv.pages import Pages
from thrifty.kv.quantise import pack, position_noise, quantise, quantise_unbiased, unpack
from thrifty.kv.rotation import rotate, rotate_at_once
from thrifty.native_build import has_triton

Bits = Literal[2, 3, 4, 8]
Operands = tuple[Tensor, Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Hack:
    """Codes of `k_bits` and `v_bits`, and attention computed on them.

    A block closes when the token after it arrives, so the newest token always sees its own block in 16 bits
    (requantisation elimination: a value is quantised once). `qp_bits=8` quantises queries and weights too, as
    published; `exact` leaves them in float32. `summation_elimination=False` stores no sums and adds the codes up at
    each call. `None` stands for what the layout was published with, but for `weights`: 8-bit weights of layout atc
    are `consistent` (see `thrifty.kv.consistent`) unless `published` is asked for, whose error grows with the length.
    For these, new tokens on a CPU go through the kernel in C++ where it can run; on a GPU kernels in Triton take
    one new token or a whole chunk, with queries and weights in 16 bits whatever `qp_bits` says, unless `kernel` is
    `reference`. The error of a restored value is at most half a scale
    (one scale when stochastic) plus the rounding of low and scale to `dtype`.

    Two settings are beyond the papers and cost no byte. `fit=unbiased` shrinks the range of a group and chooses scale
    and low so that errors average out (see `quantise_unbiased`); a value may then err by more than half a scale.
    `rotation` codes values, or keys too (`all`), after a Hadamard rotation of their channels, which attention undoes
    once per query; the bound of half a scale then holds for the rotated channels.
    """

    layout: Literal["atc", "v1"] = "atc"
    k_bits: Bits = 2
    v_bits: Bits = 2
    partition: Literal[32, 64, 128] = 64
    rounding: Literal["nearest", "stochastic"] | None = None
    sinks: int | None = None
    qp_bits: Literal[8, "exact"] = 8
    weights: Literal["published", "consistent"] | None = None
    kernel: Literal["auto", "reference"] = "auto"
    summation_elimination: bool = True
    fit: Literal["range", "unbiased"] = "range"
    rotation: Literal["none", "values", "all"] = "none"
    dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Fill in what the layout was published with; refuse values that do not exist."""
        is_atc = self.layout == "atc"
        if self.rounding is None:
            object.__setattr__(self, "rounding", "nearest" if is_atc else "stochastic")
        if self.sinks is None:
            object.__setattr__(self, "sinks", 4 if is_atc else 0)
        if self.weights is None:
            object.__setattr__(self, "weights", "consistent" if is_atc else "published")
        settings.check(self)
        if self.weights == "consistent" and not is_atc:
            raise SettingError(f"Hack: weights=consistent with layout={self.layout}; use layout=atc")
        if self.fit == "unbiased" and self.rounding == "stochastic":
            raise SettingError("Hack: fit=unbiased with rounding=stochastic; use rounding=nearest")
        if self.num_sinks < 0:
            raise SettingError(f"Hack: sinks={self.sinks}; use 0 or more")

    @property
    def num_sinks(self) -> int:
        """Tokens at the start of a row that stay in 16 bits."""
        return self.sinks or 0

    def closed(self, num_tokens: int) -> tuple[int, int]:
        """All full blocks but the one of the newest token; keys of layout v1 at once."""
        after = max(0, num_tokens - self.num_sinks)
        blocks = max(0, after - 1) // self.partition * self.partition
        return (blocks if self.layout == "atc" else after), blocks

    def dense_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """`dtype`; with auto the model's own where it has 16 bits, else bfloat16."""
        return dense.sixteen_bits(self.dtype, model_dtype)

    def check(self, head_dim: int) -> None:
        """Heads must split into channel groups of a multiple of 16."""
        if head_dim % 16:
            other = "plain, which holds any" if head_dim % 8 else "gear, which needs a multiple of 8 only"
            raise SettingError(f"Hack: heads of {head_dim} channels; a multiple of 16 is needed: use the codec {other}")

    def encode_k(self, k: Float[Tensor, "rows heads tokens d"], start: int) -> Coded:
        """Keys: per channel and block (atc) or per token and channel group (v1)."""
        if self.layout == "atc":
            return self._encode_by_channel(k, self.k_bits, start, self.seed, "k")
        return self._encode_by_token(k, self.k_bits, start, self.seed, "k", unit=1)

    def encode_v(self, v: Float[Tensor, "rows heads tokens d"], start: int) -> Coded:
        """Values: per token and channel group (atc) or per channel and block (v1)."""
        if self.layout == "atc":
            return self._encode_by_token(v, self.v_bits, start, self.seed + 1, "v", unit=self.partition)
        return self._encode_by_channel(v, self.v_bits, start, self.seed + 1, "v")

    def restore_k(self, coded: Coded) -> Float[Tensor, "rows heads tokens d"]:
        """scale * code + low."""
        return self._turn(self._restore(coded, self.k_bits, by_channel=self.layout == "atc"), "k")

    def restore_v(self, coded: Coded) -> Float[Tensor, "rows heads tokens d"]:
        """scale * code + low."""
        return self._turn(self._restore(coded, self.v_bits, by_channel=self.layout == "v1"), "v")

    def attend(self, q: Float[Tensor, "rows q_heads queries d"], blocks: Blocks, scale: float) -> Tensor:
        """One softmax over sinks, codes and open block; the codes enter both products as they are."""
        return self._attend_turned(q, blocks, None, scale)

    def attend_counted(
        self,
        q: Float[Tensor, "rows q_heads queries d"],
        blocks: Blocks,
        counts: Float[Tensor, "rows heads closed"],
        scale: float,
    ) -> Tensor:
        """`attend` with closed token j there `counts[..., j]` times, in PyTorch: log-counts join the scores."""
        return self._attend_turned(q, blocks, counts, scale)

    def _attend_turned(self, q: Tensor, blocks: Blocks, counts: Tensor | None, scale: float) -> Tensor:
        fast = self._attend_triton(q, blocks, scale) if counts is None else None
        if fast is not None:
            return fast
        query = self._turn(q, "k", rotate_at_once)
        mixed = self._attend_native(query, blocks, scale) if counts is None else None
        if mixed is None:
            turned = Blocks(self._turn_dense(blocks.k, "k"), self._turn_dense(blocks.v, "v"))
            mixed = self._attend(query, turned, counts, scale)
        return self._turn(mixed, "v", rotate_at_once).to(q.dtype)

    def _attend(self, q: Tensor, blocks: Blocks, counts: Tensor | None, scale: float) -> Tensor:
        """`attend` in the channels that the codes are in."""
        query = dense.stack_queries(q, blocks.k.open.shape[1])
        logits = [dense.scores(query, blocks.k.sinks), dense.scores(query, blocks.k.open)]
        if blocks.k.closed:
            scores = self._scores(query, blocks.k.closed)
            logits.insert(1, scores if counts is None else scores + counts.log().unsqueeze(2) / scale)
        weights = dense.causal_softmax(torch.cat(logits, -1) * scale, q.shape[2])
        sinks, closed, opened = weights.split(blocks.v.lengths, -1)
        mixed = dense.mix(sinks, blocks.v.sinks) + dense.mix(opened, blocks.v.open)
        if blocks.v.closed and self._is_consistent:
            coded, totals = self._mix_consistently(closed, blocks.v.closed)
            mixed = consistent.normalise(mixed + coded, totals + consistent.total(sinks, opened))
        elif blocks.v.closed:
            mixed = mixed + self._mix(closed, blocks.v.closed)
        return dense.unstack_queries(mixed, q)

    def _attend_native(self, q: Tensor, blocks: Blocks, scale: float) -> Tensor | None:
        """By the kernel in C++, which turns what is not coded by itself; None where it cannot do it."""
        if self.kernel != "auto" or q.is_cuda or not self._is_consistent:
            return None
        turned = (self._is_turned("k"), self._is_turned("v"))
        return native_kernel.attend(q, blocks, self.k_bits, self.v_bits, self._group(q.shape[-1]), scale, turned)

    def _attend_triton(self, q: Tensor, blocks: Blocks, scale: float) -> Tensor | None:
        """By a kernel in Triton, which turns what is to be turned; None where none can do it."""
        if self.kernel != "auto" or not q.is_cuda:
            return None
        group = self._group(q.shape[-1])
        if not self._suits_triton(q, blocks) or q.shape[2] > max(1, blocks.k.open.shape[2]):
            return None
        from thrifty.kv.kernels import decode

        if q.shape[2] > 1:
            return self._prefill(q, blocks, blocks.num_tokens, scale)
        turned = self._is_turned("k"), self._is_turned("v")
        return decode.attend(q, blocks, self.k_bits, self.v_bits, group, scale, turned)

    def _prefill(self, q: Tensor, blocks: Blocks, num_tokens: int, scale: float) -> Tensor:
        """By the kernel in Triton for many queries; `num_tokens` are those that the newest query sees."""
        from thrifty.kv.kernels import prefill

        held = Blocks(self._turn_dense(blocks.k, "k"), self._turn_dense(blocks.v, "v"))
        query, group = self._turn(q, "k", rotate_at_once).to(q.dtype), self._group(q.shape[-1])
        mixed = prefill.attend(query, held, num_tokens, self.k_bits, self.v_bits, group, scale)
        return self._turn(mixed, "v", rotate_at_once).to(q.dtype)

    def attend_chunk(
        self, q: Float[Tensor, "rows q_heads new d"], past: Blocks, k: Tensor, v: Tensor, scale: float
    ) -> tuple[Blocks, Tensor] | None:
        """Append `k` and `v` to `past`, and attend from each new token on what it would see had it come alone, in one
        pass. None where only one block at a time can be treated."""
        if self.kernel != "auto" or not q.is_cuda:
            return None
        seen, after = past.append(k, v, self), encode(self, k, v, past)
        held = Blocks(replace(seen.k, closed=after.k.closed), replace(seen.v, closed=after.v.closed))
        if not self._suits_triton(q, held):
            return None
        return after, self._prefill(q, held, after.num_tokens, scale)

    def suits_pages(self, q: Float[Tensor, "rows q_heads 1 d"], groups: list[Blocks]) -> bool:
        """Where the kernel for GPUs knows every row that has codes, and all sinks are there."""
        return (
            self.kernel == "auto"
            and q.is_cuda
            and all(group.k.lengths[0] == self.num_sinks for group in groups)
            and any(group.k.closed for group in groups)
            and all(self._suits_triton(q, group) for group in groups if group.k.closed)
        )

    def attend_pages(self, q: Float[Tensor, "rows q_heads 1 d"], pages: Pages, scale: float) -> Tensor:
        """All rows in one launch, on the codes."""
        from thrifty.kv.kernels import decode

        turned = self._is_turned("k"), self._is_turned("v")
        return decode.attend_pages(q, pages, self.k_bits, self.v_bits, self._group(q.shape[-1]), scale, turned)

    def _suits_triton(self, q: Tensor, blocks: Blocks) -> bool:
        if self.layout != "atc" or self.rounding != "nearest" or not has_triton():
            return False
        if not (self._is_consistent or self.qp_bits == "exact"):
            return False
        return shapes.suit(q, blocks, self.k_bits, self.v_bits, self._group(q.shape[-1]))

    def bytes_per_token(self, shape: HeadShape, num_tokens: int) -> float:
        """Codes, scale and low in 16 bits, sums, sinks and open block."""
        closed_k, closed_v = self.closed(num_tokens)
        dense_tokens = 2 * num_tokens - closed_k - closed_v
        groups = shape.head_dim // self._group(shape.head_dim)
        by_block, by_token = shape.head_dim / self.partition, groups
        k_scales, v_scales = (by_block, by_token) if self.layout == "atc" else (by_token, by_block)
        k_sums, v_sums = groups * self._sum_bytes("k", shape.head_dim), by_block * self._sum_bytes("v", shape.head_dim)
        k = shape.head_dim * self.k_bits / 8 + 4 * k_scales + k_sums
        v = shape.head_dim * self.v_bits / 8 + 4 * v_scales + v_sums
        held = closed_k * k + closed_v * v + dense_tokens * shape.head_dim * 2
        return shape.kv_heads * held / num_tokens

    def _turn(self, x: Tensor, side: str, by: Callable[[Tensor], Tensor] = rotate) -> Tensor:
        """Into the channels that the codes of a side are in, or back."""
        return by(x) if self._is_turned(side) else x

    def _is_turned(self, side: str) -> bool:
        return self.rotation == "all" or (side == "v" and self.rotation == "values")

    def _turn_dense(self, held: Side, side: str) -> Side:
        if not self._is_turned(side):
            return held
        # The kernels on a GPU read one dtype only: that of scale and low.
        dtype = held.open.dtype if held.open.is_cuda else torch.float32
        sinks, opened = (self._turn(x, side, rotate_at_once).to(dtype) for x in (held.sinks, held.open))
        return replace(held, sinks=sinks, open=opened)

    def _quantise(self, x: Tensor, bits: int, dim: int, dtype: torch.dtype, noise: Tensor | None) -> tuple[Tensor, ...]:
        if self.fit == "unbiased":
            return quantise_unbiased(x, bits, dim, dtype)
        return quantise(x, bits, dim, dtype, noise)

    def _group(self, head_dim: int) -> int:
        """Channels of a group: the largest multiple of 16 up to `partition` that divides a head."""
        return max(size for size in range(16, min(self.partition, head_dim) + 1, 16) if head_dim % size == 0)

    def _sum_bytes(self, side: str, head_dim: int) -> int:
        if not self.summation_elimination:
            return 0
        size, bits = (self._group(head_dim), self.k_bits) if side == "k" else (self.partition, self.v_bits)
        return _sum_dtype(size, bits).itemsize

    def _blocked(
        self, x: Tensor, start: int, seed: int, shape: str, sizes: dict[str, int]
    ) -> tuple[Tensor, Tensor | None]:
        """`x` and the noise of its rounding, cut into blocks."""
        if self.rounding == "nearest":
            return rearrange(x, shape, **sizes), None
        noise = position_noise(x.shape, start, seed, x.device).expand(x.shape)
        return rearrange(x, shape, **sizes), rearrange(noise, shape, **sizes)

    def _encode_by_channel(self, x: Tensor, bits: int, start: int, seed: int, side: str) -> Coded:
        turned = self._turn(x, side)
        blocked, noise = self._blocked(turned, start, seed, "r h (b t) c -> r h b t c", {"t": self.partition})
        codes, scale, low = self._quantise(blocked, bits, -2, self.dense_dtype(x.dtype), noise)
        tensors = {"codes": pack(codes, bits), "scale": scale.squeeze(-2), "low": low.squeeze(-2)}
        return Coded(self.partition, tensors | self._sums(codes, bits, side))

    def _encode_by_token(self, x: Tensor, bits: int, start: int, seed: int, side: str, unit: int) -> Coded:
        group = self._group(x.shape[-1])
        turned = self._turn(x, side)
        blocked, noise = self._blocked(turned, start, seed, "r h (b t) (g c) -> r h b t g c", {"t": unit, "c": group})
        codes, scale, low = self._quantise(blocked, bits, -1, self.dense_dtype(x.dtype), noise)
        codes = codes.flatten(-2)
        tensors = {"codes": pack(codes, bits), "scale": scale.squeeze(-1), "low": low.squeeze(-1)}
        return Coded(unit, tensors | self._sums(codes, bits, side))

    def _sums(self, codes: Tensor, bits: int, side: str) -> dict[str, Tensor]:
        """Sums of codes over the axis that the products contract: channels for keys, tokens for values."""
        if not self.summation_elimination:
            return {}
        if side == "k":
            group = self._group(codes.shape[-1])
            sums, size = reduce(codes.int(), "r h b t (g c) -> r h b t g", "sum", c=group), group
        else:
            sums, size = reduce(codes.int(), "r h b t d -> r h b d", "sum"), codes.shape[-2]
        return {"sums": sums.to(_sum_dtype(size, bits))}

    def _codes(self, coded: Coded, bits: int) -> Tensor:
        codes = unpack(coded["codes"], bits).float()
        return rearrange(codes, "r h b t (g c) -> r h b t g c", c=self._group(codes.shape[-1]))

    def _restore(self, coded: Coded, bits: int, by_channel: bool) -> Tensor:
        codes = self._codes(coded, bits)
        scale, low = (self._by_group(coded[name].float(), by_channel) for name in ("scale", "low"))
        scale, low = (x.unsqueeze(3) if by_channel else x.unsqueeze(-1) for x in (scale, low))
        return rearrange(codes * scale + low, "r h b t g c -> r h (b t) (g c)")

    def _by_group(self, x: Tensor, by_channel: bool) -> Tensor:
        return rearrange(x, "r h b (g c) -> r h b g c", c=self._group(x.shape[-1])) if by_channel else x

    def _operands(self, coded: Coded, bits: int, by_channel: bool, sums_by_channel: bool) -> Operands:
        scale, low = (self._by_group(coded[name].float(), by_channel) for name in ("scale", "low"))
        sums = coded.tensors.get("sums")
        sums = None if sums is None else self._by_group(sums.float(), sums_by_channel)
        return self._codes(coded, bits), scale, low, sums

    @property
    def _is_consistent(self) -> bool:
        return self.weights == "consistent" and self.qp_bits == 8

    def _scores(self, query: Float[Tensor, "rows heads stacked d"], coded: Coded) -> Tensor:
        by_channel = self.layout == "atc"
        product = homomorphic.scores_by_channel if by_channel else homomorphic.scores_by_token
        operands = self._operands(coded, self.k_bits, by_channel, sums_by_channel=False)
        grouped = rearrange(query, "r h q (g c) -> r h q g c", c=self._group(query.shape[-1]))
        if self._is_consistent:
            scores = consistent.scores_by_channel(grouped, *operands[:3], bits=self.k_bits)
        else:
            scores = product(grouped, *operands, exact=self.qp_bits == "exact")
        return rearrange(scores, "r h q b t -> r h q (b t)")

    def _mix(self, weights: Float[Tensor, "rows heads stacked tokens"], coded: Coded) -> Tensor:
        by_channel = self.layout == "v1"
        product = homomorphic.mix_by_channel if by_channel else homomorphic.mix_by_token
        operands = self._operands(coded, self.v_bits, by_channel, sums_by_channel=True)
        blocked = rearrange(weights, "r h q (b t) -> r h q b t", t=self.partition)
        mixed = product(blocked, *operands, exact=self.qp_bits == "exact")
        return rearrange(mixed, "r h q g c -> r h q (g c)")

    def _mix_consistently(self, weights: Tensor, coded: Coded) -> tuple[Tensor, Tensor]:
        codes, scale, low, _ = self._operands(coded, self.v_bits, by_channel=False, sums_by_channel=True)
        blocked = rearrange(weights, "r h q (b t) -> r h q b t", t=self.partition)
        mixed, totals = consistent.mix_by_token(blocked, codes, scale, low)
        return rearrange(mixed, "r h q g c -> r h q (g c)"), totals


def _sum_dtype(size: int, bits: int) -> torch.dtype:
    """The smallest type that holds the sum of `size` codes."""
    return torch.uint8 if size * (2**bits - 1) <= 255 else torch.int16
