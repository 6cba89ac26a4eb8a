"""Sinks, closed blocks and the open block: what moves where, what is forgotten, what stays in memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from thrifty.kv.blocks import Blocks, Codec, Coded, HeadShape, Side, encode, next_closing, restore
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.kivi import Kivi
from thrifty.kv.codecs.plain import Plain

ATC = Hack(partition=32)
V1 = Hack(layout="v1", partition=32)
KIVI = Kivi(residual=64)
PLAIN = Plain()
NAMES = ["atc", "v1", "kivi", "plain"]


def random_pair(tokens: int, rows: int = 2, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 2, tokens, 32).to(dtype), torch.randn(rows, 2, tokens, 32).to(dtype)


def tensors(blocks: Blocks) -> dict[str, Tensor]:
    found = {}
    for name, side in (("k", blocks.k), ("v", blocks.v)):
        found |= {f"{name}.sinks": side.sinks, f"{name}.open": side.open}
        found |= {f"{name}.{part}": tensor for part, tensor in (side.closed.tensors if side.closed else {}).items()}
    return found


def assert_same(one: Blocks, other: Blocks) -> None:
    assert tensors(one).keys() == tensors(other).keys()
    assert all(torch.equal(tensor, tensors(other)[name]) for name, tensor in tensors(one).items())


def kept_alive(held: list[Tensor]) -> int:
    """Bytes of the memory that the tensors keep from being freed."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    return sum(storages.values())


def test_the_first_tokens_ever_become_sinks_however_they_come() -> None:
    k, v = random_pair(10)
    blocks = Blocks.empty(k, v, torch.bfloat16)
    for first, last in ((0, 1), (1, 3), (3, 9), (9, 10)):
        blocks = blocks.append(k[:, :, first:last], v[:, :, first:last], ATC)
        assert blocks.k.lengths == (min(last, 4), 0, max(0, last - 4))
        assert blocks.num_tokens == last
    assert torch.equal(blocks.v.sinks, v[:, :, :4])
    assert torch.equal(blocks.v.open, v[:, :, 4:])
    assert blocks.num_rows == 2


def test_appending_alone_closes_nothing() -> None:
    k, v = random_pair(200)
    blocks = Blocks.empty(k, v, torch.bfloat16).append(k, v, ATC)
    assert blocks.k.lengths == (4, 0, 196)
    assert blocks.close(ATC).k.lengths == (4, 192, 4)
    assert_same(blocks.close(ATC), blocks.close(ATC).close(ATC))


def test_a_block_closes_when_the_token_after_it_arrives() -> None:
    k, v = random_pair(37)
    full = encode(ATC, k[:, :, :36], v[:, :, :36])
    assert full.k.lengths == full.v.lengths == (4, 0, 32)
    after = encode(ATC, k[:, :, 36:], v[:, :, 36:], full)
    assert after.k.lengths == after.v.lengths == (4, 32, 1)
    assert torch.equal(after.k.open, k[:, :, 36:])


def test_a_closed_token_is_never_coded_again() -> None:
    k, v = random_pair(300)
    blocks = encode(ATC, k[:, :, :100], v[:, :, :100])
    before = tensors(blocks)
    grown = tensors(encode(ATC, k[:, :, 100:], v[:, :, 100:], blocks))
    for name, tensor in before.items():
        if not name.endswith("open"):
            assert torch.equal(grown[name][:, :, : tensor.shape[2]], tensor)


def test_joining_and_parting_are_inverse() -> None:
    k, v = random_pair(200)
    coded = encode(ATC, k, v).k.closed
    assert coded is not None
    assert coded.num_tokens == 192
    again = coded.part(0, 64).join(coded.part(64, 192))
    assert again.unit == coded.unit
    assert all(torch.equal(again[name], coded[name]) for name in coded.tensors)
    assert coded.nbytes == sum(tensor.nbytes for tensor in coded.tensors.values())
    assert coded.each(lambda tensor: tensor[:1])["codes"].shape[0] == 1


@pytest.mark.parametrize("codec", [ATC, V1, KIVI, PLAIN], ids=NAMES)
def test_a_crop_inside_the_open_block_is_exact(codec: Codec) -> None:
    k, v = random_pair(110)
    whole = encode(codec, k, v)
    for length in range(110 - 9, 111):
        if codec.closed(length) == codec.closed(110) or codec is V1:
            assert_same(whole.crop(length, codec), encode(codec, k[:, :, :length], v[:, :, :length]))


@pytest.mark.parametrize("codec", [ATC, V1, KIVI, PLAIN], ids=NAMES)
@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 36, 37, 40, 64, 68, 69, 99, 149])
def test_a_crop_keeps_the_first_tokens_as_they_stand(codec: Codec, length: int) -> None:
    k, v = random_pair(150)
    whole = encode(codec, k, v)
    cropped = whole.crop(length, codec)
    assert cropped.num_tokens == length
    assert cropped.k.open.dtype == torch.bfloat16
    for found, all_of_it in zip(restore(codec, cropped), restore(codec, whole), strict=True):
        # A unit that is cut comes back as what its codes stand for, in 16 bits.
        assert torch.allclose(found, all_of_it[:, :, :length].bfloat16().float(), rtol=2**-7, atol=1e-6)
    for side in (cropped.k, cropped.v):
        assert side.closed is None or side.closed.num_tokens > 0
    again = encode(codec, *random_pair(60), cropped)
    assert again.num_tokens == length + 60
    # What was codes before the crop stays codes, even where a row that came here straight would hold it open.
    due = codec.closed(length + 60)
    assert again.k.lengths[1] >= due[0]
    assert again.v.lengths[1] >= due[1]
    assert again.nbytes <= codec.bytes_per_token(HeadShape(2, 32), length + 60) * 2 * (length + 60) * (1 + 1e-9)


@pytest.mark.parametrize("codec", [ATC, V1, KIVI, PLAIN], ids=NAMES)
def test_rows_are_picked_repeated_and_reordered(codec: Codec) -> None:
    k, v = random_pair(100, rows=3)
    chosen = torch.tensor([2, 0, 0, 1])
    assert_same(encode(codec, k, v).rows(chosen), encode(codec, k[chosen], v[chosen]))


ACTIONS: dict[str, Callable[[Codec, Blocks], Blocks]] = {
    "encode": lambda codec, blocks: blocks,
    "grow": lambda codec, blocks: encode(codec, *random_pair(70, rows=1), blocks),
    "crop": lambda codec, blocks: blocks.crop(90, codec),
    "crop far": lambda codec, blocks: blocks.crop(41, codec),
    "crop into the sinks": lambda codec, blocks: blocks.crop(2, codec),
    "crop all": lambda codec, blocks: blocks.crop(0, codec),
    "rows": lambda codec, blocks: blocks.rows(torch.tensor([0])),
}


def from_wide_input(codec: Codec, act: Callable[[Codec, Blocks], Blocks]) -> Blocks:
    """Blocks made from views of large tensors."""
    k, v = (torch.randn(1, 8, 100, 3 * 32).to(torch.bfloat16)[:, :2, :, :32] for _ in range(2))
    return act(codec, encode(codec, k, v))


@pytest.mark.parametrize("act", ACTIONS.values(), ids=ACTIONS.keys())
@pytest.mark.parametrize("codec", [ATC, V1, KIVI, PLAIN], ids=NAMES)
def test_blocks_keep_no_more_memory_alive_than_they_count(codec: Codec, act: Callable) -> None:
    blocks = from_wide_input(codec, act)
    assert kept_alive([tensor for tensor in tensors(blocks).values() if tensor.numel()]) == blocks.nbytes


@pytest.mark.parametrize("codec", [ATC, V1, KIVI, PLAIN], ids=NAMES)
def test_empty_parts_keep_no_memory_alive(codec: Codec) -> None:
    for act in ACTIONS.values():
        blocks = from_wide_input(codec, act)
        assert kept_alive([tensor for tensor in tensors(blocks).values() if not tensor.numel()]) == 0


def test_a_span_stops_where_a_token_that_was_seen_open_would_become_codes() -> None:
    assert next_closing(ATC, 0, 200) == 36
    assert next_closing(ATC, 36, 200) == 68
    assert next_closing(ATC, 40, 50) == 50
    assert next_closing(V1, 0, 200) == 32
    assert next_closing(V1, 32, 200) == 64
    assert next_closing(KIVI, 0, 500) == 64
    assert next_closing(KIVI, 64, 500) == 95
    assert next_closing(PLAIN, 3, 500) == 500


def test_sides_count_their_tokens_and_bytes() -> None:
    none = torch.zeros(1, 2, 0, 32, dtype=torch.bfloat16)
    side = Side(none, None, none)
    assert side.lengths == (0, 0, 0)
    assert side.nbytes == 0
    side = side.append(torch.randn(1, 2, 5, 32), num_sinks=2)
    assert side.sinks.dtype == side.open.dtype == torch.bfloat16
    assert side.lengths == (2, 0, 3)
    assert side.nbytes == 5 * 2 * 32 * 2
    closed = Coded(1, {"codes": torch.zeros(1, 2, 3, 32, dtype=torch.uint8)})
    assert side.close(3, lambda x, start: closed).lengths == (2, 3, 0)


def test_closing_says_where_in_the_row_the_tokens_stand() -> None:
    asked = []

    def remember(x: Tensor, start: int) -> Coded:
        asked.append((start, x.shape[2]))
        return Coded(1, {"codes": x})

    side = Side(torch.zeros(1, 1, 0, 8), None, torch.zeros(1, 1, 0, 8)).append(torch.randn(1, 1, 20, 8), num_sinks=3)
    side.close(5, remember).close(5, remember).close(12, remember)
    assert asked == [(3, 5), (8, 7)]
