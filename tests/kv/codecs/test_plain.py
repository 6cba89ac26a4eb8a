"""What is special about no compression."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.kv.blocks import HeadShape, encode
from thrifty.kv.codecs.plain import Plain


def test_plain_keeps_every_bit_that_came() -> None:
    k, v = torch.randn(1, 2, 300, 48), torch.randn(1, 2, 300, 48)
    blocks = encode(Plain(), k, v)
    assert blocks.k.lengths == (0, 0, 300)
    assert torch.equal(blocks.k.open, k)
    assert torch.equal(blocks.v.open, v)


def test_plain_costs_two_values_a_channel() -> None:
    assert Plain().bytes_per_token(HeadShape(3, 64), 1000) == 3 * 64 * 2 * 2
    assert Plain().bytes_per_token(HeadShape(3, 64, element_bytes=4), 7) == 3 * 64 * 2 * 4
    assert Plain("bfloat16").bytes_per_token(HeadShape(3, 64, element_bytes=4), 7) == 3 * 64 * 2 * 2


def test_plain_stores_in_the_dtype_that_is_asked_for() -> None:
    k = torch.randn(1, 2, 9, 64)
    assert encode(Plain("float16"), k, k).k.open.dtype == torch.float16
    assert encode(Plain(), k.bfloat16(), k.bfloat16()).k.open.dtype == torch.bfloat16
    assert encode(Plain("float32"), k.bfloat16(), k.bfloat16()).k.open.dtype == torch.float32


def test_plain_takes_heads_of_any_size() -> None:
    Plain().check(7)
    k = torch.randn(1, 1, 5, 7)
    assert Plain().attend(torch.randn(1, 1, 1, 7), encode(Plain(), k, k), 1.0).shape == (1, 1, 1, 7)


def test_plain_has_no_codes() -> None:
    x = torch.randn(1, 1, 64, 64)
    with pytest.raises(SettingError, match="no codes"):
        Plain().encode_k(x, 0)
    with pytest.raises(SettingError, match="no codes"):
        Plain().encode_v(x, 0)


def test_a_dtype_that_does_not_exist_is_refused_with_those_that_do(make_unchecked: Callable[..., Any]) -> None:
    with pytest.raises(SettingError, match=r"dtype=int8; use one of auto, bfloat16, float16, float32"):
        make_unchecked(Plain, dtype="int8")
