"""A passkey is where it should be, and found only where it was really read."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from thrifty.errors import SettingError
from thrifty.kv.cache import CompressedCache
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.passkey import is_found, make
from thrifty.llm import LanguageModel


def text_of(language: LanguageModel, ids: list[int]) -> str:
    return language.tokenizer.decode(ids)


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [500, 777, 2000])
def test_a_prompt_is_almost_as_long_as_asked_and_hides_its_key_once(
    reader: LanguageModel, tokens: int, depth: float
) -> None:
    test = make(reader, tokens, depth, seed=1)
    assert tokens - 100 < test.num_tokens <= tokens
    assert test.num_tokens == len(test.ids)
    text = text_of(reader, test.ids)
    assert text.count(test.key) == 2
    assert text.endswith("The pass key is ")  # the answer's first digit comes next
    assert len(test.key) == 5


def test_the_key_lies_at_its_depth(reader: LanguageModel) -> None:
    places = []
    for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
        test = make(reader, 3000, depth, seed=1)
        places.append(text_of(reader, test.ids).index(test.key) / test.num_tokens)
        assert test.depth == depth
    assert places == sorted(places)
    assert places[0] < 0.1
    assert 0.4 < places[2] < 0.6
    assert places[-1] > 0.9


def test_a_key_belongs_to_its_seed(reader: LanguageModel) -> None:
    assert make(reader, 600, 0.5, 3) == make(reader, 600, 0.5, 3)
    assert len({make(reader, 600, 0.5, seed).key for seed in range(20)}) > 15


def test_a_prompt_is_never_longer_than_asked(reader: LanguageModel) -> None:
    assert make(reader, 500, 0.5, seed=1).num_tokens <= 500
    with pytest.raises(SettingError, match="50 tokens has no room"):
        make(reader, 50, 0.5, seed=1)


class Parrot:
    """A model that has read whatever it was given, and says what stood after the first `The pass key is`."""

    device = torch.device("cpu")

    def __init__(self, answer: str | None = None) -> None:
        self.read: list[int] = []
        self.chunks: list[int] = []
        self.caches: list[Any] = []
        self.answer = answer

    def __call__(self, ids: torch.Tensor, past_key_values: Any, **settings: Any) -> SimpleNamespace:
        self.read += ids[0].tolist()
        self.chunks.append(ids.shape[1])
        self.caches.append(past_key_values)
        text = "".join(chr(one) for one in self.read)
        logits = torch.zeros(1, 1, 300)
        if "What is the pass key? The pass key is" in text:
            said = f" {self.answer or text.split('The pass key is ')[1][:5]}."
            given = text.split("What is the pass key? The pass key is")[1]
            logits[0, 0, ord(said[len(given)]) if len(given) < len(said) else 32] = 1.0
        return SimpleNamespace(logits=logits)


def test_a_model_that_says_the_key_has_found_it(reader: LanguageModel) -> None:
    parrot = Parrot()
    language = LanguageModel("parrot", parrot, reader.tokenizer)
    test = make(language, 700, 0.5, seed=2)
    cache = DynamicCache()
    assert is_found(language, test, cache, chunk=128)
    assert parrot.read[: test.num_tokens] == test.ids
    whole, rest = divmod(test.num_tokens, 128)
    assert parrot.chunks[: whole + 1] == [128] * whole + [rest]
    assert set(parrot.chunks[whole + 1 :]) == {1}
    assert all(one is cache for one in parrot.caches)


@pytest.mark.parametrize("answer", ["12345", "the"])
def test_a_model_that_says_something_else_has_not_found_it(reader: LanguageModel, answer: str) -> None:
    language = LanguageModel("parrot", Parrot(answer), reader.tokenizer)
    assert not is_found(language, make(language, 700, 0.5, seed=2), DynamicCache(), chunk=128)


def test_a_random_model_does_not_find_the_key_through_a_compressed_cache(reader: LanguageModel) -> None:
    cache = CompressedCache.of(reader.model, Hack(partition=32))
    test = make(reader, 500, 0.5, seed=0)
    assert not is_found(reader, test, cache, chunk=100)
    assert cache.get_seq_length() == test.num_tokens + len(reader.encode(f" {test.key}"))
