"""Weights that are rounded alike everywhere make every output an average of restored values."""

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.kv import dense
from thrifty.kv.blocks import encode, restore
from thrifty.kv.codecs.hack import Hack


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("queries", [1, 5])
def test_consistent_weights_are_closer_to_exact_than_published_ones(bits: int, queries: int) -> None:
    k, v = torch.randn(2, 2, 2, 3000, 64)
    q = torch.randn(2, 6, queries, 64)
    errors = {}
    for weights in ("published", "consistent"):
        codec = Hack(k_bits=bits, v_bits=bits, weights=weights, kernel="reference")
        blocks = encode(codec, k, v)
        wanted = dense.attend(q, *restore(codec, blocks), 0.125)
        errors[weights] = float((codec.attend(q, blocks, 0.125) - wanted).norm() / wanted.norm())
    assert errors["consistent"] < 2e-2
    assert errors["consistent"] < errors["published"] / 2


def test_averages_of_a_constant_are_that_constant() -> None:
    k, q = torch.randn(1, 2, 500, 64), torch.randn(1, 2, 1, 64)
    v = torch.full((1, 2, 500, 64), 3.0)
    out = Hack(kernel="reference").attend(q, encode(Hack(), k, v), 0.125)
    torch.testing.assert_close(out, torch.full_like(out, 3.0))


def test_layout_v1_has_published_weights_only() -> None:
    assert Hack(layout="v1").weights == "published"
    assert Hack().weights == "consistent"
    with pytest.raises(SettingError, match="use layout=atc"):
        Hack(layout="v1", weights="consistent")
