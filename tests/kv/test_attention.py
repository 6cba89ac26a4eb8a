"""Generating from a compressed cache with transformers: the same answers, or a refusal that says why."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from thrifty.errors import ModelError
from thrifty.kv import attention
from thrifty.kv.attention import prepare
from thrifty.kv.blocks import Codec
from thrifty.kv.cache import RECORDED_TOKENS, CompressedCache
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.kivi import Kivi
from thrifty.kv.codecs.plain import Plain

CODECS: dict[str, Codec] = {
    "plain": Plain(),
    "atc": Hack(k_bits=4, v_bits=4, partition=32),
    "atc exact": Hack(k_bits=8, v_bits=2, partition=32, qp_bits="exact", sinks=0),
    "v1": Hack(layout="v1", partition=32),
    "kivi": Kivi(residual=32),
}
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())

GREEDY = {"do_sample": False, "max_new_tokens": 12}
SAMPLED = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 12}


def prompt(tokens: int = 90, rows: int = 1, seed: int = 1) -> Tensor:
    return torch.randint(2, 300, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def generate(model: PreTrainedModel, ids: Tensor, codec: Codec | None, **settings: Any) -> Tensor:
    """Generate with a compressed cache, or with transformers' own where `codec` is None."""
    torch.manual_seed(11)
    cache = None if codec is None else CompressedCache.of(model, codec)
    return model.generate(ids, past_key_values=cache, **settings)


def padded(lengths: list[int], side: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A batch with padding, its mask, and its rows without."""
    rows = [prompt(length, seed=length) for length in lengths]
    width = max(lengths)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for row, one in enumerate(rows):
        where = slice(width - one.shape[1], width) if side == "left" else slice(0, one.shape[1])
        ids[row, where], mask[row, where] = one[0], 1
    return ids, mask, rows


FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Mistral": {"sliding_window": None},
    "Phi3": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_generates_what_transformers_does(family: str, tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny(family, **FAMILIES[family])
    ids = prompt(rows=2)
    right = [generate(model, ids, None, **GREEDY), generate(model, ids, None, **SAMPLED)]
    found = [generate(model, ids, Plain(), **GREEDY), generate(model, ids, Plain(), **SAMPLED)]
    assert all(torch.equal(one, other) for one, other in zip(found, right, strict=True))
    assert not torch.equal(*right)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 3, "do_sample": True},
        {"num_beams": 4, "num_return_sequences": 4, "do_sample": False},
        {"num_return_sequences": 3, "do_sample": True},
        {"prompt_lookup_num_tokens": 3, "do_sample": False},
        {"prefill_chunk_size": 17, "do_sample": False},
        {"do_sample": False, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_plain_searches_as_transformers_does(settings: dict[str, Any], llama: PreTrainedModel) -> None:
    ids = prompt(40).repeat(1, 2)  # a repeated prompt, so that looking up finds something
    right = generate(llama, ids, None, max_new_tokens=15, **settings)
    assert torch.equal(generate(llama, ids, Plain(), max_new_tokens=15, **settings), right)


@every_codec
def test_a_beam_search_is_that_of_each_row_alone(codec: Codec, llama: PreTrainedModel) -> None:
    ids, mask, rows = padded([70, 45], "left")
    together = generate(llama, ids, codec, attention_mask=mask, max_new_tokens=8, num_beams=3, do_sample=False)
    for row, one in enumerate(rows):
        alone = generate(llama, one, codec, max_new_tokens=8, num_beams=3, do_sample=False)
        assert torch.equal(together[row, -8:], alone[0, -8:])


@every_codec
def test_greedy_and_sampled_generation_repeat(codec: Codec, llama: PreTrainedModel) -> None:
    for settings in (GREEDY, SAMPLED):
        once, again = (generate(llama, prompt(), codec, **settings) for _ in range(2))
        assert once.shape == (1, 102)
        assert torch.equal(once, again)


@every_codec
@pytest.mark.parametrize("prefill", ["exact", "coded"])
def test_a_left_padded_batch_equals_its_rows_alone(codec: Codec, prefill: Any, tiny: Callable) -> None:
    llama = tiny(num_hidden_layers=1)  # a code that rounding turns over would change what later layers see
    ids, mask, rows = padded([100, 37, 71], "left")
    settings = {"do_sample": False, "max_new_tokens": 10, "output_logits": True, "return_dict_in_generate": True}
    together = llama.generate(
        ids, attention_mask=mask, past_key_values=CompressedCache.of(llama, codec, prefill), **settings
    )
    for row, one in enumerate(rows):
        alone = llama.generate(one, past_key_values=CompressedCache.of(llama, codec, prefill), **settings)
        assert torch.equal(together.sequences[row, 100:], alone.sequences[0, one.shape[1] :])
        for left, right in zip(together.logits, alone.logits, strict=True):
            assert torch.allclose(left[row], right[0], atol=1e-2 * float(right.std()))


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp_min(0)


@every_codec
@torch.no_grad()
def test_right_padding_and_holes_are_not_seen(codec: Codec, llama: PreTrainedModel) -> None:
    ids, mask, rows = padded([60, 40], "right")
    cache = CompressedCache.of(llama, codec)
    logits = llama(ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache).logits
    more = prompt(9, rows=2, seed=8)
    mask = torch.cat([mask, torch.ones_like(more)], 1)
    later = llama(more, attention_mask=mask, position_ids=positions(mask)[:, -9:], past_key_values=cache).logits
    for row, one in enumerate(rows):
        alone = CompressedCache.of(llama, codec)
        right = llama(one, past_key_values=alone).logits[0]
        assert torch.allclose(logits[row, : one.shape[1]], right, atol=1e-3)
        right = llama(more[row : row + 1], past_key_values=alone).logits[0]
        assert torch.allclose(later[row], right, atol=2e-2 * float(right.std()))


def test_a_second_turn_on_one_cache_equals_one_conversation(llama: PreTrainedModel) -> None:
    cache = CompressedCache.of(llama, Plain())
    first = llama.generate(prompt(50), past_key_values=cache, **GREEDY)
    said = torch.cat([first, prompt(20, seed=3)], 1)
    second = llama.generate(said, past_key_values=cache, **GREEDY)
    assert torch.equal(second, generate(llama, said, None, **GREEDY))
    assert cache.get_seq_length() == second.shape[1] - 1


@pytest.mark.parametrize("name", ["atc", "v1", "kivi"])
@torch.no_grad()
def test_turns_and_single_steps_hold_the_same_codes(name: str, tiny: Callable) -> None:
    """With a coded prefill it does not matter how a conversation was cut into turns."""
    llama = tiny(num_hidden_layers=1)
    ids = prompt(110)
    caches = [CompressedCache.of(llama, CODECS[name], prefill="coded") for _ in range(3)]
    cuts = [[110], [50, 20, 1, 39], [1] * 110]
    logits = [
        torch.cat([llama(part, past_key_values=cache).logits for part in ids.split(cut, 1)], 1)
        for cache, cut in zip(caches, cuts, strict=True)
    ]
    for other in logits[1:]:
        assert torch.allclose(logits[0], other, atol=1e-2 * float(other.std()))
    assert len({cache.nbytes for cache in caches}) == 1


@every_codec
def test_a_second_turn_of_a_padded_batch_equals_its_rows_alone(codec: Codec, llama: PreTrainedModel) -> None:
    ids, mask, rows = padded([64, 33], "left")
    more = prompt(15, rows=2, seed=4)
    cache = CompressedCache.of(llama, codec)
    first = llama.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)
    said = torch.cat([first, more], 1)
    longer = torch.cat([mask, torch.ones(2, 12 + 15, dtype=torch.long)], 1)
    second = llama.generate(said, attention_mask=longer, past_key_values=cache, **GREEDY)
    for row, one in enumerate(rows):
        alone = CompressedCache.of(llama, codec)
        turn = llama.generate(one, past_key_values=alone, **GREEDY)
        turn = llama.generate(torch.cat([turn, more[row : row + 1]], 1), past_key_values=alone, **GREEDY)
        assert torch.equal(second[row, 64:], turn[0, one.shape[1] :])


@every_codec
def test_taking_back_and_going_on_equals_never_having_said_it(codec: Codec, llama: PreTrainedModel) -> None:
    ids = prompt(100)
    straight, detour = (CompressedCache.of(llama, codec) for _ in range(2))
    for cache in (straight, detour):
        llama(ids, past_key_values=cache)
    detour.activate_past_recording()
    llama(prompt(30, seed=9), past_key_values=detour)
    detour.crop(-30)
    for layer in detour.compressed:
        layer.record_past = False  # as transformers does when it hands a cache back
    assert detour.get_seq_length() == 100
    assert detour.nbytes == straight.nbytes
    more = prompt(1, seed=10)
    assert torch.equal(llama(more, past_key_values=detour).logits, llama(more, past_key_values=straight).logits)


@every_codec
@pytest.mark.parametrize("helper", ["prompt lookup", "assistant"])
def test_assisted_generation_works(codec: Codec, helper: str, llama: PreTrainedModel, tiny: Callable) -> None:
    settings: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if helper == "assistant":
        settings = {"assistant_model": tiny(num_hidden_layers=1)}
    ids = prompt(40).repeat(1, 2)
    found = generate(llama, ids, codec, do_sample=False, max_new_tokens=20, **settings)
    assert found.shape == (1, 100)
    if isinstance(codec, Plain):
        assert torch.equal(found, generate(llama, ids, None, do_sample=False, max_new_tokens=20))


def test_a_cache_goes_on_compressing_after_assisted_generation(llama: PreTrainedModel) -> None:
    cache = CompressedCache.of(llama, CODECS["atc"])
    said = llama.generate(prompt(), past_key_values=cache, prompt_lookup_num_tokens=3, **GREEDY)
    said = torch.cat([said, prompt(300, seed=2)], 1)
    llama.generate(said, past_key_values=cache, **GREEDY)
    closed = {layer.groups[0].blocks.k.lengths[1] for layer in cache.compressed}
    assert closed == {CODECS["atc"].closed(cache.get_seq_length() - RECORDED_TOKENS)[0]}
    cache.crop(0)
    closed = {layer.groups[0].blocks.k.lengths[1] for layer in cache.compressed}
    assert closed == {CODECS["atc"].closed(cache.get_seq_length())[0]}


def test_two_models_with_two_caches_do_not_disturb_each_other(tiny: Callable[..., PreTrainedModel]) -> None:
    models = [tiny(), tiny("Qwen3", num_hidden_layers=3)]
    parts = [prompt(seed=20).split(15, 1), prompt(seed=21).split(15, 1)]
    right = []
    for model, part in zip(models, parts, strict=True):
        cache = CompressedCache.of(model, Hack(partition=32))
        right.append([model(one, past_key_values=cache).logits for one in part])
    caches = [CompressedCache.of(model, Hack(partition=32)) for model in models]
    for step in range(6):
        for model, part, cache, logits in zip(models, parts, caches, right, strict=True):
            assert torch.equal(model(part[step], past_key_values=cache).logits, logits[step])


def test_threads_do_not_disturb_each_other(llama: PreTrainedModel) -> None:
    prompts = [prompt(60 + 7 * seed, seed=seed) for seed in range(3)]
    prepare(llama)
    right = [llama.generate(ids, past_key_values=CompressedCache.of(llama, CODECS["atc"]), **GREEDY) for ids in prompts]
    found: dict[int, Tensor] = {}

    def work(index: int) -> None:
        cache = CompressedCache.of(llama, CODECS["atc"])
        found[index] = llama.generate(prompts[index], past_key_values=cache, **GREEDY)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[index], right[index]) for index in range(3))


@pytest.mark.parametrize("family", [*FAMILIES, "Gemma3"])
def test_without_a_compressed_cache_a_prepared_model_is_as_before(family: str, tiny: Callable) -> None:
    model = tiny(family, **FAMILIES.get(family, {}))
    ids, mask, _ = padded([60, 30], "left")
    before = model(ids, attention_mask=mask).logits, generate(model, ids, None, attention_mask=mask, **GREEDY)
    prepare(model)
    assert model.config._attn_implementation == attention.NAME
    after = model(ids, attention_mask=mask).logits, generate(model, ids, None, attention_mask=mask, **GREEDY)
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[0], after[0])


def test_preparing_twice_changes_nothing(llama: PreTrainedModel) -> None:
    prepare(llama)
    once = llama(prompt()).logits
    prepare(llama)
    assert torch.equal(llama(prompt()).logits, once)


@pytest.mark.parametrize("family", ["Qwen2", "Gemma3"])
def test_sliding_layers_pass_through(family: str, tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny(
        family,
        sliding_window=16,
        use_sliding_window=True,
        layer_types=["sliding_attention", "full_attention"],
    )
    cache = CompressedCache.of(model, Plain())
    assert len(cache.compressed) == 1
    ids, mask, _ = padded([60, 30], "left")
    right = generate(model, ids, None, attention_mask=mask, **GREEDY)
    assert torch.equal(generate(model, ids, Plain(), attention_mask=mask, **GREEDY), right)
    assert generate(model, ids, Hack(partition=32), attention_mask=mask, **GREEDY).shape == right.shape


def test_a_prefix_in_float16_and_bfloat16_generates(tiny: Callable[..., PreTrainedModel]) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = tiny().to(dtype)
        right = generate(model, prompt(), None, **GREEDY)
        assert torch.equal(generate(model, prompt(), Plain(), **GREEDY), right)
        for codec in (CODECS["atc"], CODECS["v1"], CODECS["kivi"]):
            assert generate(model, prompt(), codec, **GREEDY).shape == right.shape


@pytest.mark.parametrize("family", ["Gemma2", "GptOss"])
def test_an_attention_that_is_not_supported_is_refused_by_name(family: str, tiny: Callable) -> None:
    if not hasattr(transformers, f"{family}ForCausalLM"):
        pytest.skip(f"transformers has no {family}")
    model = tiny(family)
    with pytest.raises(ModelError, match=f"{family}ForCausalLM needs an attention of its own"):
        model.generate(prompt(), past_key_values=CompressedCache.of(model, Hack()), **GREEDY)


@pytest.mark.parametrize("family", ["Gemma2", "GptOss"])
def test_a_model_that_was_refused_is_as_before(family: str, tiny: Callable) -> None:
    if not hasattr(transformers, f"{family}ForCausalLM"):
        pytest.skip(f"transformers has no {family}")
    model = tiny(family)
    right = model(prompt()).logits
    with pytest.raises(ModelError):
        model(prompt(), past_key_values=CompressedCache.of(model, Hack()))
    assert torch.equal(model(prompt()).logits, right)


def test_an_encoder_decoder_is_refused() -> None:
    config = transformers.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    with pytest.raises(ModelError, match="T5ForConditionalGeneration is an encoder-decoder"):
        prepare(transformers.T5ForConditionalGeneration(config))


def test_attention_weights_are_refused(llama: PreTrainedModel) -> None:
    cache = CompressedCache.of(llama, Hack())
    with pytest.raises((ModelError, ValueError), match="output_attentions"):
        llama(prompt(), past_key_values=cache, output_attentions=True)


def test_dropout_while_training_is_refused(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny(attention_dropout=0.5).train()
    with pytest.raises(ModelError, match="attention dropout"):
        model(prompt(), past_key_values=CompressedCache.of(model, Hack()))


def causal(tokens: int) -> Tensor:
    return torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()


def test_a_mask_that_is_not_causal_is_refused(llama: PreTrainedModel) -> None:
    for mask in (causal(20) & ~torch.eye(20, dtype=torch.bool).roll(-1, 1), torch.ones(1, 1, 20, 20, dtype=torch.bool)):
        with pytest.raises(ModelError, match="causal masks with padding only"):
            llama(prompt(20), attention_mask=mask, past_key_values=CompressedCache.of(llama, Hack()))


def test_a_causal_mask_of_four_axes_is_as_good_as_none(llama: PreTrainedModel) -> None:
    found = llama(prompt(20), attention_mask=causal(20), past_key_values=CompressedCache.of(llama, Hack())).logits
    assert torch.allclose(found, llama(prompt(20)).logits, atol=1e-4)


def test_a_mask_that_is_added_is_refused(llama: PreTrainedModel) -> None:
    mask = torch.zeros(1, 1, 20, 20).masked_fill(~causal(20), -torch.inf)
    with pytest.raises(ModelError, match=r"shape \[1, 1, 20, 20\] and type torch.float32"):
        llama(prompt(20), attention_mask=mask, past_key_values=CompressedCache.of(llama, Hack()))


def test_a_mask_that_shows_other_past_tokens_is_refused(llama: PreTrainedModel) -> None:
    ids, mask, _ = padded([20, 10], "left")
    cache = CompressedCache.of(llama, Hack())
    llama(ids, attention_mask=mask, past_key_values=cache)
    with pytest.raises(ModelError, match="other past tokens than when they were stored"):
        llama(prompt(3, rows=2), attention_mask=torch.ones(2, 23, dtype=torch.long), past_key_values=cache)
