"""The decode kernel in Triton equals attention on restored keys and values, on a GPU and in Triton's interpreter.

On a CPU with Triton installed, `TRITON_INTERPRET=1 pytest tests/kv/kernels` runs it; the numbers are the same but for
rounding.
"""

import functools
from typing import Any

import pytest
import torch

from thrifty.kv.blocks import encode
from thrifty.kv.cache import CompressedLayer
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.pages import Pages


def decode_module() -> Any:
    import importlib

    return importlib.import_module("thrifty.kv.kernels.decode")


def check(
    kernels: Any, k_bits: int = 2, v_bits: int = 2, rows: int = 1, heads: int = 2, shared: int = 4, tokens: int = 333,
    dim: int = 128, partition: int = 64, dtype: torch.dtype = torch.bfloat16, per_sm: int = 12,
    rotation: Any = "none",
) -> None:  # fmt: skip
    codec = Hack(k_bits=k_bits, v_bits=v_bits, partition=partition, qp_bits="exact", rotation=rotation)
    q, k, v = kernels.sample(rows, heads, shared, tokens, dim, dtype)
    blocks = encode(codec, k, v)
    tuning = decode_module().Tuning(per_multiprocessor=per_sm, assembly=kernels.has_gpu)
    turned = rotation == "all", rotation != "none"
    found = decode_module().attend(q, blocks, k_bits, v_bits, codec._group(dim), dim**-0.5, turned, tuning)
    assert found.shape == q.shape
    assert found.dtype == q.dtype
    assert kernels.error(found, kernels.exact(codec, q, blocks)) < (5e-3 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("k_bits", [2, 4, 8])
@pytest.mark.parametrize("v_bits", [2, 4, 8])
def test_kernel_equals_attention_on_restored_blocks_at_all_bits(kernels: Any, k_bits: int, v_bits: int) -> None:
    check(kernels, k_bits, v_bits, tokens=200)


@pytest.mark.parametrize("shared", [1, 3, 4, 8, 16])
def test_kernel_equals_attention_for_any_number_of_query_heads_of_a_key_head(kernels: Any, shared: int) -> None:
    check(kernels, shared=shared, tokens=200)


@pytest.mark.parametrize(("partition", "bits"), [(32, 4), (128, 2)])
def test_kernel_equals_attention_for_other_partitions(kernels: Any, partition: int, bits: int) -> None:
    check(kernels, bits, bits, partition=partition, tokens=700, heads=1)


@pytest.mark.parametrize("bits", [2, 4])
def test_kernel_equals_attention_for_heads_of_64_channels(kernels: Any, bits: int) -> None:
    check(kernels, bits, bits, dim=64, shared=3)


def test_kernel_equals_attention_for_heads_of_256_channels(kernels: Any) -> None:
    check(kernels, 4, 2, dim=256, shared=2, tokens=200)


@pytest.mark.parametrize("tokens", [69, 132, 133, 700])
def test_kernel_equals_attention_wherever_the_last_block_ends(kernels: Any, tokens: int) -> None:
    check(kernels, rows=2, heads=1, tokens=tokens)


def test_kernel_joins_many_splits(kernels: Any) -> None:
    check(kernels, heads=1, tokens=1500, per_sm=12 if kernels.has_gpu else 5)


@pytest.mark.parametrize(("rotation", "rows", "tokens"), [("values", 2, 197), ("all", 1, 200), ("all", 2, 700)])
def test_kernel_turns_what_is_coded_and_nothing_else(kernels: Any, rotation: str, rows: int, tokens: int) -> None:
    check(kernels, 4, 4, rows=rows, heads=1, tokens=tokens, rotation=rotation)


def test_kernel_is_exact_enough_in_float16(kernels: Any) -> None:
    check(kernels, dtype=torch.float16)


def test_rows_of_any_lengths_attend_through_a_table_of_pages(kernels: Any) -> None:
    codec = Hack(k_bits=4, qp_bits="exact")
    rows = [encode(codec, *kernels.sample(1, 2, 1, length, 128, torch.bfloat16)[1:]) for length in (333, 70, 10, 197)]
    q = torch.randn(4, 8, 1, 128, device=kernels.device).bfloat16()
    tuning = decode_module().Tuning(assembly=kernels.has_gpu)
    found = decode_module().attend_pages(q, Pages.of(rows, 2), 4, 2, 64, 128**-0.5, tuning=tuning)
    for index, row in enumerate(rows):
        one = slice(index, index + 1)
        assert kernels.error(found[one], kernels.exact(codec, q[one], row)) < 5e-3


@pytest.mark.parametrize("settings", [{"k_bits": 4}, {"fit": "unbiased", "rotation": "all"}], ids=str)
def test_codec_attends_on_pages_in_the_channels_of_its_codes(
    kernels: Any, monkeypatch: pytest.MonkeyPatch, settings: dict
) -> None:
    codec, decode = Hack(**settings), decode_module()
    tuned = functools.partial(decode.attend_pages, tuning=decode.Tuning(assembly=kernels.has_gpu))
    monkeypatch.setattr(decode, "attend_pages", tuned)
    rows = [encode(codec, *kernels.sample(1, 1, 1, length, 64, torch.bfloat16)[1:]) for length in (150, 10, 70)]
    q = torch.randn(3, 2, 1, 64, device=kernels.device).bfloat16()
    found = codec.attend_pages(q, Pages.of(rows, 1), 64**-0.5)
    for index, row in enumerate(rows):
        one = slice(index, index + 1)
        assert kernels.error(found[one], kernels.exact(codec, q[one], row)) < 1e-2


@pytest.mark.gpu
def test_a_padded_batch_decodes_in_one_launch(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, called = decode_module(), []
    attend_pages = decode.attend_pages
    monkeypatch.setattr(decode, "attend_pages", lambda *given: called.append(1) or attend_pages(*given))
    lengths = torch.tensor([900, 300, 75])
    real = torch.arange(900) >= 900 - lengths[:, None]
    layers = [CompressedLayer(codec) for codec in (Hack(), Hack(kernel="reference"))]
    given = gpu.sample(3, 2, 4, 900, 128, torch.bfloat16, new=900)
    for layer in layers:
        layer.update(*given[1:])
        layer.attend(*given, real, 128**-0.5)
    for _ in range(80):
        step = gpu.sample(3, 2, 4, 1, 128, torch.bfloat16)
        outs = []
        for layer in layers:
            layer.update(*step[1:])
            outs.append(layer.attend(*step, torch.ones(3, 1, dtype=torch.bool), 128**-0.5))
        assert gpu.error(outs[0], outs[1]) < 2e-2
    assert len(called) == 79


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"qp_bits": "exact"}, {"fit": "unbiased", "rotation": "all"}])
def test_codec_uses_the_kernel_on_a_gpu(gpu: Any, monkeypatch: pytest.MonkeyPatch, settings: dict) -> None:
    codec, called, decode = Hack(**settings), [], decode_module()
    attend = decode.attend
    monkeypatch.setattr(decode, "attend", lambda *given: called.append(1) or attend(*given))
    q, k, v = gpu.sample(2, 8, 4, 9000, 128, torch.bfloat16)
    blocks = encode(codec, k, v)
    found = codec.attend(q, blocks, 128**-0.5)
    assert called
    assert gpu.error(found, gpu.exact(codec, q, blocks)) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("new", [1, 300])
def test_a_layer_attends_on_the_gpu_that_holds_it(gpu: Any, new: int) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU: models on several are NOT tested here")
    codec = Hack(rotation="all")
    given = gpu.sample(1, 2, 4, 700 + new, 128, torch.bfloat16, new)
    found = []
    for device in ("cuda:0", "cuda:1"):  # the current GPU is the first
        q, k, v = (x.to(device) for x in given)
        layer = CompressedLayer(codec, prefill="coded")
        layer.store(k[:, :, :700], v[:, :, :700])
        layer.update(k[:, :, 700:], v[:, :, 700:])
        found.append(layer.attend(q, k[:, :, 700:], v[:, :, 700:], None, 128**-0.5).cpu())
    assert gpu.error(found[1], found[0]) < 1e-3


@pytest.mark.gpu
def test_a_captured_step_follows_what_is_changed_in_place(gpu: Any) -> None:
    codec, decode = Hack(qp_bits="exact"), decode_module()
    rows = [encode(codec, *gpu.sample(1, 2, 1, length, 128, torch.bfloat16)[1:]) for length in (333, 700)]
    pages, q = Pages.of(rows), gpu.sample(2, 2, 4, 1, 128, torch.bfloat16)[0]
    decode.attend_pages(q, pages, 2, 2, 64, 128**-0.5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = decode.attend_pages(q, pages, 2, 2, 64, 128**-0.5)
    graph.replay()
    before = found.clone()
    pages.lengths[1] -= torch.tensor([0, 3, 7], dtype=torch.int32, device="cuda")  # three blocks and seven tokens less
    q.copy_(torch.randn_like(q))
    graph.replay()
    assert not torch.equal(found, before)
    for index in range(2):
        one = slice(index, index + 1)
        assert gpu.error(found[one], gpu.exact(codec, q[one], pages.row(index))) < 5e-3


@pytest.mark.gpu
def test_attention_of_a_codec_can_be_captured(gpu: Any) -> None:
    codec = Hack()
    q, k, v = gpu.sample(1, 8, 4, 3000, 128, torch.bfloat16)
    blocks = encode(codec, k, v)
    codec.attend(q, blocks, 128**-0.5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = codec.attend(q, blocks, 128**-0.5)
    q.copy_(torch.randn_like(q))
    graph.replay()
    assert gpu.error(found, gpu.exact(codec, q, blocks)) < 1e-2
