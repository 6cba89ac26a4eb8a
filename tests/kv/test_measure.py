"""What is measured: nothing where nothing is compressed, real bytes, and numbers that repeat with their seed."""

import math
import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from transformers import Cache

from thrifty.errors import DataError, SettingError
from thrifty.kv import measure
from thrifty.kv.blocks import HeadShape
from thrifty.kv.cache import CompressedCache
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.kivi import Kivi
from thrifty.kv.codecs.plain import Plain
from thrifty.kv.measure import MakeCache, Protocol
from thrifty.llm import LanguageModel

CODECS = {"plain": Plain(), "hack": Hack(partition=32), "kivi": Kivi(residual=32)}
SHORT = Protocol(windows=2, window=150, chunk=40, passkey_tokens=(450,), depths=(0.0, 1.0), contexts=(100, 300))


def caches(language: LanguageModel, *names: str) -> dict[str, MakeCache]:
    def maker(name: str) -> MakeCache:
        return lambda: CompressedCache.of(language.model, CODECS[name])

    return {name: maker(name) for name in names or CODECS}


def some_text(length: int) -> str:
    return "".join(random.Random(0).choices("abcdefghij ", k=length))


def test_windows_are_the_first_of_the_text_and_do_not_overlap(reader: LanguageModel) -> None:
    windows = measure.windows_of(reader, some_text(1000), "text", SHORT)
    assert windows.shape == (2, 150)
    assert reader.tokenizer.decode(windows.flatten().tolist()) == some_text(1000)[:300]
    assert measure.windows_of(reader, some_text(299), "text", SHORT).shape == (1, 150)


def test_a_text_that_is_too_short_is_refused_by_name(reader: LanguageModel) -> None:
    with pytest.raises(DataError, match=r"my text has 149 tokens; one window of 150 is needed: .*smaller --window"):
        measure.windows_of(reader, some_text(149), "my text", SHORT)


def test_a_window_that_the_model_cannot_read_is_refused(reader: LanguageModel) -> None:
    with pytest.raises(SettingError, match=r"window=3000: tiny reads at most 2048 tokens"):
        measure.windows_of(reader, some_text(9000), "text", Protocol(window=3000))


@pytest.mark.parametrize("wrong", [{"windows": 0}, {"window": 1}, {"chunk": 0}, {"speed_tokens": -1}], ids=str)
def test_lengths_that_measure_nothing_are_refused(wrong: dict[str, int]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(SettingError, match=rf"{name}={value}; use {value + 1} or more"):
        Protocol(**wrong)


def test_no_compression_changes_nothing(reader: LanguageModel) -> None:
    windows = measure.windows_of(reader, some_text(1000), "text", SHORT)
    row = measure.quality(reader, windows, caches(reader, "plain"), SHORT)["plain"]
    assert row["ppl_ratio"] == pytest.approx(1, abs=1e-5)
    assert row["kl"] == pytest.approx(0, abs=1e-5)
    assert row["top1"] == 1
    assert row["predictions"] == 2 * 149
    assert row["ppl"] == pytest.approx(row["ppl_plain"])


def test_perplexity_is_that_of_one_pass_over_the_window(reader: LanguageModel) -> None:
    windows = measure.windows_of(reader, some_text(1000), "text", SHORT)
    row = measure.quality(reader, windows, caches(reader, "plain"), SHORT)["plain"]
    with torch.inference_mode():
        logits = reader.model(windows).logits[:, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert row["ppl_plain"] == pytest.approx(math.exp(float(loss)), rel=1e-4)


def test_compression_is_seen_and_does_not_depend_on_who_else_is_measured(reader: LanguageModel) -> None:
    windows = measure.windows_of(reader, some_text(1000), "text", SHORT)
    rows = measure.quality(reader, windows, caches(reader), SHORT)
    alone = measure.quality(reader, windows, caches(reader, "hack"), SHORT)["hack"]
    assert rows["hack"] == alone
    for name in ("hack", "kivi"):
        assert rows[name]["kl"] > 1e-3
        assert rows[name]["top1"] < 1
        assert rows[name]["ppl_plain"] == rows["plain"]["ppl_plain"]
        assert rows[name]["ppl_ratio"] == pytest.approx(rows[name]["ppl"] / rows[name]["ppl_plain"])
        assert rows[name]["ppl_ratio_error"] > 0


@pytest.mark.parametrize("chunk", [1, 74, 75, 149, 150, 400])
def test_every_token_is_predicted_once_however_the_window_is_cut(reader: LanguageModel, chunk: int) -> None:
    protocol = Protocol(windows=1, window=75, chunk=chunk)
    windows = measure.windows_of(reader, some_text(100), "text", protocol)
    row = measure.quality(reader, windows, caches(reader, "plain"), protocol)["plain"]
    assert row["predictions"] == 74
    assert row["ppl_ratio"] == pytest.approx(1, abs=1e-5)


def test_sizes_are_the_bytes_that_the_codecs_say(reader: LanguageModel) -> None:
    rows = measure.sizes(reader, caches(reader), SHORT)
    for name, codec in CODECS.items():
        for tokens in SHORT.contexts:
            right = codec.bytes_per_token(HeadShape(2, 64, element_bytes=4), tokens) * 2
            assert rows[name]["bytes_per_token"][str(tokens)] == pytest.approx(right)
        assert rows[name]["bytes_per_token_bf16"] == 2 * 2 * 64 * 2 * 2
        assert rows[name]["bytes_ratio"] == rows[name]["bytes_per_token"]["300"] / 1024
        assert rows[name]["bytes_ratio_context"] == 300
    assert rows["plain"]["bytes_ratio"] == 2  # the model has 32 bits


def test_sizes_compare_at_the_longest_context_up_to_the_one_asked_for(reader: LanguageModel) -> None:
    protocol = Protocol(contexts=(50, 100, 300, 9999), ratio_context=200)
    row = measure.sizes(reader, caches(reader, "hack"), protocol)["hack"]
    assert row["bytes_ratio_context"] == 100
    assert row["bytes_ratio"] == row["bytes_per_token"]["100"] / row["bytes_per_token_bf16"]
    assert list(row["bytes_per_token"]) == ["50", "100", "300"]


def test_where_the_model_reads_none_of_the_contexts_its_longest_is_measured(reader: LanguageModel) -> None:
    row = measure.sizes(reader, caches(reader, "hack"), Protocol(contexts=(4096, 8192)))["hack"]
    assert list(row["bytes_per_token"]) == ["2048"]
    assert row["bytes_ratio_context"] == 2048


def test_speed_is_measured_no_further_than_the_model_reads(reader: LanguageModel) -> None:
    row = measure.speed(reader, caches(reader, "plain"), Protocol(speed_context=9999, speed_tokens=1))["plain"]
    assert row["speed_context"] == 2047


def test_filled_caches_count_their_real_tensors(reader: LanguageModel) -> None:
    cache = CompressedCache.of(reader.model, Hack())
    assert measure.filled_bytes(cache, reader, 200) == cache.nbytes > 0


def test_a_random_model_recalls_nothing_and_says_where(reader: LanguageModel) -> None:
    row = measure.recall(reader, caches(reader, "hack"), SHORT)["hack"]
    assert row["passkey"] == row["passkey_plain"] == 0
    assert len(row["passkey_by_depth"]) == 2
    assert [name.split("@")[1] for name in row["passkey_by_depth"]] == ["0%", "100%"]


def test_passkeys_longer_than_the_model_reads_are_left_out(reader: LanguageModel) -> None:
    row = measure.recall(reader, caches(reader, "hack"), Protocol(passkey_tokens=(4096,)))["hack"]
    assert math.isnan(row["passkey"])
    assert row["passkey_by_depth"] == {}


def test_other_seeds_hide_other_keys(reader: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []

    def note(language: LanguageModel, test: Any, cache: Cache, chunk: int) -> bool:
        keys.append(test.key)
        return True

    monkeypatch.setattr(measure.passkey, "is_found", note)
    for seed in (0, 0, 7):
        row = measure.recall(reader, {}, Protocol(passkey_tokens=(450,), depths=(0.0, 1.0), seed=seed))
        assert row == {}
    assert keys[:2] == keys[2:4]
    assert keys[0] != keys[1]
    assert not set(keys[4:]) & set(keys[:2])


def test_speed_is_that_of_the_median_step(reader: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = Protocol(speed_context=20, speed_tokens=3)
    row = measure.speed(reader, caches(reader, "hack"), protocol)["hack"]
    assert row["tokens_per_second"] > 0
    assert row["tokens_per_second_plain"] > 0
    assert row["speed_context"] == 20
    ticks = iter(range(10_000))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(ticks)))
    assert measure.speed(reader, caches(reader, "hack"), protocol)["hack"]["tokens_per_second"] == 1
    assert measure.speed(reader, caches(reader, "hack"), Protocol(speed_tokens=0)) == {"hack": {}}


def test_progress_is_told_step_by_step(reader: LanguageModel) -> None:
    told: list[tuple[str, int, int]] = []

    def track(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        count = 0
        for item in items:
            count += 1
            yield item
        told.append((what, total, count))

    protocol = Protocol(windows=1, window=50, chunk=20, passkey_tokens=(450,), depths=(0.5,), speed_tokens=2)
    windows = measure.windows_of(reader, some_text(60), "text", protocol)
    measure.quality(reader, windows, caches(reader, "plain"), protocol, track)
    measure.recall(reader, caches(reader, "plain"), protocol, track)
    measure.speed(reader, caches(reader, "plain"), protocol, track)
    assert told == [("perplexity", 3, 3), ("passkeys", 2, 2), ("speed", 2, 2)]
