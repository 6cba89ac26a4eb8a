"""What is special about HACK: its two layouts, its bytes, its open block."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from thrifty.errors import SettingError
from thrifty.kv import dense
from thrifty.kv.blocks import Blocks, HeadShape, encode, restore
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.rotation import rotate


def blocks_of(codec: Hack, tokens: int = 200, head_dim: int = 64) -> tuple[Tensor, Tensor, Blocks]:
    k, v = (torch.randn(1, 2, tokens, head_dim).bfloat16().float() for _ in range(2))
    return k, v, encode(codec, k, v)


def test_the_defaults_are_those_of_the_released_code() -> None:
    codec = Hack()
    assert (codec.layout, codec.k_bits, codec.v_bits, codec.partition, codec.qp_bits) == ("atc", 2, 2, 64, 8)
    assert (codec.rounding, codec.sinks, codec.summation_elimination) == ("nearest", 4, True)


def test_v1_is_stochastic_and_has_no_sinks() -> None:
    codec = Hack(layout="v1")
    assert (codec.rounding, codec.sinks, codec.num_sinks) == ("stochastic", 0, 0)
    assert Hack(layout="v1", rounding="nearest", sinks=4).num_sinks == 4


def test_in_atc_keys_share_a_scale_per_channel_and_block_and_values_per_token() -> None:
    k, v, blocks = blocks_of(Hack(partition=32))
    assert blocks.k.closed is not None
    assert blocks.v.closed is not None
    for block in range(3):
        tokens = slice(4 + block * 32, 36 + block * 32)
        assert torch.equal(blocks.k.closed["low"][0, 0, block], k[0, 0, tokens].amin(0).bfloat16())
        spread = k[0, 0, tokens].amax(0) - k[0, 0, tokens].amin(0)
        assert torch.equal(blocks.k.closed["scale"][0, 0, block], (spread / 3).bfloat16())
        for group in range(2):
            part = v[0, 1, tokens, group * 32 : group * 32 + 32]
            assert torch.equal(blocks.v.closed["low"][0, 1, block, :, group], part.amin(-1).bfloat16())


def test_in_v1_keys_share_a_scale_per_token_and_values_per_channel_and_block() -> None:
    k, v, blocks = blocks_of(Hack(layout="v1", partition=32))
    assert blocks.k.closed is not None
    assert blocks.v.closed is not None
    assert blocks.k.closed.unit == 1
    for group in range(2):
        low = k[0, 1, :, group * 32 : group * 32 + 32].amin(-1).bfloat16()
        assert torch.equal(blocks.k.closed["low"][0, 1, :, 0, group], low)
    for block in range(6):
        low = v[0, 0, block * 32 : block * 32 + 32].amin(0).bfloat16()
        assert torch.equal(blocks.v.closed["low"][0, 0, block], low)


@pytest.mark.parametrize(
    ("tokens", "atc", "v1"),
    [
        (0, (0, 0), (0, 0)),
        (64, (0, 0), (64, 0)),
        (65, (0, 0), (65, 64)),
        (68, (0, 0), (68, 64)),
        (69, (64, 64), (69, 64)),
    ],
)
def test_blocks_close_one_token_late_and_keys_of_v1_at_once(
    tokens: int, atc: tuple[int, int], v1: tuple[int, int]
) -> None:
    assert Hack().closed(tokens) == atc
    assert Hack(layout="v1").closed(tokens) == v1


@pytest.mark.parametrize(
    ("head_dim", "partition", "k_bits", "v_bits", "total"),
    [
        (128, 64, 2, 2, 84),
        (128, 32, 2, 2, 104),
        (128, 128, 2, 2, 76),  # a sum of 128 codes can exceed 255: 16 bits
        (64, 64, 2, 2, 42),
        (
            64,
            64,
            4,
            2,
            59,
        ),  # published: 58, with 8-bit sums; 64 codes of 4 bits reach 960, so those of the keys take 16
        (64, 64, 4, 4, 76),  # published: 74, the same
    ],
)
@pytest.mark.parametrize("layout", ["atc", "v1"])
def test_a_closed_token_costs_what_was_published(
    layout: str, head_dim: int, partition: int, k_bits: int, v_bits: int, total: float
) -> None:
    codec = Hack(layout=layout, partition=partition, k_bits=k_bits, v_bits=v_bits)
    first, last = (codec.num_sinks + partition * n + 1 for n in (1, 5))
    shape = HeadShape(1, head_dim)
    grown = codec.bytes_per_token(shape, last) * last - codec.bytes_per_token(shape, first) * first
    assert grown / (4 * partition) == pytest.approx(total)
    k = torch.randn(1, 1, last, head_dim).bfloat16()
    assert encode(codec, k, k).nbytes == pytest.approx(codec.bytes_per_token(shape, last) * last)


def test_without_summation_elimination_no_sums_are_stored_and_nothing_else_changes() -> None:
    for layout in ("atc", "v1"):
        k, v, blocks = blocks_of(Hack(layout=layout))
        bare = Hack(layout=layout, summation_elimination=False)
        without = encode(bare, k, v)
        q = torch.randn(1, 4, 2, 64)
        assert blocks.k.closed is not None
        assert without.k.closed is not None
        assert set(blocks.k.closed.tensors) - set(without.k.closed.tensors) == {"sums"}
        assert torch.equal(bare.attend(q, without, 0.125), Hack(layout=layout).attend(q, blocks, 0.125))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("layout", ["atc", "v1"])
def test_sums_are_the_sums_of_the_codes_even_of_the_largest(layout: str, bits: int) -> None:
    codec = Hack(layout=layout, k_bits=bits, v_bits=bits, partition=128, sinks=0, rounding="nearest")
    x = torch.full((1, 1, 129, 128), 2.0**bits - 1)  # a scale of 1, which bfloat16 holds exactly
    x[:, :, 0] = 0.0  # per channel: one 0 and 127 of the highest code
    x[..., 0] = 0.0  # per token: the same
    blocks = encode(codec, x, x)
    for side, read in ((blocks.k, codec.restore_k), (blocks.v, codec.restore_v)):
        assert side.closed is not None
        codes = read(side.closed)
        assert codes.max() == 2**bits - 1
        over = -1 if side is blocks.k else 2
        assert torch.equal(side.closed["sums"].float().flatten(), codes.sum(over).flatten())


def test_a_head_smaller_than_the_partition_is_one_group() -> None:
    _, _, blocks = blocks_of(Hack(partition=128), tokens=140, head_dim=64)
    assert blocks.v.closed is not None
    assert blocks.v.closed["scale"].shape[-1] == 1


@pytest.mark.parametrize(("head_dim", "groups"), [(80, 5), (96, 2), (112, 7), (128, 2), (192, 3), (256, 4)])
def test_groups_are_the_largest_multiple_of_16_that_divides_a_head(head_dim: int, groups: int) -> None:
    _, _, blocks = blocks_of(Hack(), head_dim=head_dim)
    assert blocks.v.closed is not None
    assert blocks.v.closed["scale"].shape[-1] == groups


def test_more_bits_err_less() -> None:
    errors = []
    for bits in (2, 3, 4, 8):
        codec = Hack(k_bits=bits, v_bits=bits)
        k, v, blocks = blocks_of(codec)
        errors.append([float((x - y).square().mean()) for x, y in zip(restore(codec, blocks), (k, v), strict=True)])
    for side in range(2):
        assert all(more[side] > 2 * less[side] for more, less in pairwise(errors))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"k_bits": 5}, r"Hack: k_bits=5; use one of 2, 3, 4, 8"),
        ({"v_bits": 16}, r"Hack: v_bits=16; use one of 2, 3, 4, 8"),
        ({"partition": 48}, r"Hack: partition=48; use one of 32, 64, 128"),
        ({"layout": "v2"}, r"Hack: layout=v2; use one of atc, v1"),
        ({"rounding": "up"}, r"Hack: rounding=up; use one of nearest, stochastic"),
        ({"qp_bits": 4}, r"Hack: qp_bits=4; use one of 8, exact"),
        ({"dtype": "float32"}, r"Hack: dtype=float32; use one of auto, bfloat16, float16"),
        ({"fit": "unbiased", "rounding": "stochastic"}, r"use rounding=nearest"),
        ({"sinks": -1}, r"Hack: sinks=-1; use 0 or more"),
    ],
)
def test_values_that_do_not_exist_are_refused_with_those_that_do(
    wrong: dict[str, object], says: str, make_unchecked: Callable[..., Any]
) -> None:
    with pytest.raises(SettingError, match=says):
        make_unchecked(Hack, **wrong)


def test_a_head_that_is_no_multiple_of_16_is_refused() -> None:
    with pytest.raises(SettingError, match=r"heads of 100 channels; a multiple of 16 is needed"):
        Hack().check(100)


def test_rotation_and_unbiased_fit_cost_no_byte() -> None:
    _, _, usual = blocks_of(Hack())
    _, _, better = blocks_of(Hack(fit="unbiased", rotation="all"))
    assert usual.nbytes == better.nbytes


def test_rotated_values_are_coded_as_values_that_come_rotated() -> None:
    codec, plain = Hack(rotation="values", sinks=0), Hack(sinks=0)
    v = torch.randn(1, 2, 64, 64)
    one, other = codec.encode_v(v, 0), plain.encode_v(rotate(v), 0)
    assert all(torch.equal(one[name], other[name]) for name in one.tensors)
    assert torch.equal(codec.restore_v(one), rotate(plain.restore_v(other)))
    assert torch.equal(codec.encode_k(v, 0)["codes"], plain.encode_k(v, 0)["codes"])


def test_outlying_channels_of_values_hurt_less_when_rotated_and_fitted_without_bias() -> None:
    k, v = torch.randn(1, 2, 200, 64), torch.randn(1, 2, 200, 64)
    v[..., 7] *= 8
    q = torch.randn(1, 2, 1, 64) * 0.1
    errors = []
    for codec in (Hack(), Hack(rotation="values"), Hack(rotation="values", fit="unbiased")):
        out = codec.attend(q, encode(codec, k, v), 0.125)
        errors.append(float((out - dense.attend(q, k, v, 0.125)).norm()))
    assert errors[0] > 1.2 * errors[1] > 1.2 * errors[2]


def test_the_kernel_and_the_reference_agree_on_rotated_codes() -> None:
    codec = Hack(fit="unbiased", rotation="all")
    _, _, blocks = blocks_of(codec)
    q = torch.randn(1, 4, 1, 64)
    slow = replace(codec, kernel="reference").attend(q, blocks, 0.125)
    torch.testing.assert_close(codec.attend(q, blocks, 0.125), slow, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("rotation", ["none", "all"])
def test_smoothing_keys_would_change_nothing(rotation: str) -> None:
    """What a channel of keys has in common is in the low of its block already, so taking a mean off first (key
    smoothing) moves lows and leaves the codes."""
    codec, mean = Hack(rotation=rotation, dtype="float16"), torch.randint(-8, 9, (64,)).float()
    k = torch.randint(-64, 65, (1, 2, 64, 64)).float() / 16  # exact in float16, so that lows move without rounding
    shifted, plain = codec.encode_k(k + mean, 4), codec.encode_k(k, 4)
    same = (shifted["codes"] == plain["codes"]).float().mean()
    assert same == 1 if rotation == "none" else same > 0.99
    assert not torch.equal(shifted["low"], plain["low"])


@pytest.mark.parametrize("settings", [{}, {"layout": "v1"}, {"rotation": "all"}, {"qp_bits": "exact"}], ids=str)
def test_a_closed_token_counted_twice_attends_like_two_of_it(settings: dict[str, Any]) -> None:
    codec = Hack(**settings)
    _, _, blocks = blocks_of(codec, tokens=201)
    closed = blocks.k.lengths[1]
    q, counts = torch.randn(1, 4, 1, 64), 1.0 + (torch.arange(closed) % 3 == 0).float().expand(1, 2, -1)
    k, v = (side.restore(read) for side, read in ((blocks.k, codec.restore_k), (blocks.v, codec.restore_v)))
    times = torch.ones(201, dtype=torch.long)
    times[codec.num_sinks : codec.num_sinks + closed] = counts[0, 0].long()
    right = dense.attend(q, k.repeat_interleave(times, 2), v.repeat_interleave(times, 2), 0.125)
    found = codec.attend_counted(q, blocks, counts, 0.125)
    assert float((found - right).norm() / right.norm()) < (1e-5 if settings.get("qp_bits") == "exact" else 5e-2)
    assert torch.equal(
        codec.attend_counted(q, blocks, torch.ones_like(counts), 0.125),
        replace(codec, kernel="reference").attend(q, blocks, 0.125),
    )
