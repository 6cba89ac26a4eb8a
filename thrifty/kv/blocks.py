"""What one layer holds of its keys and values: 16-bit sinks, closed blocks of codes, a 16-bit open block.

    tokens:   | sinks | closed: codes in units of `unit` tokens | open |

All rows in one `Blocks` have the same number of tokens; rows of different lengths are kept in different `Blocks`
(see `thrifty.kv.cache`), so a codec never sees padding. Nothing here is changed in place.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Encode = Callable[[Tensor, int], "Coded"]
Restore = Callable[["Coded"], Tensor]


@dataclass(frozen=True)
class HeadShape:
    """The shape of one layer's cache: `kv_heads` heads of `head_dim` channels; `element_bytes` of the model's dtype."""

    kv_heads: int
    head_dim: int
    element_bytes: int = 2


@dataclass(frozen=True)
class Coded:
    """Closed tokens, packed. Every tensor is [rows, heads, units, ...]; a unit holds `unit` tokens."""

    unit: int
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        """The tensor called `name`."""
        return self.tensors[name]

    @property
    def num_tokens(self) -> int:
        """Tokens held, per row."""
        return self.unit * next(iter(self.tensors.values())).shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of the real tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def join(self, later: "Coded") -> "Coded":
        """These tokens followed by `later`."""
        return replace(self, tensors={n: torch.cat([t, later.tensors[n]], 2) for n, t in self.tensors.items()})

    def part(self, first: int, last: int) -> "Coded":
        """Tokens first .. last - 1, both whole units."""
        units = slice(first // self.unit, last // self.unit)
        return replace(self, tensors={name: tensor[:, :, units] for name, tensor in self.tensors.items()})

    def each(self, change: Callable[[Tensor], Tensor]) -> "Coded":
        """The same with `change` done to every tensor."""
        return replace(self, tensors={name: change(tensor) for name, tensor in self.tensors.items()})


@dataclass(frozen=True)
class Side:
    """The keys, or the values, of one layer."""

    sinks: Float[Tensor, "rows heads sinks d"]
    closed: Coded | None
    open: Float[Tensor, "rows heads open d"]

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens held as (sinks, codes, open)."""
        return self.sinks.shape[2], self.closed.num_tokens if self.closed else 0, self.open.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of the real tensors."""
        return self.sinks.nbytes + self.open.nbytes + (self.closed.nbytes if self.closed else 0)

    def append(self, x: Float[Tensor, "rows heads new d"], num_sinks: int) -> "Side":
        """Add tokens: the first ever become sinks, the rest go to the open block, which closes later."""
        x, sinks = x.to(self.open.dtype), self.sinks
        missing = num_sinks - sinks.shape[2]
        if missing > 0:
            sinks, x = torch.cat([sinks, x[:, :, :missing]], 2), x[:, :, missing:]
        return Side(sinks, self.closed, torch.cat([self.open, x], 2))

    def close(self, due: int, encode: Encode) -> "Side":
        """Turn the oldest open tokens into codes until `due` tokens are held as codes."""
        sinks, closed, _ = self.lengths
        if due <= closed:
            return self
        new = encode(self.open[:, :, : due - closed], sinks + closed)
        # A copy, not a view: a view would keep the bytes of the closed tokens alive.
        rest = self.open[:, :, due - closed :].clone()
        return replace(self, closed=self.closed.join(new) if self.closed else new, open=rest)

    def crop(self, length: int, restore: Restore) -> "Side":
        """Keep the first `length` tokens. A closed unit that is cut in the middle returns to the open block as what
        its codes stand for."""
        num_sinks, num_closed, _ = self.lengths
        after = length - num_sinks
        if after < 0:
            return replace(self, sinks=self.sinks[:, :, :length].clone(), closed=None, open=self.open[:, :, :0].clone())
        if self.closed is None or after >= num_closed:
            return replace(self, open=self.open[:, :, : after - num_closed].clone())
        whole = after // self.closed.unit * self.closed.unit
        tail = self.closed.part(whole, num_closed)
        reopened = restore(tail)[:, :, : after - whole].to(self.open.dtype)
        kept = self.closed.part(0, whole).each(torch.clone) if whole else None
        return replace(self, closed=kept, open=reopened.clone())

    def each(self, change: Callable[[Tensor], Tensor]) -> "Side":
        """The same with `change` done to every tensor."""
        closed = self.closed.each(change) if self.closed else None
        return Side(sinks=change(self.sinks), closed=closed, open=change(self.open))

    def restore(self, restore: Restore) -> Float[Tensor, "rows heads tokens d"]:
        """All tokens as float32, codes replaced by what they stand for."""
        closed = [restore(self.closed)] if self.closed else []
        return torch.cat([self.sinks.float(), *closed, self.open.float()], 2)


@runtime_checkable
class Codec(Protocol):
    """How one layer's keys and values are held, and how attention is computed on them.

    A codec is a frozen dataclass in `thrifty/kv/codecs`. Its laws are in `tests/kv/test_contract.py`.
    """

    @property
    def num_sinks(self) -> int:
        """Tokens at the start of a row that stay in 16 bits."""
        ...

    def closed(self, num_tokens: int) -> tuple[int, int]:
        """How many (keys, values) after the sinks are held as codes when `num_tokens` have come. Never decreases; a
        token is open while it is the newest, unless it closes at once. A multiple of the unit."""
        ...

    def dense_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """The dtype of sinks and open block, given that of the model."""
        ...

    def encode_k(self, k: Float[Tensor, "rows heads tokens d"], start: int) -> Coded:
        """Codes of whole units of keys, the first of which is token `start` of its row."""
        ...

    def encode_v(self, v: Float[Tensor, "rows heads tokens d"], start: int) -> Coded:
        """Codes of whole units of values, the first of which is token `start` of its row."""
        ...

    def restore_k(self, coded: Coded) -> Float[Tensor, "rows heads tokens d"]:
        """What the codes of keys stand for, in float32."""
        ...

    def restore_v(self, coded: Coded) -> Float[Tensor, "rows heads tokens d"]:
        """What the codes of values stand for, in float32."""
        ...

    def attend(
        self, q: Float[Tensor, "rows q_heads queries d"], blocks: "Blocks", scale: float
    ) -> Float[Tensor, "rows q_heads queries d"]:
        """Causal attention of the newest `queries` tokens, already appended to `blocks`, on all of them."""
        ...

    def bytes_per_token(self, shape: HeadShape, num_tokens: int) -> float:
        """Bytes of a layer's keys and values at `num_tokens`, everything counted, divided by `num_tokens`."""
        ...

    def check(self, head_dim: int) -> None:
        """Raise `SettingError` where heads of `head_dim` channels cannot be coded with these settings."""
        ...


@runtime_checkable
class ChunkCodec(Protocol):
    """A codec that can treat many new tokens in one pass."""

    def attend_chunk(
        self, q: Float[Tensor, "rows q_heads new d"], past: "Blocks", k: Tensor, v: Tensor, scale: float
    ) -> tuple["Blocks", Tensor] | None:
        """Append `k` and `v` to `past`, and attend from each new token on what it would see had it come alone. None
        where this cannot be done in one pass."""
        ...


@runtime_checkable
class PairCodec(Protocol):
    """A codec that codes keys and values of the same tokens together; `closed` gives both alike, and `encode_k` and
    `encode_v` are never called."""

    def encode_pair(
        self, k: Float[Tensor, "rows heads tokens d"], v: Float[Tensor, "rows heads tokens d"], start: int
    ) -> tuple[Coded, Coded]:
        """Codes of whole units of keys and of values, the first of which is token `start` of its row."""
        ...


@runtime_checkable
class CountingCodec(Protocol):
    """A codec whose closed tokens may each stand for several."""

    def attend_counted(
        self,
        q: Float[Tensor, "rows q_heads queries d"],
        blocks: "Blocks",
        counts: Float[Tensor, "rows heads closed"],
        scale: float,
    ) -> Float[Tensor, "rows q_heads queries d"]:
        """As `attend`, with closed token j there `counts[..., j]` times."""
        ...


@dataclass(frozen=True)
class Blocks:
    """The keys and values of rows of one length in one layer."""

    k: Side
    v: Side

    @staticmethod
    def empty(k: Tensor, v: Tensor, dtype: torch.dtype) -> "Blocks":
        """No tokens yet; shapes and device as in `k` and `v` [rows, heads, any, d], stored in `dtype`."""
        k, v = (x.new_empty(*x.shape[:2], 0, x.shape[-1], dtype=dtype) for x in (k, v))
        return Blocks(Side(k, None, k), Side(v, None, v))

    @property
    def num_tokens(self) -> int:
        """Tokens held, per row."""
        return sum(self.k.lengths)

    @property
    def num_rows(self) -> int:
        """Rows held."""
        return self.k.open.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the real tensors."""
        return self.k.nbytes + self.v.nbytes

    def append(self, k: Tensor, v: Tensor, codec: Codec) -> "Blocks":
        """Add tokens in 16 bits; close nothing."""
        return Blocks(self.k.append(k, codec.num_sinks), self.v.append(v, codec.num_sinks))

    def close(self, codec: Codec, held_back: int = 0) -> "Blocks":
        """Turn into codes whatever is due at this length, or was due `held_back` tokens ago."""
        due_k, due_v = codec.closed(max(0, self.num_tokens - held_back))
        sinks, closed, _ = self.k.lengths
        if due_k > closed and isinstance(codec, PairCodec):
            new = slice(0, due_k - closed)
            k, v = codec.encode_pair(self.k.open[:, :, new], self.v.open[:, :, new], sinks + closed)
            return Blocks(self.k.close(due_k, lambda *_: k), self.v.close(due_v, lambda *_: v))
        return Blocks(self.k.close(due_k, codec.encode_k), self.v.close(due_v, codec.encode_v))

    def crop(self, length: int, codec: Codec) -> "Blocks":
        """Keep the first `length` tokens of each row."""
        return Blocks(self.k.crop(length, codec.restore_k), self.v.crop(length, codec.restore_v))

    def rows(self, index: Int[Tensor, "chosen"]) -> "Blocks":
        """The chosen rows, in that order."""
        return self.each(lambda tensor: tensor.index_select(0, index.to(tensor.device)))

    def each(self, change: Callable[[Tensor], Tensor]) -> "Blocks":
        """The same with `change` done to every tensor."""
        return Blocks(self.k.each(change), self.v.each(change))


def encode(codec: Codec, k: Tensor, v: Tensor, past: Blocks | None = None) -> Blocks:
    """Append keys and values [rows, heads, tokens, d] to `past` and close what is due."""
    if past is None:
        past = Blocks.empty(k, v, codec.dense_dtype(k.dtype))
    return past.append(k, v, codec).close(codec)


def restore(codec: Codec, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """All keys and values as float32 [rows, heads, tokens, d], codes replaced by what they stand for."""
    return blocks.k.restore(codec.restore_k), blocks.v.restore(codec.restore_v)


def next_closing(codec: Codec, length: int, end: int) -> int:
    """How far, at most to `end`, a row of `length` tokens can grow before a token that was seen in 16 bits becomes
    codes: the span that one `attend` may treat at once without any query seeing codes too early."""
    stop = length + 1
    while stop < end:
        seen = max(0, stop - codec.num_sinks)
        if any(
            after > before and before < seen
            for before, after in zip(codec.closed(stop), codec.closed(stop + 1), strict=True)
        ):
            break
        stop += 1
    return stop
