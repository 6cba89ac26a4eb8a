"""What the kernels cannot do is left to the reference."""

import torch

from thrifty.kv.blocks import encode
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.kernels import shapes


def suits(codec: Hack, tokens: int = 333, dim: int = 128, dtype: torch.dtype = torch.bfloat16, new: int = 1) -> bool:
    k, v = torch.randn(2, 1, 2, tokens, dim).to(dtype)
    q = torch.randn(1, 8, new, dim).to(dtype)
    return shapes.suit(q, encode(codec, k, v), codec.k_bits, codec.v_bits, codec._group(dim))


def test_the_usual_shapes_suit() -> None:
    for dim in (64, 128):
        assert suits(Hack(), dim=dim)
        assert suits(Hack(k_bits=4), dim=dim, new=16)


def test_what_a_kernel_cannot_do_does_not_suit() -> None:
    assert not suits(Hack(), tokens=20)  # no codes yet
    assert not suits(Hack(v_bits=3))
    assert not suits(Hack(), dim=80)
    assert not suits(Hack(dtype="float16"), dtype=torch.float32, dim=256, new=4)
    assert not suits(Hack(layout="v1"))
