"""One layer's cache and the cache of a model: who holds what, and what is refused."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from thrifty.errors import ModelError, SettingError
from thrifty.kv import attention, dense
from thrifty.kv.blocks import Blocks, Codec, HeadShape, encode, restore
from thrifty.kv.cache import CompressedCache, CompressedLayer
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.kivi import Kivi
from thrifty.kv.codecs.plain import Plain

ATC = Hack(partition=32, qp_bits="exact")
CODECS: dict[str, Codec] = {
    "plain": Plain(),
    "atc": ATC,
    "v1": Hack(layout="v1", partition=32, qp_bits="exact"),
    "kivi": Kivi(residual=32),
}
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())


def random_qkv(tokens: int, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(rows, 4, tokens, 64), torch.randn(rows, 2, tokens, 64), torch.randn(rows, 2, tokens, 64)


def put(layer: CompressedLayer, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None = None) -> Tensor:
    layer.update(k, v)
    return layer.attend(q, k, v, real, 0.125)


def filled(codec: Codec, tokens: int = 101, rows: int = 3) -> tuple[CompressedLayer, Tensor, Tensor]:
    layer = CompressedLayer(codec)
    q, k, v = random_qkv(tokens, rows)
    put(layer, q, k, v)
    return layer, k, v


def row_tensors(layer: CompressedLayer, row: int) -> tuple[Tensor, Tensor]:
    """What a row's keys and values stand for."""
    group = next(group for group in layer.groups if row in group.rows)
    one = group.blocks.rows(torch.tensor([group.rows.index(row)]))
    return restore(layer.codec, one)


@dataclass(frozen=True)
class Watched:
    """A codec that notes for which queries it was asked to attend on how many codes."""

    inner: Codec
    seen: list[tuple[int, int, tuple[int, int]]] = field(default_factory=list)

    def attend(self, q: Tensor, blocks: Blocks, scale: float) -> Tensor:
        self.seen.append((q.shape[2], blocks.num_tokens, (blocks.k.lengths[1], blocks.v.lengths[1])))
        return self.inner.attend(q, blocks, scale)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@every_codec
def test_a_chunk_in_exact_prefill_sees_its_own_tokens_in_full(codec: Codec) -> None:
    layer = CompressedLayer(codec)
    q, k, v = random_qkv(150)
    assert torch.allclose(put(layer, q, k, v), dense.attend(q, k, v, 0.125), atol=1e-5)


def test_a_later_chunk_in_exact_prefill_sees_earlier_codes_and_its_own_tokens_in_16_bits() -> None:
    watched = Watched(ATC)
    layer = CompressedLayer(watched)
    for tokens in (101, 150, 300, 1):
        put(layer, *random_qkv(tokens))
    codes_at = {length: ATC.closed(length) for length in (101, 251, 551, 552)}
    assert watched.seen == [
        (150, 251, codes_at[101]),
        (256, 507, codes_at[251]),
        (44, 551, codes_at[251]),
        (1, 552, codes_at[552]),
    ]


def test_a_coded_prefill_never_shows_a_query_codes_that_it_should_not_see() -> None:
    for codec in CODECS.values():
        watched = Watched(codec)
        layer = CompressedLayer(watched, prefill="coded")
        for tokens in (1, 3, 70, 101, 1):
            put(layer, *random_qkv(tokens))
        assert sum(queries for queries, _, _ in watched.seen) == 176
        for queries, length, codes in watched.seen:
            assert codes == codec.closed(length)
            first = length - queries + 1
            allowed = [max(due, first - codec.num_sinks) for due in codec.closed(first)]
            assert all(held <= due or held > first for held, due in zip(codes, allowed, strict=True))


@every_codec
@pytest.mark.parametrize("prefill", ["exact", "coded"])
def test_what_is_held_is_what_the_codec_encodes(codec: Codec, prefill: Any) -> None:
    layer = CompressedLayer(codec, prefill)
    q, k, v = random_qkv(133)
    for cut in (slice(0, 50), slice(50, 51), slice(51, 133)):
        put(layer, q[:, :, cut], k[:, :, cut], v[:, :, cut])
    right = encode(codec, k, v)
    held = layer.groups[0].blocks
    assert held.k.lengths == right.k.lengths
    assert all(torch.equal(one, other) for one, other in zip(restore(codec, held), restore(codec, right), strict=True))
    assert layer.nbytes == right.nbytes
    assert layer.get_seq_length() == 133
    assert layer.get_mask_sizes(7) == (140, 0)


@every_codec
def test_storing_holds_what_attending_holds(codec: Codec) -> None:
    attended, k, v = filled(codec, rows=1)
    stored = CompressedLayer(codec)
    stored.store(k[:, :, :40], v[:, :, :40])
    stored.store(k[:, :, 40:], v[:, :, 40:])
    assert stored.nbytes == attended.nbytes
    assert stored.get_seq_length() == 101
    for one, other in zip(row_tensors(stored, 0), row_tensors(attended, 0), strict=True):
        assert torch.equal(one, other)


@every_codec
def test_padding_parts_the_rows_and_is_never_stored(codec: Codec) -> None:
    lengths = [60, 33, 60]
    q, k, v = random_qkv(60, rows=3)
    real = torch.arange(60) >= (60 - torch.tensor(lengths))[:, None]
    layer = CompressedLayer(codec)
    out = put(layer, q, k, v, real)
    assert sorted(sorted(group.rows) for group in layer.groups) == [[0, 2], [1]]
    for row, length in enumerate(lengths):
        alone = CompressedLayer(codec)
        one = [x[row : row + 1, :, 60 - length :] for x in (q, k, v)]
        assert torch.allclose(out[row, :, 60 - length :], put(alone, *one)[0], atol=1e-5)
        assert (out[row, :, : 60 - length] == 0).all()
        assert all(torch.equal(x, y) for x, y in zip(row_tensors(layer, row), row_tensors(alone, 0), strict=True))
    assert layer.get_seq_length() == 60


def test_rows_with_nothing_new_stay_as_they_are() -> None:
    layer, _, _ = filled(ATC, tokens=70, rows=2)
    before = row_tensors(layer, 0)
    real = torch.tensor([[False, False, False], [True, False, True]])
    out = put(layer, *random_qkv(3), real)
    assert {group.blocks.num_tokens for group in layer.groups} == {70, 72}
    assert all(torch.equal(x, y) for x, y in zip(row_tensors(layer, 0), before, strict=True))
    assert (out[0] == 0).all()
    assert (out[1, :, 1] == 0).all()
    assert (out[1, :, 2] != 0).any()


@every_codec
def test_rows_are_reordered_repeated_and_selected(codec: Codec) -> None:
    for act, chosen in (
        (lambda layer: layer.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda layer: layer.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda layer: layer.batch_select_indices(torch.tensor([1])), [1]),
        (lambda layer: layer.batch_select_indices(torch.tensor([True, False, True])), [0, 2]),
    ):
        q, k, v = random_qkv(60, rows=3)
        real = torch.arange(60) >= torch.tensor([0, 20, 0])[:, None]
        layer = CompressedLayer(codec)
        put(layer, q, k, v, real)
        before = [row_tensors(layer, row) for row in range(3)]
        act(layer)
        assert layer.batch_size == len(chosen)
        assert layer.real is not None
        assert torch.equal(layer.real, real[chosen])
        for new, old in enumerate(chosen):
            assert all(torch.equal(x, y) for x, y in zip(row_tensors(layer, new), before[old], strict=True))
        put(layer, *random_qkv(1, rows=len(chosen)))
        assert layer.get_seq_length() == 61


@every_codec
def test_taking_back_tokens_of_the_open_block_leaves_no_trace(codec: Codec) -> None:
    layer, _, _ = filled(codec, tokens=100)
    before = restore(codec, layer.groups[0].blocks)
    layer.activate_past_recording()
    for tokens in (1, 40, 1):
        put(layer, *random_qkv(tokens, rows=3))
    layer.crop(-42)
    assert layer.get_seq_length() == 100
    assert all(torch.equal(x, y) for x, y in zip(restore(codec, layer.groups[0].blocks), before, strict=True))


def test_taking_back_part_of_what_came_keeps_the_rest_and_codes_what_is_due() -> None:
    layer, k, v = filled(ATC, tokens=100)
    layer.activate_past_recording()
    q, more_k, more_v = random_qkv(40, rows=3)
    put(layer, q, more_k, more_v)
    layer.crop(-10)
    right = encode(ATC, torch.cat([k, more_k[:, :, :30]], 2), torch.cat([v, more_v[:, :, :30]], 2))
    held = layer.groups[0].blocks
    assert held.k.lengths == right.k.lengths
    assert all(torch.equal(x, y) for x, y in zip(restore(ATC, held), restore(ATC, right), strict=True))


def test_a_crop_of_padded_rows_takes_back_only_real_tokens() -> None:
    q, k, v = random_qkv(50, rows=3)
    real = torch.ones(3, 50, dtype=torch.bool)
    real[1, :20] = False
    real[2, 45:] = False
    layer = CompressedLayer(ATC)
    put(layer, q, k, v, real)
    layer.crop(-8)
    held = {row: group.blocks.num_tokens for group in layer.groups for row in group.rows}
    assert held == {0: 42, 1: 22, 2: 42}
    assert layer.real is not None
    assert layer.real.shape == (3, 42)


def test_cropping_nothing_everything_and_too_much() -> None:
    layer, _, _ = filled(ATC)
    size = layer.nbytes
    layer.crop(0)
    assert (layer.get_seq_length(), layer.nbytes) == (101, size)
    layer.crop(-500)
    assert (layer.get_seq_length(), layer.nbytes) == (0, 0)
    put(layer, *random_qkv(5, rows=1))
    assert layer.get_seq_length() == 5
    with pytest.raises(SettingError, match=r"crop\(3\): use a negative number"):
        layer.crop(3)


def test_a_reset_cache_is_as_new() -> None:
    layer, _, _ = filled(ATC)
    layer.reset()
    assert (layer.get_seq_length(), layer.nbytes, layer.is_initialized) == (0, 0, False)
    q, k, v = random_qkv(80, rows=1)
    assert torch.equal(put(layer, q, k, v), put(CompressedLayer(ATC), q, k, v))


@every_codec
def test_offloading_and_fetching_back_changes_nothing(codec: Codec) -> None:
    layer, _, _ = filled(codec)
    before = row_tensors(layer, 1)
    layer.offload()
    layer.prefetch()
    assert all(torch.equal(x, y) for x, y in zip(row_tensors(layer, 1), before, strict=True))
    CompressedLayer(codec).offload()
    CompressedLayer(codec).prefetch()


def test_keys_that_are_stored_twice_without_being_attended_are_refused() -> None:
    layer = CompressedLayer(ATC)
    _, k, v = random_qkv(5)
    layer.update(k, v)
    with pytest.raises(ModelError, match=r"never attended.*CompressedCache.of\(model, codec\)"):
        layer.update(k, v)


@torch.no_grad()
@pytest.mark.parametrize("held", [0, 20])
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "another model"])
def test_a_model_that_attends_without_thrifty_is_refused_at_once(
    held: int, implementation: str, llama: PreTrainedModel, tiny: Callable[..., PreTrainedModel]
) -> None:
    cache = CompressedCache.of(llama, ATC)
    if held:
        llama(torch.randint(2, 300, (1, held)), past_key_values=cache)
    other = tiny() if implementation == "another model" else llama
    if other is llama:
        llama.set_attn_implementation(implementation)
    with pytest.raises(ModelError, match=r"attention is not 'thrifty'.*CompressedCache.of\(model, codec\)"):
        other(torch.randint(2, 300, (1, 1)), past_key_values=cache)


def test_a_model_that_was_not_prepared_is_refused_at_the_first_call(llama: PreTrainedModel) -> None:
    cache = CompressedCache.of(llama, ATC, prepare=False)
    with pytest.raises(ModelError, match="attention is not 'thrifty'"):
        llama(torch.randint(2, 300, (1, 20)), past_key_values=cache)


def test_a_model_that_its_user_prepared_attends(llama: PreTrainedModel) -> None:
    cache = CompressedCache.of(llama, Plain(), prepare=False)
    attention.prepare(llama)
    ids = torch.randint(2, 300, (1, 20))
    assert torch.allclose(llama(ids, past_key_values=cache).logits, llama(ids).logits, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"head_dim": 32}, "holds 2 heads of 64 channels, the model was called with 2 of 32; use a cache with"),
        ({"num_key_value_heads": 4}, "holds 2 heads of 64 channels, the model was called with 4 of 64; use a cache"),
        ({"num_hidden_layers": 3}, "made for a model of 2 layers, this one has more; make the cache with"),
    ],
    ids=str,
)
def test_a_model_of_another_shape_is_refused(
    change: dict[str, int], complaint: str, llama: PreTrainedModel, tiny: Callable[..., PreTrainedModel]
) -> None:
    cache, other = CompressedCache.of(llama, ATC), tiny(**change)
    attention.prepare(other)
    llama(torch.randint(2, 300, (1, 20)), past_key_values=cache)
    with pytest.raises(ModelError, match=complaint):
        other(torch.randint(2, 300, (1, 1)), past_key_values=cache)


def test_another_number_of_rows_is_refused(llama: PreTrainedModel) -> None:
    cache = CompressedCache.of(llama, ATC)
    llama(torch.randint(2, 300, (2, 20)), past_key_values=cache)
    with pytest.raises(
        ModelError, match="the cache holds 2 rows, the model was called with 3; use one cache per batch"
    ):
        llama(torch.randint(2, 300, (3, 1)), past_key_values=cache)


def test_a_head_that_cannot_be_coded_is_refused_before_anything_is_stored() -> None:
    layer = CompressedLayer(Kivi())
    q, k, v = (torch.randn(1, heads, 5, 80) for heads in (2, 1, 1))
    with pytest.raises(SettingError, match="heads of 80"):
        put(layer, q, k, v)


def test_each_layer_may_have_its_own_codec(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny(num_hidden_layers=3)
    codecs = [Plain(dtype="bfloat16"), Hack(partition=32), Kivi(residual=32)]
    cache = CompressedCache.of(model, codecs)
    model(torch.randint(2, 300, (1, 120)), past_key_values=cache)
    sizes = [codec.bytes_per_token(HeadShape(2, 64), 120) * 120 for codec in codecs]
    assert [layer.nbytes for layer in cache.compressed] == sizes
    assert cache.nbytes == sum(sizes)
    with pytest.raises(SettingError, match="2 codecs for a model of 3 layers; give one each"):
        CompressedCache.of(model, codecs[:2])


def test_a_layer_without_a_codec_keeps_the_cache_of_transformers(llama: PreTrainedModel) -> None:
    ids = torch.randint(2, 300, (1, 60))
    cache = CompressedCache.of(llama, [None, Plain()])
    assert len(cache.layers) == 2
    assert len(cache.compressed) == 1
    found = llama.generate(ids, past_key_values=cache, max_new_tokens=5, do_sample=False)
    assert torch.equal(found, llama.generate(ids, max_new_tokens=5, do_sample=False))
    assert cache.nbytes == cache.compressed[0].nbytes * 2


def test_a_cache_counts_the_layers_that_pass_through(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny("Gemma3", sliding_window=16, layer_types=["sliding_attention", "full_attention"])
    cache = CompressedCache.of(model, Hack(partition=32))
    model(torch.randint(2, 300, (1, 100)), past_key_values=cache)
    sliding = cache.layers[0]
    assert len(cache.compressed) == 1
    assert cache.nbytes == cache.compressed[0].nbytes + sliding.keys.nbytes + sliding.values.nbytes
    assert sliding.keys.shape[2] == 15


def test_a_kind_of_layer_that_is_not_supported_is_refused_by_name(llama: PreTrainedModel) -> None:
    llama.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ModelError, match="LlamaForCausalLM has layers of type linear_attention"):
        CompressedCache.of(llama, Hack())


def test_beams_keep_the_codes_they_started_from() -> None:
    layer, _, _ = filled(ATC, rows=1)
    size = layer.nbytes
    layer.batch_repeat_interleave(3)
    assert layer.nbytes == 3 * size
    rows = [row_tensors(layer, row) for row in range(3)]
    put(layer, *random_qkv(40, rows=3))
    for row in range(3):
        for old, new in zip(rows[row], row_tensors(layer, row), strict=True):
            closed = ATC.closed(101)[0]
            assert torch.equal(new[:, :, :closed], old[:, :, :closed])
