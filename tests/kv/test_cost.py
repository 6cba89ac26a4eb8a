"""What bits cost."""

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.kv.blocks import HeadShape
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.plain import Plain
from thrifty.kv.cost import bytes_per_token, has_bits, with_bits

SHAPE = HeadShape(3, 64)


def keep(k_bits, v_bits, layers=2):
    sides = {"k": k_bits, "v": v_bits}
    return {f"layers.{n}.{s}": torch.full((3,), bits) for n in range(layers) for s, bits in sides.items()}


def test_the_cost_of_a_plan_is_what_its_codecs_say():
    cost = bytes_per_token(Hack(), SHAPE, 2048)
    assert float(cost(keep(4, 2))) == pytest.approx(2 * Hack(k_bits=4, v_bits=2).bytes_per_token(SHAPE, 2048))


def test_sixteen_bits_cost_two_bytes_a_value():
    assert float(bytes_per_token(Hack(), SHAPE, 2048)(keep(16, 16))) == 2 * 3 * 64 * 2 * 2


def test_more_bits_cost_more():
    cost = bytes_per_token(Hack(), SHAPE, 2048)
    costs = [float(cost(keep(bits, bits))) for bits in (2, 3, 4, 8, 16)]
    assert costs == sorted(set(costs))


def test_a_codec_without_bits_says_so():
    assert not has_bits(Plain())
    with pytest.raises(SettingError, match="Plain has no bits"):
        with_bits(Plain(), 4, 4)
