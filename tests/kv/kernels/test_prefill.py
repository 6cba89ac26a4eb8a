"""The prefill kernel in Triton equals what the reference shows each token, one after the other."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from thrifty.kv.blocks import Blocks
from thrifty.kv.cache import CompressedLayer
from thrifty.kv.codecs.hack import Hack


def check(
    kernels: Any, settings: dict, past: int, tokens: int, prefill: str, dim: int = 128, shared: int = 4, **tuned: Any
) -> None:
    from thrifty.kv.kernels import prefill as kernel

    codec = Hack(qp_bits="exact", kernel="reference", **settings)
    q, k, v = kernels.sample(1, 2, shared, tokens, dim, torch.float16, new=tokens)
    layer = CompressedLayer(codec, prefill)
    if past:
        layer.attend(q[:, :, :past], k[:, :, :past], v[:, :, :past], None, dim**-0.5)
    before = layer.groups[0].blocks if past else layer._empty(k, v)
    wanted = layer.attend(q[:, :, past:], k[:, :, past:], v[:, :, past:], None, dim**-0.5)
    seen, after = before.append(k[:, :, past:], v[:, :, past:], codec), layer.groups[0].blocks
    if prefill == "coded":
        seen = Blocks(replace(seen.k, closed=after.k.closed), replace(seen.v, closed=after.v.closed))
    found = kernel.attend(
        q[:, :, past:], seen, tokens, codec.k_bits, codec.v_bits, codec._group(dim), dim**-0.5,
        kernel.Tuning(assembly=kernels.has_gpu, **tuned),
    )  # fmt: skip
    assert kernels.error(found, wanted) < 2e-3


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_whole_prompt_equals_token_by_token(kernels: Any, bits: int) -> None:
    check(kernels, {"k_bits": bits, "v_bits": bits}, 0, 200, "coded")


@pytest.mark.parametrize("past", [68, 90, 150])
def test_a_later_chunk_equals_token_by_token(kernels: Any, past: int) -> None:
    check(kernels, {"k_bits": 4}, past, 260, "coded", queries=128)


def test_a_chunk_in_full_precision_sees_codes_before_it(kernels: Any) -> None:
    check(kernels, {}, 150, 260, "exact")


def test_heads_of_64_channels_and_an_odd_number_of_query_heads(kernels: Any) -> None:
    check(kernels, {}, 0, 150, "coded", dim=64, shared=3)


def test_other_partitions(kernels: Any) -> None:
    check(kernels, {"partition": 32, "sinks": 0}, 40, 140, "coded", shared=1)


def test_a_small_workspace_takes_turns(kernels: Any) -> None:
    check(kernels, {"k_bits": 4}, 0, 200, "coded", workspace=1)


@pytest.mark.gpu
@pytest.mark.parametrize("prefill", ["exact", "coded"])
def test_a_cache_prefills_through_the_kernel_on_a_gpu(gpu: Any, monkeypatch: pytest.MonkeyPatch, prefill: str) -> None:
    from thrifty.kv.kernels import prefill as kernel

    attend, called = kernel.attend, []
    monkeypatch.setattr(kernel, "attend", lambda *given: called.append(1) or attend(*given))
    q, k, v = gpu.sample(2, 2, 4, 900, 128, torch.bfloat16, new=900)
    outs = []
    for use in ("auto", "reference"):
        layer = CompressedLayer(Hack(k_bits=4, fit="unbiased", rotation="all", kernel=use), prefill)
        pieces = [(q[:, :, part], k[:, :, part], v[:, :, part]) for part in (slice(0, 500), slice(500, 900))]
        outs.append(torch.cat([layer.attend(*piece, None, 128**-0.5) for piece in pieces], 2))
    assert called
    assert gpu.error(outs[0], outs[1]) < 1e-2
