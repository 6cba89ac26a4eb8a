"""The kernel in Triton equals attention on restored keys and values, on a GPU and in Triton's interpreter.

On a CPU with Triton installed, `TRITON_INTERPRET=1 pytest tests/kv/kernels` runs it; the numbers are the same but for
rounding.
"""

import os

import pytest
import torch
from torch import Tensor

from thrifty.kv.blocks import Blocks, encode, restore
from thrifty.kv.codecs.hack import Hack

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU and no TRITON_INTERPRET=1: the GPU kernel is NOT tested here", allow_module_level=True)
decode = pytest.importorskip("thrifty.kv.kernels.decode", reason="no Triton: the GPU kernel is NOT tested here")

needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no GPU: the kernel as compiled is NOT tested here")
DEVICE = "cuda" if HAS_GPU else "cpu"


def exact(codec: Hack, q: Tensor, blocks: Blocks) -> Tensor:
    """Attention in float64 on restored keys and values."""
    k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in restore(codec, blocks))
    return ((q.double() @ k.mT) * q.shape[-1] ** -0.5).softmax(-1) @ v


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def sample(rows: int, heads: int, shared: int, tokens: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    k, v = torch.randn(2, rows, heads, tokens, dim, device=DEVICE)
    q = torch.randn(rows, heads * shared, 1, dim, device=DEVICE)
    return q.to(dtype), (k + 2 * torch.randn(dim, device=DEVICE)).to(dtype), v.to(dtype)


def check(
    k_bits: int = 2, v_bits: int = 2, rows: int = 1, heads: int = 2, shared: int = 4, tokens: int = 333, dim: int = 128,
    partition: int = 64, dtype: torch.dtype = torch.bfloat16, per_sm: int = 8,
) -> None:  # fmt: skip
    codec = Hack(k_bits=k_bits, v_bits=v_bits, partition=partition, qp_bits="exact")
    q, k, v = sample(rows, heads, shared, tokens, dim, dtype)
    blocks, group = encode(codec, k, v), codec._group(dim)
    assert decode.suits(q, blocks, k_bits, v_bits, group)
    found = decode.launch(q, blocks, k_bits, v_bits, group, dim**-0.5, assembly=HAS_GPU, per_sm=per_sm)
    assert found.shape == q.shape
    assert found.dtype == q.dtype
    assert error(found, exact(codec, q, blocks)) < (5e-3 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("k_bits", [2, 4, 8])
@pytest.mark.parametrize("v_bits", [2, 4, 8])
def test_kernel_equals_attention_on_restored_blocks_at_all_bits(k_bits: int, v_bits: int) -> None:
    check(k_bits, v_bits)


@pytest.mark.parametrize("shared", [1, 3, 4, 8, 16])
def test_kernel_equals_attention_for_any_number_of_query_heads_of_a_key_head(shared: int) -> None:
    check(shared=shared, tokens=200)


@pytest.mark.parametrize(("partition", "bits"), [(32, 4), (128, 2)])
def test_kernel_equals_attention_for_other_partitions(partition: int, bits: int) -> None:
    check(bits, bits, partition=partition, tokens=700)


def test_kernel_equals_attention_for_heads_of_64_channels() -> None:
    check(4, 4, dim=64, shared=3)
    check(4, 2, dim=64, shared=3)


@pytest.mark.parametrize("tokens", [69, 132, 133, 1500])
def test_kernel_equals_attention_wherever_the_last_block_ends(tokens: int) -> None:
    check(rows=2, heads=1, tokens=tokens)


def test_kernel_joins_many_splits() -> None:
    check(heads=1, tokens=1500, per_sm=8 if HAS_GPU else 5)


def test_kernel_is_exact_enough_in_float16() -> None:
    check(dtype=torch.float16)


def test_what_the_kernel_cannot_do_is_left_to_the_reference() -> None:
    codec = Hack(qp_bits="exact")
    q, k, v = sample(1, 2, 4, 333, 128, torch.bfloat16)
    assert decode.attend(q, encode(codec, k[:, :, :20], v[:, :, :20]), 2, 2, 64, 1.0) is None
    assert decode.attend(q.repeat(1, 1, 2, 1), encode(codec, k, v), 2, 2, 64, 1.0) is None
    assert decode.attend(q, encode(Hack(qp_bits="exact", v_bits=3), k, v), 2, 3, 64, 1.0) is None


@pytest.mark.gpu
@needs_gpu
def test_codec_uses_the_kernel_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, called = Hack(qp_bits="exact"), []
    launch = decode.launch
    monkeypatch.setattr(decode, "launch", lambda *given: called.append(1) or launch(*given))
    q, k, v = sample(2, 8, 4, 9000, 128, torch.bfloat16)
    blocks = encode(codec, k, v)
    found = codec.attend(q, blocks, 128**-0.5)
    assert called
    assert error(found, exact(codec, q, blocks)) < 5e-3
