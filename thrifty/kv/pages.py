"""Closed blocks of rows of any lengths in one pool of pages, one block a page, found through a table.

A server hands pages out and takes them back; sinks and open block of a row, in 16 bits, have places of their own. All
that changes from step to step is in tensors, so a step can be captured in a graph and replayed. `PagedRows` lets the
rows grow by a token at a time.
"""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.errors import SettingError
from thrifty.kv.blocks import Blocks, Codec, Coded, Side


@dataclass(frozen=True)
class Pages:
    """Rows of a batch. `k` and `v` hold codes, scale and low as [pages, heads, ...]; block b of row r is page
    `table[r, b]`; `lengths` are sinks, closed blocks and open tokens of each row."""

    unit: int
    k: dict[str, Tensor]
    v: dict[str, Tensor]
    table: Int[Tensor, "rows most"]
    lengths: Int[Tensor, "rows 3"]
    sink_k: Float[Tensor, "rows heads sinks d"]
    sink_v: Float[Tensor, "rows heads sinks d"]
    open_k: Float[Tensor, "rows heads open d"]
    open_v: Float[Tensor, "rows heads open d"]

    @staticmethod
    def of(rows: list[Blocks], spare: int = 0) -> "Pages":
        """Put single rows into pages, in an order that mixes them; `spare` further pages stay free. Raises
        `SettingError` for a row that holds more than one, or that holds keys and values in different blocks."""
        for row in rows:
            if row.num_rows != 1 or row.k.lengths != row.v.lengths:
                raise SettingError(f"pages are made of single rows with keys and values alike, not of {row.k.lengths}")
        if all(row.k.closed is None for row in rows):
            raise SettingError("no row has a closed block yet; pages hold closed blocks")
        counts = [row.k.closed["codes"].shape[2] if row.k.closed else 0 for row in rows]
        owners = [(row, block) for block in range(max(counts)) for row in range(len(rows)) if block < counts[row]]
        table = torch.zeros(len(rows), max(counts) + spare, dtype=torch.int32)
        for page, (row, block) in enumerate(owners):
            table[row, block] = page
        device = rows[0].k.open.device
        lengths = [(row.k.lengths[0], count, row.k.lengths[2]) for row, count in zip(rows, counts, strict=True)]
        sides = [[row.k for row in rows], [row.v for row in rows]]
        k, v = (_pool(side, owners, spare) for side in sides)
        unit = next(row.k.closed.unit for row in rows if row.k.closed)
        sinks = [_dense([one.sinks for one in side], 0) for side in sides]
        opened = [_dense([one.open for one in side], unit) for side in sides]
        lengths = torch.tensor(lengths, dtype=torch.int32, device=device)
        return Pages(unit, k, v, table.to(device), lengths, *sinks, *opened)

    def row(self, index: int) -> Blocks:
        """What a row holds, in one piece."""
        sinks, blocks, opened = self.lengths[index].tolist()
        pages = self.table[index, :blocks].long()
        closed = [
            Coded(self.unit, {name: tensor[pages].transpose(0, 1)[None] for name, tensor in side.items()})
            for side in (self.k, self.v)
        ]
        one = slice(index, index + 1)
        return Blocks(
            Side(self.sink_k[one, :, :sinks], closed[0] if blocks else None, self.open_k[one, :, :opened]),
            Side(self.sink_v[one, :, :sinks], closed[1] if blocks else None, self.open_v[one, :, :opened]),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the real tensors, free pages and free places included."""
        dense = (self.table, self.lengths, self.sink_k, self.sink_v, self.open_k, self.open_v)
        return sum(tensor.nbytes for tensor in (*dense, *self.k.values(), *self.v.values()))

    def extended(self, pages: int, columns: int) -> "Pages":
        """The same with so many more free pages, and with so many more columns in the table."""
        k, v = ({name: _longer(tensor, pages, 0) for name, tensor in side.items()} for side in (self.k, self.v))
        return replace(self, k=k, v=v, table=_longer(self.table, columns, 1))


@runtime_checkable
class PagedCodec(Protocol):
    """A codec that can attend on rows of different lengths at once, in pages."""

    def suits_pages(self, q: Float[Tensor, "rows q_heads 1 d"], groups: list[Blocks]) -> bool:
        """Whether it can for these queries and rows, in groups of one length."""
        ...

    def attend_pages(
        self, q: Float[Tensor, "rows q_heads 1 d"], pages: Pages, scale: float
    ) -> Float[Tensor, "rows q_heads 1 d"]:
        """Attention of the newest token of each row on that row."""
        ...


class PagedRows:
    """Rows in pages that grow by one token each, in place. The codes are those of `Blocks`, bit for bit."""

    def __init__(self, rows: list[Blocks], codec: Codec) -> None:
        self.codec = codec
        with torch.inference_mode(False), torch.no_grad():  # or nothing could change outside of inference mode later
            self.pages = Pages.of(rows, spare=len(rows))
        self._lengths: list[list[int]] = self.pages.lengths.tolist()
        self._used = sum(blocks for _, blocks, _ in self._lengths)

    def grow(self, k: Float[Tensor, "rows heads 1 d"], v: Float[Tensor, "rows heads 1 d"]) -> None:
        """Append a token to every row, all of whose sinks are there; close what is due."""
        with torch.inference_mode(False), torch.no_grad():
            for row, (sinks, blocks, opened) in enumerate(self._lengths):
                held = sinks + blocks * self.pages.unit + opened
                if self.codec.closed(held + 1)[0] > blocks * self.pages.unit:
                    self._close(row)
                self._lengths[row][2] += 1
            pages = self.pages
            pages.lengths.copy_(torch.tensor(self._lengths, dtype=torch.int32))
            rows, places = torch.arange(len(self._lengths), device=k.device), pages.lengths[:, 2].long() - 1
            pages.open_k[rows, :, places] = k[:, :, 0].to(pages.open_k.dtype)
            pages.open_v[rows, :, places] = v[:, :, 0].to(pages.open_v.dtype)

    def rows(self) -> list[Blocks]:
        """What each row holds, in tensors of its own."""
        return [self.pages.row(index).each(torch.clone) for index in range(len(self._lengths))]

    def _close(self, row: int) -> None:
        """Turn the full open block of a row into a page."""
        sinks, blocks, opened = self._lengths[row]
        assert opened == self.pages.unit
        if self._used == self.pages.k["codes"].shape[0]:
            self.pages = self.pages.extended(max(len(self._lengths), self._used // 8), 0)
        if blocks == self.pages.table.shape[1]:
            self.pages = self.pages.extended(0, max(1, blocks // 8))
        pages, start, one = self.pages, sinks + blocks * opened, slice(row, row + 1)
        coded = self.codec.encode_k(pages.open_k[one], start), self.codec.encode_v(pages.open_v[one], start)
        for pool, found in zip((pages.k, pages.v), coded, strict=True):
            for name, tensor in pool.items():
                tensor[self._used] = found[name][0, :, 0]
        pages.table[row, blocks] = self._used
        self._used += 1
        self._lengths[row] = [sinks, blocks + 1, 0]


def _longer(x: Tensor, more: int, dim: int) -> Tensor:
    shape = [more if axis == dim else size for axis, size in enumerate(x.shape)]
    return torch.cat([x, x.new_zeros(shape)], dim) if more else x


def _pool(sides: list[Side], owners: list[tuple[int, int]], spare: int) -> dict[str, Tensor]:
    some = next(side.closed for side in sides if side.closed)
    pool = {}
    for name in ("codes", "scale", "low"):
        shape = (len(owners) + spare, some[name].shape[1], *some[name].shape[3:])
        pool[name] = torch.zeros(shape, dtype=some[name].dtype, device=some[name].device)
        for page, (row, block) in enumerate(owners):
            closed = sides[row].closed
            assert closed is not None
            pool[name][page] = closed[name][0, :, block]
    return pool


def _dense(parts: list[Tensor], room: int) -> Tensor:
    room = max(room, *(part.shape[2] for part in parts))
    held = parts[0].new_zeros(len(parts), parts[0].shape[1], room, parts[0].shape[3])
    for row, part in enumerate(parts):
        held[row, :, : part.shape[2]] = part[0]
    return held
