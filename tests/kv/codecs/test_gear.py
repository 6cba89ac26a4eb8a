"""What is particular to GEAR: each of its three parts lowers the error, and outliers come back as they were."""

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.kv.blocks import encode, restore
from thrifty.kv.codecs.gear import Gear


def keys(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 2, 200, 64, generator=generator)
    x[:, :, :, 5] *= 20  # a channel of outliers, as keys have
    x[:, :, 17, :] *= 6  # a token of outliers
    return x


def error(codec, x):
    k, v = restore(codec, encode(codec, x, x))
    return float((k - x).norm() / x.norm()), float((v - x).norm() / x.norm())


@pytest.mark.parametrize("bits", [2, 4])
def test_outliers_and_rank_each_lower_the_error(bits):
    bare = error(Gear(k_bits=bits, v_bits=bits, outliers=0.0, rank=1), keys())
    with_rank = error(Gear(k_bits=bits, v_bits=bits, outliers=0.0, rank=8), keys())
    with_both = error(Gear(k_bits=bits, v_bits=bits, outliers=0.1, rank=8), keys())
    assert all(b < a for a, b in zip(bare, with_rank, strict=True))
    assert all(b < a for a, b in zip(with_rank, with_both, strict=True))


def test_an_outlier_comes_back_in_sixteen_bits():
    x = keys()
    x[0, 1, 30, 9] = 1000.0
    k, v = restore(Gear(k_bits=2, v_bits=2), encode(Gear(k_bits=2, v_bits=2), x, x))
    assert k[0, 1, 30, 9] == v[0, 1, 30, 9] == 1000.0


def test_a_residual_of_low_rank_vanishes():
    codec = Gear(outliers=0.0, rank=4, power_steps=8)
    factors = torch.randn(64, 4), torch.randn(4, 64)
    left, right = codec._low_rank(factors[0] @ factors[1])
    assert torch.allclose(left @ right, factors[0] @ factors[1], atol=1e-4)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"outliers": 0.5}, {"power_steps": 0}], ids=str)
def test_values_that_make_no_sense_are_refused(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        Gear(**wrong)
