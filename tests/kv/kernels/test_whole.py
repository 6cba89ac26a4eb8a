"""Codes unpacked for a prefill are the codes, and nothing of what they stand for."""

from typing import Any

import pytest
import torch

from thrifty.kv.blocks import encode
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.quantise import unpack


@pytest.mark.parametrize(("k_bits", "v_bits"), [(2, 4), (8, 2)])
def test_the_workspace_holds_the_codes_and_their_scales(kernels: Any, k_bits: int, v_bits: int) -> None:
    from thrifty.kv.kernels.whole import Whole

    codec = Hack(k_bits=k_bits, v_bits=v_bits)
    _, k, v = kernels.sample(2, 2, 1, 260, 128, torch.bfloat16)
    blocks = encode(codec, k, v)
    coded_k, coded_v = blocks.k.closed, blocks.v.closed
    assert coded_k
    assert coded_v
    units = coded_k["codes"].shape[2]
    whole = Whole.empty(2 * units, 128, 64, 2, k.device)
    whole.fill(coded_k, coded_v, 1, 2, k_bits, v_bits, 64)  # the last head of a row and the first of the next

    def chosen(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flatten(0, 1)[1:3]

    assert torch.equal(whole.k.flatten(), unpack(chosen(coded_k["codes"]), k_bits).half().flatten())
    assert torch.equal(whole.v.flatten(), unpack(chosen(coded_v["codes"]), v_bits).half().flatten())
    assert torch.equal(whole.k_scales.flatten(), chosen(coded_k["scale"]).half().flatten())
    low = chosen(coded_v["low"]).half().reshape(-1, 2)
    assert torch.equal(whole.thin[:, :2], low)
    assert torch.equal(whole.thin[:, 2:3], torch.ones_like(low[:, :1]))
    assert not whole.thin[:, 3:].any()
    scales = chosen(coded_v["scale"]).half().reshape(-1, 64, 2).transpose(1, 2)
    assert torch.equal(whole.v_scales.flatten(), scales.flatten())
    assert sum(tensor.nbytes for tensor in whole.tensors) == 2 * units * Whole.bytes_per_block(128, 64, 2)
