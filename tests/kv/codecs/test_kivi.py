"""What is special about KIVI: its residual window and its groups."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.kv.blocks import HeadShape, encode
from thrifty.kv.codecs.kivi import Kivi


def test_the_defaults_are_the_published_ones() -> None:
    assert Kivi() == Kivi(k_bits=2, v_bits=2, group=32, residual=128, dtype="auto")
    assert Kivi().num_sinks == 0


@pytest.mark.parametrize(
    ("tokens", "keys", "values"),
    [(1, 0, 0), (128, 0, 0), (129, 128, 0), (159, 128, 0), (160, 128, 32), (256, 128, 128), (257, 256, 128)],
)
def test_keys_close_a_residual_at_a_time_and_values_as_they_leave_the_window(
    tokens: int, keys: int, values: int
) -> None:
    assert Kivi().closed(tokens) == (keys, values)
    k = torch.randn(1, 1, tokens, 64)
    blocks = encode(Kivi(), k, k)
    assert blocks.k.lengths == (0, keys, tokens - keys)
    assert blocks.v.lengths == (0, values, tokens - values)


def test_the_newest_residual_of_values_stays_in_16_bits() -> None:
    for codec in (Kivi(), Kivi(residual=32), Kivi(group=64, residual=192)):
        for tokens in range(1, 600):
            keys, values = codec.closed(tokens)
            assert tokens - values >= min(tokens, codec.residual)
            assert tokens - values < codec.residual + codec.group
            assert 1 <= tokens - keys <= codec.residual


def test_keys_share_a_scale_per_channel_and_values_per_token() -> None:
    k, v = torch.randn(1, 2, 129, 64), torch.randn(1, 2, 129, 64)
    codec = Kivi(residual=32, dtype="float16")
    blocks = encode(codec, k, v)
    assert blocks.k.closed is not None
    assert blocks.v.closed is not None
    k, v = k.half().float(), v.half().float()
    assert torch.equal(blocks.k.closed["low"][0, 0, 1, 0], k[0, 0, 32:64].amin(0).half())
    assert torch.equal(blocks.v.closed["low"][0, 1, 2, :, 0, 0], v[0, 1, 64:96, :32].amin(-1).half())
    assert torch.equal(blocks.v.closed["low"][0, 1, 2, :, 1, 0], v[0, 1, 64:96, 32:].amin(-1).half())
    right_scale = ((k[0, 0, 32:64].amax(0) - k[0, 0, 32:64].amin(0)) / 3).half()
    assert torch.equal(blocks.k.closed["scale"][0, 0, 1, 0], right_scale)


def test_closed_tokens_cost_what_was_published() -> None:
    # 2 bits in groups of 32: 2 bits and twice 16 / 32 bits of scale and low, so 3 bits a value.
    codec = Kivi(residual=32)
    closed_k, closed_v = codec.closed(100_000)
    closed = codec.bytes_per_token(HeadShape(1, 128), 100_000) * 100_000
    closed -= (200_000 - closed_k - closed_v) * 128 * 2
    assert closed == (closed_k + closed_v) * 128 * 3 / 8


@pytest.mark.parametrize("residual", [0, 16, 48, -32])
def test_a_residual_that_is_no_multiple_of_the_group_is_refused(residual: int) -> None:
    with pytest.raises(SettingError, match=rf"residual={residual}; use a multiple of the group of 32"):
        Kivi(residual=residual)


def test_values_that_do_not_exist_are_refused_with_those_that_do(make_unchecked: Callable[..., Any]) -> None:
    with pytest.raises(SettingError, match=r"Kivi: k_bits=5; use one of 2, 3, 4, 8"):
        make_unchecked(Kivi, k_bits=5)
    with pytest.raises(SettingError, match=r"Kivi: group=16; use one of 32, 64, 128"):
        make_unchecked(Kivi, group=16)


def test_a_head_that_its_groups_do_not_divide_is_refused() -> None:
    with pytest.raises(SettingError, match=r"group=32 does not divide heads of 80 channels; use group=128"):
        Kivi().check(80)
    Kivi(group=128).check(80)
    with pytest.raises(SettingError, match=r"heads of 48 channels; use group=64 or 128"):
        Kivi().check(48)
    Kivi(group=64).check(48)
    with pytest.raises(SettingError, match=r"heads of 136 channels; use the codec gear"):
        Kivi().check(136)
    with pytest.raises(SettingError, match=r"100"):
        Kivi(group=128).check(100)
