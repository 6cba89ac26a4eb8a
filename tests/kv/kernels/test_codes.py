"""The products of the decode kernel take every channel of a head exactly once."""

from typing import Any

import pytest
import torch


def places(kernels: Any, bits: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Channel and offset by (product, row), as the kernel counts them."""
    import triton
    import triton.language as tl

    from thrifty.kv.kernels.codes import place_of

    @triton.jit
    def kernel(channels, offsets, DIM: tl.constexpr, BITS: tl.constexpr):
        HALVES: tl.constexpr = DIM * BITS // 16
        ROWS: tl.constexpr = max(HALVES, 16)
        row = tl.arange(0, ROWS)
        for index in tl.static_range(DIM // ROWS):
            channel, offset = place_of(row, index, HALVES, BITS)
            tl.store(channels + index * ROWS + row, channel)
            tl.store(offsets + index * ROWS + row, offset)

    kernel.fn.__globals__.update(tl=tl, place_of=place_of)
    channels = torch.full((dim,), -1, dtype=torch.int32, device=kernels.device)
    offsets = torch.zeros(dim, device=kernels.device)
    kernel[(1,)](channels, offsets, DIM=dim, BITS=bits)
    return channels.cpu(), offsets.cpu()


@pytest.mark.parametrize(("bits", "dim"), [(2, 64), (2, 128), (4, 64), (4, 128), (8, 256)])
def test_products_take_every_channel_once_with_the_offset_of_its_field(kernels: Any, bits: int, dim: int) -> None:
    from thrifty.kv.kernels.fields import offset_of

    offset = getattr(offset_of, "fn", getattr(offset_of, "__wrapped__", offset_of))
    channels, offsets = places(kernels, bits, dim)
    assert sorted(channels.tolist()) == list(range(dim))
    assert offsets.tolist() == [offset(bits, channel % (16 // bits)) for channel in channels.tolist()]
