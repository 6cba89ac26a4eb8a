"""Pages hold rows of any lengths, bit for bit."""

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.kv.blocks import encode
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
