"""Every field of a word becomes offset + code: the constants by which the kernel cuts codes out."""

import pytest
import torch

from thrifty.kv.quantise import pack

fields = pytest.importorskip("thrifty.kv.kernels.fields", reason="no Triton: the GPU kernel is NOT tested here")


def plain(function: object) -> object:
    return getattr(function, "fn", getattr(function, "__wrapped__", function))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_shift_and_a_mask_give_offset_plus_code(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (64, 32), dtype=torch.uint8)
    words = pack(codes, bits).view(torch.int32).long() & 0xFFFFFFFF
    for field in range(16 // bits):
        place = plain(fields.placed_at)(bits, field)
        shift = place - bits * field
        moved = (words << shift if shift > 0 else words >> -shift) & 0xFFFFFFFF
        mask, exponent = ((1 << bits) - 1) << place, (25 - place) << 10
        cut = ((moved & (mask * 0x10001)) | (exponent * 0x10001)).to(torch.int64)
        pair = torch.stack([cut & 0xFFFF, cut >> 16], -1).flatten(-2).to(torch.uint16).view(torch.float16)
        offset = 2.0 ** (10 - place)
        assert torch.equal(pair.float() - offset, codes[:, field :: 16 // bits].float())
