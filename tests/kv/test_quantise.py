"""Packing loses nothing; quantising loses at most what it says; noise belongs to a position."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.kv.quantise import (
    _moments,
    _moments_of_codes,
    pack,
    position_noise,
    quantise,
    quantise_operand,
    quantise_unbiased,
    unpack,
)

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)


@pytest.mark.parametrize("bits", WIDTHS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data(), eighths=st.integers(1, 40), rows=st.integers(1, 3))
def test_unpack_is_the_inverse_of_pack(bits: int, data: st.DataObject, eighths: int, rows: int) -> None:
    count = rows * eighths * 8
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    codes = torch.tensor(values, dtype=torch.uint8).view(rows, 1, eighths * 8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, 1, eighths * bits)
    assert torch.equal(unpack(packed, bits), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_code_survives_at_every_place(bits: int) -> None:
    for code in range(2**bits):
        for place in range(16):
            codes = torch.zeros(16, dtype=torch.uint8)
            codes[place] = code
            assert torch.equal(unpack(pack(codes, bits), bits), codes)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_code_i_starts_at_bit_bits_times_i(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (64,), dtype=torch.uint8)
    number = int.from_bytes(bytes(pack(codes, bits).tolist()), "little")
    assert number == sum(code << (bits * index) for index, code in enumerate(codes.tolist()))


def test_three_bits_are_a_plane_of_two_and_a_plane_of_one() -> None:
    codes = torch.randint(0, 8, (40,), dtype=torch.uint8)
    packed = pack(codes, 3)
    assert torch.equal(packed[:10], pack(codes & 3, 2))
    assert torch.equal(packed[10:], pack(codes >> 2, 1))


def test_widths_above_four_are_a_plane_of_four_and_the_rest() -> None:
    codes = torch.randint(0, 128, (40,), dtype=torch.uint8)
    packed = pack(codes, 7)
    assert torch.equal(packed[:20], pack(codes & 15, 4))
    assert torch.equal(packed[20:], pack(codes >> 4, 3))


@pytest.mark.parametrize("bits", WIDTHS)
def test_packing_does_not_change_what_is_given(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 16), dtype=torch.uint8)
    copy = codes.clone()
    packed = pack(codes, bits)
    packed_copy = packed.clone()
    unpack(packed, bits)
    assert torch.equal(codes, copy)
    assert torch.equal(packed, packed_copy)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dim", [-1, -2])
def test_nearest_codes_are_the_best_codes_for_the_stored_pair(bits: int, dim: int) -> None:
    x = torch.randn(5, 7, 12) * torch.rand(5, 7, 12) * 10
    codes, scale, low = quantise(x, bits, dim, torch.bfloat16)
    assert scale.dtype == low.dtype == torch.bfloat16
    assert scale.shape == low.shape == x.amax(dim, keepdim=True).shape
    levels = torch.arange(2**bits).view(-1, 1, 1, 1)
    choices = levels * scale.float() + low.float()
    best = (choices - x).abs().amin(0)
    restored = codes.float() * scale.float() + low.float()
    assert torch.allclose((restored - x).abs(), best, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_error_is_half_a_scale_and_the_rounding_of_low_and_range(bits: int, dtype: torch.dtype) -> None:
    x = torch.randn(20, 64) * 3 + torch.randn(20, 1) * 5
    codes, scale, low = quantise(x, bits, -1, dtype)
    right_low = x.amin(-1, keepdim=True)
    span = x.amax(-1, keepdim=True) - right_low
    rounding = (low.float() - right_low).abs() + (scale.float() * (2**bits - 1) - span).abs()
    error = (codes.float() * scale.float() + low.float() - x).abs()
    assert (error <= scale.float() / 2 + rounding + 1e-5).all()


def test_stochastic_codes_are_one_of_the_two_neighbours_and_right_on_average() -> None:
    x = torch.rand(1, 4096) * 3
    x[0, :2] = torch.tensor([0.0, 3.0])
    tries = []
    for _ in range(50):
        codes, scale, low = quantise(x, 2, -1, torch.float32, noise=torch.rand(x.shape))
        steps = (x - low) / scale
        assert ((codes.float() == steps.floor()) | (codes.float() == steps.ceil())).all()
        tries.append(codes.float() * scale + low - x)
    assert abs(float(torch.stack(tries).mean())) < 0.01
    assert float(torch.stack(tries).mean(0).abs().mean()) < 0.1  # nearest: 0.25


def test_a_constant_partition_is_restored_exactly() -> None:
    x = torch.tensor([[2.5] * 8, [0.0] * 8, [-3.0] * 8])
    codes, scale, low = quantise(x, 2, -1, torch.bfloat16)
    assert torch.equal(codes.float() * scale.float() + low.float(), x)
    assert torch.isfinite(scale).all()


def test_a_range_too_small_for_the_dtype_gives_no_infinity() -> None:
    x = torch.tensor([[0.0, 1e-9, 2e-9, 1e-12]])
    codes, scale, low = quantise(x, 2, -1, torch.float16)
    assert torch.allclose(codes.float() * scale.float() + low.float(), x, atol=1e-8)


def test_an_operand_of_8_bits_is_whole_and_off_by_half_a_scale() -> None:
    x = torch.randn(3, 5, 64) * 4
    codes, scale, low = quantise_operand(x.clone(), -1)
    assert torch.equal(codes, codes.round())
    assert codes.min() == 0
    assert codes.max() == 255
    assert ((codes * scale + low - x).abs() <= scale / 2 * 1.001 + 1e-6).all()


def test_a_constant_operand_is_kept() -> None:
    for value in (0.0, 1.0, -7.5):
        codes, scale, low = quantise_operand(torch.full((2, 16), value), -1)
        assert torch.equal(codes * scale + low, torch.full((2, 16), value))


def test_an_operand_is_not_changed() -> None:
    x = torch.randn(4, 32)
    copy = x.clone()
    quantise_operand(x, -1)
    assert torch.equal(x, copy)


def noise(tokens: int, start: int, seed: int = 0, rows: int = 1) -> torch.Tensor:
    return position_noise(torch.Size([rows, 3, tokens, 16]), start, seed, torch.device("cpu"))


def test_noise_belongs_to_a_position_and_to_nothing_else() -> None:
    whole = noise(100, 0)
    assert torch.equal(noise(30, 50), whole[:, 50:80])
    assert torch.equal(noise(100, 0, rows=5), whole)
    assert not torch.equal(noise(100, 0, seed=1), whole)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[:, 0], whole[:, 1])


def test_noise_is_even_in_zero_to_one_and_not_correlated() -> None:
    value = position_noise(torch.Size([1, 4, 512, 64]), 0, 0, torch.device("cpu"))
    assert value.min() >= 0
    assert value.max() < 1
    counts = torch.histc(value, 16, 0, 1) / value.numel()
    assert ((counts - 1 / 16).abs() < 0.002).all()
    centred = value - 0.5
    for first, second in (
        (centred[:, 1:], centred[:, :-1]),
        (centred[..., 1:], centred[..., :-1]),
        (centred[1:], centred[:-1]),
        (centred, position_noise(torch.Size([1, 4, 512, 64]), 0, 1, torch.device("cpu")) - 0.5),
    ):
        assert abs(float((first * second).mean() * 12)) < 0.02


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dim", [-1, -2])
def test_an_unbiased_fit_keeps_the_mean_and_follows_the_values_one_to_one(bits: int, dim: int) -> None:
    x = torch.randn(5, 64, 64) * 3 + 7
    codes, scale, low = quantise_unbiased(x, bits, dim, torch.float32)
    restored = codes * scale + low
    centred, found = x - x.mean(dim, keepdim=True), restored - restored.mean(dim, keepdim=True)
    torch.testing.assert_close(restored.mean(dim), x.mean(dim), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((centred * found).sum(dim), centred.square().sum(dim), atol=1e-2, rtol=1e-4)
    assert int(codes.max()) == 2**bits - 1


def test_an_unbiased_fit_of_normal_values_errs_less_than_their_range() -> None:
    x = torch.randn(200, 64)
    errors = []
    for fit in (quantise, quantise_unbiased):
        codes, scale, low = fit(x, 2, -1, torch.bfloat16)
        errors.append((codes * scale + low - x).square().mean())
    assert errors[1] < 0.8 * errors[0]


def test_an_unbiased_fit_restores_a_constant_group() -> None:
    codes, scale, low = quantise_unbiased(torch.full((2, 64), 1.5), 2, -1, torch.bfloat16)
    assert torch.equal(codes * scale + low, torch.full((2, 64), 1.5))


@pytest.mark.parametrize("count", [1, 64, 256, 1000])
def test_moments_of_codes_are_exact_at_every_length(count: int) -> None:
    codes = torch.full((3, count), 255.0)
    codes[0] = torch.randint(256, (count,)).float()
    codes[1, ::2] = 254
    assert all(torch.equal(one, other) for one, other in zip(_moments_of_codes(codes), _moments(codes), strict=True))
