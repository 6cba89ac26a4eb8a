"""Products of codes equal products of what the codes stand for."""

from collections.abc import Callable

import pytest
import torch
from einops import einsum, rearrange, reduce
from torch import Tensor

from thrifty.kv import homomorphic
from thrifty.kv.quantise import quantise_operand

ROWS, HEADS, QUERIES, BLOCKS, TOKENS, GROUPS, CHANNELS = 2, 3, 5, 4, 32, 2, 16
PRODUCTS = ["scores_by_channel", "scores_by_token", "mix_by_channel", "mix_by_token"]


def is_by_channel(name: str) -> bool:
    return name.endswith("channel")


def operands(name: str, bits: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A query or weights, and codes with their scale, low and sums."""
    codes = torch.randint(0, 2**bits, (ROWS, HEADS, BLOCKS, TOKENS, GROUPS, CHANNELS)).float()
    shape = (GROUPS, CHANNELS) if is_by_channel(name) else (TOKENS, GROUPS)
    scale, low = torch.rand(ROWS, HEADS, BLOCKS, *shape) + 0.1, torch.randn(ROWS, HEADS, BLOCKS, *shape)
    if name.startswith("scores"):
        x = torch.randn(ROWS, HEADS, QUERIES, GROUPS, CHANNELS)
        return x, codes, scale, low, reduce(codes, "r h b t g c -> r h b t g", "sum")
    x = torch.rand(ROWS, HEADS, QUERIES, BLOCKS, TOKENS).mul(4).flatten(-2).softmax(-1).view(-1, BLOCKS, TOKENS)
    x = x.view(ROWS, HEADS, QUERIES, BLOCKS, TOKENS)
    return x, codes, scale, low, reduce(codes, "r h b t g c -> r h b g c", "sum")


def whole(x: Tensor, name: str) -> Tensor:
    """A scale or a low spread over [rows, heads, blocks, tokens, groups, channels]."""
    return x.unsqueeze(3) if is_by_channel(name) else x.unsqueeze(-1)


def rounded(x: Tensor, dim: int) -> Tensor:
    codes, scale, low = quantise_operand(x, dim)
    return codes * scale + low


def product(name: str, left: Tensor, right: Tensor) -> Tensor:
    """The plain product in float64. `left` may have its own values for each block, group, token or channel."""
    if name.startswith("scores"):
        return einsum(left.double(), right.double(), "r h b g q c, r h b t g c -> r h q b t")
    return einsum(left.double(), right.double(), "r h b g q t, r h b t g c -> r h q g c")


def spread(name: str, x: Tensor) -> Tensor:
    """A query or weights, repeated for each block and group."""
    if name.startswith("scores"):
        return rearrange(x, "r h q g c -> r h 1 g q c").expand(-1, -1, BLOCKS, -1, -1, -1)
    return rearrange(x, "r h q b t -> r h b 1 q t").expand(-1, -1, -1, GROUPS, -1, -1)


def relative_error(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("bits", [2, 8])
def test_an_exact_product_equals_the_product_with_what_is_restored(name: str, bits: int) -> None:
    call: Callable[..., Tensor] = getattr(homomorphic, name)
    x, codes, scale, low, sums = operands(name, bits)
    right = product(name, spread(name, x), codes * whole(scale, name) + whole(low, name))
    assert relative_error(call(x, codes, scale, low, sums, True), right) < 1e-5


@pytest.mark.parametrize("name", ["scores_by_token", "mix_by_channel"])
def test_a_product_in_8_bits_equals_the_product_with_the_rounded_operand(name: str) -> None:
    """Equation 3 of the paper: rounding the query or the weights is its only error."""
    x, codes, scale, low, sums = operands(name)
    right = product(name, rounded(spread(name, x), -1), codes * whole(scale, name) + whole(low, name))
    found = getattr(homomorphic, name)(x, codes, scale, low, sums, False)
    assert relative_error(found, right) < 1e-5
    assert relative_error(found, product(name, spread(name, x), codes * whole(scale, name) + whole(low, name))) > 1e-4


def test_folded_scores_in_8_bits_round_the_query_times_the_scale() -> None:
    q, codes, scale, low, sums = operands("scores_by_channel")
    folded = rounded(einsum(q, scale, "r h q g c, r h b g c -> r h b g q c"), -1)
    right = product("scores", folded, codes) + product("scores", spread("scores", q), whole(low, "channel") + 0 * codes)
    found = homomorphic.scores_by_channel(q, codes, scale, low, sums, False)
    assert relative_error(found, right) < 1e-5


def test_folded_mixing_in_8_bits_rounds_the_weights_times_the_scale() -> None:
    weights, codes, scale, low, sums = operands("mix_by_token")
    folded = rounded(einsum(weights, scale, "r h q b t, r h b t g -> r h b g q t"), -1)
    right = product("mix", folded, codes) + product("mix", spread("mix", weights), whole(low, "token") + 0 * codes)
    found = homomorphic.mix_by_token(weights, codes, scale, low, sums, False)
    assert relative_error(found, right) < 1e-5


@pytest.mark.parametrize("name", PRODUCTS)
def test_stored_sums_and_sums_made_again_give_the_same(name: str) -> None:
    call: Callable[..., Tensor] = getattr(homomorphic, name)
    x, codes, scale, low, sums = operands(name)
    assert torch.equal(call(x, codes, scale, low, sums, False), call(x, codes, scale, low, None, False))
    assert not torch.allclose(call(x, codes, scale, low, sums + 1, False), call(x, codes, scale, low, None, False))


@pytest.mark.parametrize("name", PRODUCTS)
def test_eight_bits_of_the_left_operand_cost_little(name: str) -> None:
    call: Callable[..., Tensor] = getattr(homomorphic, name)
    x, codes, scale, low, sums = operands(name)
    exact = call(x, codes, scale, low, sums, True)
    assert relative_error(call(x, codes, scale, low, sums, False), exact.double()) < 2e-2


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_changes_none_of_its_operands(name: str) -> None:
    given = operands(name)
    copies = [tensor.clone() for tensor in given]
    for exact in (True, False):
        getattr(homomorphic, name)(*given, exact)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, copies, strict=True))


def test_codes_of_the_largest_partition_are_added_exactly() -> None:
    """255 * 255 * 128 stays below 2**24, so the product of codes is a whole number in float32."""
    q = torch.zeros(1, 1, 1, 1, 128)
    q[..., 1:] = 255.0
    codes = torch.full((1, 1, 1, 2, 1, 128), 255.0)
    one, none = torch.ones(1, 1, 1, 2, 1), torch.zeros(1, 1, 1, 2, 1)
    found = homomorphic.scores_by_token(q, codes, one, none, None, False)
    assert torch.equal(found, torch.full((1, 1, 1, 1, 2), 127 * 255.0 * 255.0))
