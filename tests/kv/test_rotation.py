"""The Hadamard rotation."""

import pytest
import torch

from thrifty.kv import rotation
from thrifty.kv.rotation import rotate, rotate_at_once, rotate_onto


@pytest.mark.parametrize("width", [16, 64, 80, 96, 128, 256])
def test_a_rotation_is_its_own_inverse_and_keeps_products(width: int) -> None:
    x, y = torch.randn(2, 3, width), torch.randn(2, 3, width)
    torch.testing.assert_close(rotate(rotate(x)), x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((rotate(x) * rotate(y)).sum(-1), (x * y).sum(-1), atol=1e-4, rtol=1e-4)


def test_one_large_channel_spreads_over_all() -> None:
    x = torch.zeros(64)
    x[5] = 8.0
    assert torch.equal(rotate(x).abs(), torch.ones(64))


def test_a_token_is_rotated_alike_whatever_comes_with_it() -> None:
    x = torch.randn(3, 2, 70, 64)
    assert torch.equal(rotate(x)[1:2, :, 3:4], rotate(x[1:2, :, 3:4]))


@pytest.mark.parametrize("width", [16, 64, 80, 96, 128, 256])
def test_one_product_rotates_as_sums_and_differences_do(width: int) -> None:
    x = torch.randn(2, 3, 5, width)
    torch.testing.assert_close(rotate_at_once(x), rotate(x), atol=1e-5, rtol=1e-5)
    y = torch.randn_like(x)
    torch.testing.assert_close(rotate_onto(y, x), y + rotate(x), atol=1e-5, rtol=1e-5)


def test_what_rotates_in_inference_mode_rotates_with_gradients_later() -> None:
    rotation._matrix.cache_clear()
    with torch.inference_mode():
        rotate_at_once(torch.randn(4, 64))
    x = torch.randn(4, 64, requires_grad=True)
    rotate_at_once(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_rotation_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(2, 9, 1, 64)
    with torch.autocast("cpu", dtype):
        turned, added = rotate_at_once(x), rotate_onto(x, x)
    assert turned.dtype == added.dtype == torch.float32
    torch.testing.assert_close(turned, rotate(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(added, x + rotate(x), atol=1e-5, rtol=1e-5)
