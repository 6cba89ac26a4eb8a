"""Presets are names for codecs with settings, within the bits that they promise."""

import pytest
from transformers import DynamicCache

from thrifty import catalogue, llm
from thrifty.errors import SettingError
from thrifty.kv import measure, presets
from thrifty.kv.blocks import HeadShape
from thrifty.kv.cache import CompressedCache

PROMISED = {"smallest": 2.6, "balanced": 3.6, "finest": 4.6}


@pytest.mark.parametrize("name", PROMISED)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_closed_blocks_of_a_preset_cost_the_bits_it_promises(name: str, head_dim: int) -> None:
    codec, shape, tokens = presets.codec_of(name), HeadShape(1, head_dim), 64 * 4000
    bits = codec.bytes_per_token(shape, tokens) * 8 / (2 * head_dim)
    assert PROMISED[name] - 0.2 < bits <= PROMISED[name]


def test_presets_and_their_test_name_the_same() -> None:
    assert set(presets.PRESETS) == set(PROMISED)


def test_a_preset_can_be_changed_like_a_codec() -> None:
    codec = presets.codec_of("balanced", {"sinks": "8", "v_bits": "3"})
    assert (codec.k_bits, codec.v_bits, codec.sinks, codec.fit) == (4, 3, 8, "unbiased")


def test_settings_may_stand_behind_the_name() -> None:
    assert presets.codec_of("hack:k_bits=4,fit=unbiased") == presets.codec_of(
        "hack", {"k_bits": "4", "fit": "unbiased"}
    )
    assert presets.codec_of("balanced:sinks=8", {"sinks": "2"}) == presets.codec_of("balanced", {"sinks": "2"})
    with pytest.raises(SettingError, match="balanced: sinks"):
        presets.codec_of("balanced:sinks")


def test_no_preset_hides_a_codec() -> None:
    assert not set(presets.PRESETS) & set(catalogue.names("kv", "codecs"))
    assert type(presets.codec_of("kivi")) is catalogue.find("kv", "kivi", "codecs")


def test_an_unknown_name_lists_codecs_and_presets() -> None:
    with pytest.raises(SettingError, match=r"no codec balancd.*hack.*presets: smallest, balanced, finest"):
        presets.codec_of("balancd")


def test_a_preset_says_what_it_stands_for() -> None:
    assert presets.about("balanced").startswith("hack with k_bits=4, v_bits=2, fit=unbiased")


@pytest.mark.slow
def test_presets_of_3_6_bits_and_more_find_every_passkey_that_the_plain_cache_finds() -> None:
    language = llm.load("smollm2")
    makers: dict[str, measure.MakeCache] = {"plain": lambda: DynamicCache(config=language.model.config)}
    for name in ("balanced", "finest"):
        codec = presets.codec_of(name)
        makers[name] = lambda codec=codec: CompressedCache.of(language.model, codec, prefill="coded")
    protocol = measure.Protocol(passkey_tokens=(512, 1024), depths=(0.1, 0.5, 0.9))
    rows = measure.recall(language, makers, protocol)
    found = {name: {place for place, hit in row["passkey_by_depth"].items() if hit} for name, row in rows.items()}
    assert found["plain"]
    assert found["balanced"] >= found["plain"]
    assert found["finest"] >= found["plain"]
