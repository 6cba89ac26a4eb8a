"""The kernel in C++ equals the reference in PyTorch, whichever variant runs, and is not missed where it cannot."""

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from thrifty import native_build
from thrifty.errors import SettingError
from thrifty.kv import native_kernel
from thrifty.kv.blocks import Blocks, encode, restore
from thrifty.kv.codecs.hack import Hack

VARIANTS = native_kernel.VARIANTS

needs_compiler = pytest.mark.skipif(native_build.compiler() is None, reason="no C++ compiler")
pytestmark = needs_compiler


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile once for all tests of a run, away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.getbasetemp()
        worker = "PYTEST_XDIST_WORKER" in os.environ
        patch.setenv("THRIFTY_CACHE", str(folder.parent if worker else folder))
        native_kernel._library.cache_clear()
        yield
    native_kernel._library.cache_clear()


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("THRIFTY_NATIVE", request.param)
    try:
        native_kernel.variant()
    except SettingError:
        pytest.skip(f"this machine cannot run {request.param}")
    return request.param


def attended(codec: Hack, q: Tensor, blocks: Blocks) -> Tensor:
    """What the kernel makes, which must not leave the work to the reference."""
    group = codec._group(q.shape[-1])
    out = native_kernel.attend(q, blocks, codec.k_bits, codec.v_bits, group, q.shape[-1] ** -0.5)
    assert out is not None
    return out


def exact(codec: Hack, q: Tensor, blocks: Blocks) -> Tensor:
    """Attention in float64 on restored keys and values."""
    k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in restore(codec, blocks))
    return ((q.double() @ k.mT) * q.shape[-1] ** -0.5).softmax(-1) @ v


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def sample(rows: int = 1, heads: int = 2, shared: int = 3, tokens: int = 333, dim: int = 64) -> tuple[Tensor, ...]:
    k, v = torch.randn(2, rows, heads, tokens, dim)
    return torch.randn(rows, heads * shared, 1, dim), k + torch.randn(dim), v


def check(codec: Hack, q: Tensor, k: Tensor, v: Tensor) -> None:
    blocks = encode(codec, k, v)
    found = attended(codec, q, blocks)
    reference = Hack(**{**vars(codec), "kernel": "reference"}).attend(q, blocks, q.shape[-1] ** -0.5)
    assert error(found, reference) < 2e-3
    assert error(found, exact(codec, q, blocks)) < 3e-2


@pytest.mark.parametrize("v_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("k_bits", [2, 3, 4, 8])
def test_kernel_equals_reference_at_all_bits(variant: str, k_bits: int, v_bits: int) -> None:
    check(Hack(k_bits=k_bits, v_bits=v_bits), *sample())


@pytest.mark.parametrize("partition", [32, 64, 128])
@pytest.mark.parametrize("dim", [16, 48, 64, 80, 96, 112, 128, 256])
def test_kernel_equals_reference_at_all_head_sizes(variant: str, dim: int, partition: int) -> None:
    for bits in (2, 3, 4, 8):
        check(Hack(k_bits=bits, v_bits=bits, partition=partition), *sample(rows=2, shared=2, dim=dim))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rotation", ["values", "all"])
@pytest.mark.parametrize("dim", [16, 64, 80, 96, 128, 256])
def test_kernel_turns_what_is_not_coded_as_the_codes_are(
    variant: str, dim: int, rotation: str, dtype: torch.dtype
) -> None:
    codec, drawn = Hack(k_bits=4, v_bits=4, rotation=rotation, fit="unbiased"), sample(rows=2, shared=5, dim=dim)
    q, k, v = (x.to(dtype) for x in drawn)
    blocks = encode(codec, k, v)
    unturned = attended(codec, q.float(), blocks)
    found, reference = (one.attend(q, blocks, dim**-0.5) for one in (codec, replace(codec, kernel="reference")))
    assert error(found, reference) < 4e-3
    assert error(found, exact(codec, q, blocks)) < 3e-2
    assert error(unturned, reference) > 0.1


@pytest.mark.parametrize("shared", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13])
def test_kernel_equals_reference_for_any_number_of_heads_to_a_key_head(variant: str, shared: int) -> None:
    check(Hack(k_bits=4, v_bits=2), *sample(shared=shared))


@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 63, 64, 65, 68, 69, 70, 132, 133, 1100, 20_111])
def test_kernel_equals_reference_at_all_lengths(variant: str, tokens: int, sinks: int) -> None:
    heads = 1 if tokens > 20_000 else 2
    check(Hack(sinks=sinks), *sample(tokens=tokens, heads=heads, shared=2))


@pytest.mark.parametrize("rotation", ["none", "all"])
@pytest.mark.parametrize(("past", "new"), [(0, 5), (70, 2), (333, 7), (333, 200), (1100, 64)])
@pytest.mark.parametrize("shared", [1, 3])
def test_kernel_equals_reference_for_several_new_tokens(
    variant: str, shared: int, past: int, new: int, rotation: str
) -> None:
    codec = Hack(k_bits=4, v_bits=2, rotation=rotation)
    _, k, v = sample(rows=2, shared=shared, tokens=past + new)
    q = torch.randn(2, 2 * shared, new, 64)
    held = encode(codec, k[:, :, :past], v[:, :, :past]) if past else Blocks.empty(k, v, torch.bfloat16)
    blocks = held.append(k[:, :, past:], v[:, :, past:], codec)
    if not past:  # the first are sinks, so that not all new tokens are in the open block
        assert native_kernel.attend(q, blocks, 4, 2, 64, 0.125) is None
        return
    turned = (rotation == "all",) * 2
    query = codec._turn(q, "k")
    found = native_kernel.attend(query, blocks, 4, 2, 64, 0.125, turned)
    assert found is not None
    assert error(codec._turn(found, "v"), replace(codec, kernel="reference").attend(q, blocks, 0.125)) < 3e-3


def test_no_query_of_the_kernel_sees_a_later_token(variant: str) -> None:
    codec = Hack()
    _, k, v = sample(tokens=340)
    q = torch.randn(1, 6, 9, 64)
    held = encode(codec, k[:, :, :331], v[:, :, :331])
    seen = codec.attend(q, held.append(k[:, :, 331:], v[:, :, 331:], codec), 0.125)
    v[:, :, 337:] += 100
    changed = codec.attend(q, held.append(k[:, :, 331:], v[:, :, 331:], codec), 0.125)
    assert torch.equal(seen[:, :, :6], changed[:, :, :6])
    assert not torch.allclose(seen[:, :, 6:], changed[:, :, 6:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_kernel_takes_all_float_types(variant: str, stored: str, dtype: torch.dtype) -> None:
    codec = Hack(dtype=stored)
    q, k, v = sample()
    q, blocks = q.to(dtype), encode(codec, k, v)
    found = attended(codec, q, blocks)
    assert found.dtype == dtype
    assert error(found, exact(codec, q, blocks)) < 3e-2


def test_error_does_not_grow_with_the_length(variant: str) -> None:
    codec, (q, k, v) = Hack(k_bits=4, v_bits=4), sample(heads=1, shared=1, tokens=131_072)
    blocks = encode(codec, 1.5 * k, v)
    wanted = exact(codec, q, blocks)
    published = Hack(k_bits=4, v_bits=4, weights="published").attend(q, blocks, 64**-0.5)
    assert error(attended(codec, q, blocks), wanted) < 2e-2
    assert error(published, wanted) > 0.1


def test_logits_far_apart_neither_overflow_nor_vanish(variant: str) -> None:
    q, k, v = sample(tokens=1500)
    k[:, :, 700] = 30 * q[:, ::3, 0]
    k[:, :, 900] = -30 * q[:, ::3, 0]
    check(Hack(k_bits=8, v_bits=8), q, k, v)


def test_constant_keys_and_values_stay_what_they_are(variant: str) -> None:
    q, k, v = sample()
    codec = Hack(dtype="bfloat16")
    found = attended(codec, q, encode(codec, torch.zeros_like(k), torch.full_like(v, 0.5)))
    torch.testing.assert_close(found, torch.full_like(found, 0.5))


def test_nothing_beside_the_tensors_is_read_or_left_unwritten(variant: str) -> None:
    for dim, bits in ((64, 2), (80, 3), (112, 4), (96, 8)):
        codec, (q, k, v) = Hack(k_bits=bits, v_bits=bits), sample(dim=dim, tokens=400)
        blocks = encode(codec, k, v)
        torch.use_deterministic_algorithms(True)  # torch.empty is then full of nan
        try:
            found = attended(codec, q, blocks)
            padded = attended(codec, q, blocks.each(amid_poison))
        finally:
            torch.use_deterministic_algorithms(False)
        assert found.isfinite().all()
        assert torch.equal(found, padded)


def amid_poison(x: Tensor) -> Tensor:
    """The same numbers as part of a larger tensor of nan, or of ones in all bits."""
    rows, heads, units, *rest = x.shape
    large = torch.full((rows + 2, heads + 2, units + 2, *rest), torch.nan if x.is_floating_point() else 255).to(x.dtype)
    large[1:-1, 1:-1, 1:-1] = x
    return large[1:-1, 1:-1, 1:-1]


def test_result_does_not_depend_on_the_number_of_threads(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, (q, k, v) = Hack(), sample(rows=2, tokens=5000)
    blocks = encode(codec, k, v)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(attended(codec, q, blocks))
        monkeypatch.setattr(native_build, "torch_threads", lambda: None)
        found.append(attended(codec, q, blocks))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_every_row_is_what_it_is_alone(variant: str) -> None:
    codec, (q, k, v) = Hack(), sample(rows=3, tokens=200)
    together = attended(codec, q, encode(codec, k, v))
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(together[one], attended(codec, q[one], encode(codec, k[one], v[one])))


def test_variants_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, (q, k, v) = Hack(k_bits=3, v_bits=4), sample(tokens=2000)
    blocks, found = encode(codec, k, v), []
    for name in VARIANTS:
        monkeypatch.setenv("THRIFTY_NATIVE", name)
        try:
            found.append(attended(codec, q, blocks))
        except SettingError:
            continue
    assert all(error(other, found[0]) < 1e-3 for other in found[1:])


def test_codec_calls_the_kernel_unless_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, (q, k, v) = Hack(), sample()
    blocks = encode(codec, k, v)
    fast = codec.attend(q, blocks, 0.125)
    assert torch.equal(fast, attended(codec, q, blocks))
    monkeypatch.setenv("THRIFTY_NATIVE", "0")
    slow = codec.attend(q, blocks, 0.125)
    assert not torch.equal(fast, slow)
    assert error(fast, slow) < 2e-3
    monkeypatch.delenv("THRIFTY_NATIVE")
    assert torch.equal(slow, Hack(kernel="reference").attend(q, blocks, 0.125))
    more = blocks.k.open.shape[2] + 1  # queries than open tokens
    assert native_kernel.attend(q.repeat(1, 1, more, 1), blocks, 2, 2, 64, 0.125) is None
    assert native_kernel.attend(q.requires_grad_(), blocks, 2, 2, 64, 0.125) is None


@pytest.mark.parametrize("asked", ["sse", "1"])
def test_a_variant_that_does_not_exist_is_refused(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_NATIVE", asked)
    with pytest.raises(SettingError, match="use 0 or one of avx512, avx2, portable"):
        native_kernel.variant()


@pytest.mark.parametrize("compiler", [None, "/bin/false"])
def test_without_a_compiler_the_reference_runs_after_one_warning(
    compiler: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    codec, (q, k, v) = Hack(), sample()
    blocks = encode(codec, k, v)
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    monkeypatch.setattr(native_build, "compiler", lambda: compiler)
    native_kernel._library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            found = [codec.attend(q, blocks, 0.125) for _ in range(2)]
    finally:
        native_kernel._library.cache_clear()
    assert torch.equal(found[0], Hack(kernel="reference").attend(q, blocks, 0.125))
    assert torch.equal(found[0], found[1])
    assert len(caplog.records) == 1
    assert len(caplog.messages[0].splitlines()) == 1


def test_a_broken_library_is_reported_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "hack.so"
    path.write_bytes(b"no library")
    with pytest.raises(native_build.CompileError, match="cannot be loaded"):
        native_build.load(path, native_kernel.VERSION)
