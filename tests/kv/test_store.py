"""A cache that is saved and loaded goes on as if nothing had happened."""

import pytest
import torch

from thrifty.errors import DataError
from thrifty.kv import store
from thrifty.kv.cache import CompressedCache
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.kivi import Kivi
from thrifty.kv.codecs.plain import Plain

CODECS = [Plain(), Hack(), Hack(layout="v1", k_bits=4), Hack(k_bits=3, summation_elimination=False), Kivi(residual=64)]


def batch():
    ids = torch.randint(1, 300, (3, 150), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :40], mask[2, :149] = 0, 0
    return ids, mask


def goes_on(model, cache, mask):
    mask = torch.cat([mask, torch.ones(3, 5, dtype=mask.dtype)], 1)
    ids = torch.arange(1, 16).view(3, 5)
    with torch.inference_mode():
        return model(ids, attention_mask=mask, past_key_values=cache).logits


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_a_loaded_cache_goes_on_bit_for_bit(llama, codec, tmp_path):
    ids, mask = batch()
    cache = CompressedCache.of(llama, codec, prefill="coded")
    with torch.inference_mode():
        llama(ids, attention_mask=mask, past_key_values=cache)
    store.save(cache, llama, tmp_path / "cache")
    loaded = store.load(CompressedCache.of(llama, codec, prefill="coded"), llama, tmp_path / "cache")
    assert loaded.nbytes == cache.nbytes
    assert loaded.get_seq_length() == 150
    assert torch.equal(goes_on(llama, loaded, mask), goes_on(llama, cache, mask))


def test_a_path_may_be_a_text(llama, tmp_path):
    path = str(tmp_path / "cache.safetensors")
    store.save(CompressedCache.of(llama, Plain()), llama, path)
    assert store.load(CompressedCache.of(llama, Plain()), llama, path).get_seq_length() == 0


def test_sliding_window_layers_come_back_too(tiny, tmp_path):
    model = tiny(
        "Qwen3", use_sliding_window=True, sliding_window=32, layer_types=["sliding_attention", "full_attention"]
    )
    ids, mask = batch()
    cache = CompressedCache.of(model, Hack())
    with torch.inference_mode():
        model(ids, past_key_values=cache)
    store.save(cache, model, tmp_path / "cache")
    loaded = store.load(CompressedCache.of(model, Hack()), model, tmp_path / "cache")
    whole = torch.ones_like(mask)
    assert torch.equal(goes_on(model, loaded, whole), goes_on(model, cache, whole))


def test_an_empty_cache_round_trips(llama, tmp_path):
    store.save(CompressedCache.of(llama, Hack()), llama, tmp_path / "cache")
    assert store.load(CompressedCache.of(llama, Hack()), llama, tmp_path / "cache").get_seq_length() == 0


def test_another_model_codec_or_file_is_refused(llama, tiny, tmp_path):
    ids, _ = batch()
    cache = CompressedCache.of(llama, Hack())
    with torch.inference_mode():
        llama(ids, past_key_values=cache)
    path = tmp_path / "cache"
    store.save(cache, llama, path)
    with pytest.raises(DataError, match="another model"):
        store.load(CompressedCache.of(llama, Hack()), tiny(num_hidden_layers=3), path)
    with pytest.raises(DataError, match="layer 0 was held by Hack"):
        store.load(CompressedCache.of(llama, Hack(k_bits=4)), llama, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read"):
        store.load(CompressedCache.of(llama, Hack()), llama, path)
