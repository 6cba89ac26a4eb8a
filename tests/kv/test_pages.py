"""Pages hold rows of any lengths, bit for bit, and a layer of a cache decodes in them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from thrifty.errors import SettingError
from thrifty.kv.blocks import Blocks, encode, restore
from thrifty.kv.cache import CompressedLayer
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.pages import Pages

CODEC = Hack(k_bits=4)
LENGTHS = (333, 3, 10, 197, 68, 69)


def test_a_row_comes_back_from_its_pages() -> None:
    rows = [encode(CODEC, *torch.randn(2, 1, 2, length, 64)) for length in LENGTHS]
    pages = Pages.of(rows, spare=3)
    q = torch.randn(1, 4, 1, 64)
    for index, row in enumerate(rows):
        back = pages.row(index)
        sinks, closed, opened = pages.lengths[index].tolist()
        assert back.k.lengths == row.k.lengths == (sinks, closed * pages.unit, opened)
        assert torch.equal(CODEC.attend(q, back, 0.125), CODEC.attend(q, row, 0.125))


def test_every_closed_block_has_a_page_of_its_own() -> None:
    rows = [encode(CODEC, *torch.randn(2, 1, 2, length, 64)) for length in LENGTHS]
    pages = Pages.of(rows, spare=3)
    counts = pages.lengths[:, 1].tolist()
    used = [int(pages.table[row, block]) for row, count in enumerate(counts) for block in range(count)]
    assert sorted(used) == list(range(sum(counts)))
    assert pages.k["codes"].shape[0] == sum(counts) + 3


def test_pages_are_made_of_single_rows() -> None:
    with pytest.raises(SettingError, match="single rows"):
        Pages.of([encode(CODEC, *torch.randn(2, 2, 2, 100, 64))])


def test_rows_without_a_closed_block_need_no_pages() -> None:
    with pytest.raises(SettingError, match="no row has a closed block"):
        Pages.of([encode(CODEC, *torch.randn(2, 1, 2, 10, 64))])


@dataclass(frozen=True)
class Paged:
    """A codec that attends on pages row by row, and notes how often; `inner` does everything else."""

    inner: Hack
    steps: list[int] = field(default_factory=list)

    def suits_pages(self, q: Tensor, groups: list[Blocks]) -> bool:
        return any(group.k.closed for group in groups)

    def attend_pages(self, q: Tensor, pages: Pages, scale: float) -> Tensor:
        self.steps.append(q.shape[0])
        return torch.cat([self.inner.attend(q[i : i + 1], pages.row(i), scale) for i in range(q.shape[0])])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def sample(tokens: int, rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    k, v = torch.randn(2, rows, 2, tokens, 64).bfloat16()
    return torch.randn(rows, 4, tokens, 64).bfloat16(), k, v


def put(layer: CompressedLayer, given: tuple[Tensor, Tensor, Tensor], real: Tensor | None = None) -> Tensor:
    layer.update(*given[1:])
    return layer.attend(*given, real, 0.125)


def padded(codec: Any, lengths: tuple[int, ...] = (150, 68, 20)) -> CompressedLayer:
    """A layer that has read left-padded rows of these lengths."""
    torch.manual_seed(1)
    layer = CompressedLayer(codec)
    most = max(lengths)
    put(layer, sample(most, len(lengths)), torch.arange(most) >= most - torch.tensor(lengths)[:, None])
    return layer


def assert_same(one: CompressedLayer, other: CompressedLayer) -> None:
    def by_row(layer: CompressedLayer) -> dict[int, Blocks]:
        return {
            row: group.blocks.rows(torch.tensor([index]))
            for group in layer.groups
            for index, row in enumerate(group.rows)
        }

    left, right = by_row(one), by_row(other)
    assert left.keys() == right.keys()
    for row, blocks in left.items():
        assert blocks.k.lengths == right[row].k.lengths
        for x, y in zip(restore(CODEC, blocks), restore(CODEC, right[row]), strict=True):
            assert torch.equal(x, y)


def test_rows_of_several_lengths_decode_in_pages_as_they_do_by_length() -> None:
    codec = Paged(CODEC)
    paged, grouped = padded(codec), padded(CODEC)
    for step in range(75):  # every row closes a block: pages and columns of the table are added
        given = sample(1)
        real = torch.ones(3, 1, dtype=torch.bool)
        assert torch.equal(put(paged, given, real), put(grouped, given, real)), step
    assert codec.steps == [3] * 74  # the first step shows that rows are grown one by one
    assert paged.get_seq_length() == grouped.get_seq_length()
    assert paged.nbytes >= grouped.nbytes
    assert_same(paged, grouped)


def test_whatever_else_happens_rows_leave_their_pages_as_they_stand() -> None:
    acts: list[Callable[[CompressedLayer], object]] = [
        lambda layer: layer.crop(-30),
        lambda layer: layer.reorder_cache(torch.tensor([2, 2, 0])),
        lambda layer: put(layer, tuple(torch.ones_like(x) for x in sample(5)), torch.ones(3, 5, dtype=torch.bool)),
        lambda layer: layer.activate_past_recording(),
        lambda layer: layer.offload(),
    ]
    for act in acts:
        paged, grouped = padded(Paged(CODEC)), padded(CODEC)
        for layer in (paged, grouped):
            torch.manual_seed(2)
            for _ in range(12):
                put(layer, sample(1), torch.ones(3, 1, dtype=torch.bool))
            act(layer)
            put(layer, sample(1), torch.ones(3, 1, dtype=torch.bool))
        assert_same(paged, grouped)


def test_rows_of_one_length_and_codecs_that_cannot_are_not_moved_into_pages() -> None:
    codec = Paged(CODEC)
    for layer in (padded(codec, (150, 150, 150)), padded(CODEC), padded(codec, (20, 9, 12))):
        for _ in range(3):
            put(layer, sample(1), torch.ones(3, 1, dtype=torch.bool))
        assert layer._paged is None
    assert codec.steps == []


def test_pages_made_in_inference_mode_go_on_without_it() -> None:
    with torch.inference_mode():
        layer, given = padded(Paged(CODEC)), sample(1)
        for _ in range(3):
            put(layer, given, torch.ones(3, 1, dtype=torch.bool))
    with torch.no_grad():
        put(layer, sample(1), torch.ones(3, 1, dtype=torch.bool))
    assert layer._paged is not None


def test_pages_hold_no_more_than_a_free_page_in_eight_and_one_a_row() -> None:
    layer = padded(Paged(CODEC), (700, 500, 300))
    for _ in range(70):
        put(layer, sample(1), torch.ones(3, 1, dtype=torch.bool))
    assert layer._paged is not None
    pool, used = layer._paged.pages.k["codes"].shape[0], int(layer._paged.pages.lengths[:, 1].sum())
    assert used <= pool <= used + used // 8 + 3
