"""Passkey retrieval: a number hidden in filler text, asked for at the end (Mohtashami and Jaggi, 2023).

The prompt goes on to where the answer's digits begin. What a model would rather say before them is no matter of memory:
asked right after the number, SmolLM2 with the plain cache may itself be undecided between it and "the pass key".
"""

import itertools
import random
from dataclasses import dataclass

import torch
from transformers import Cache

from thrifty.errors import SettingError
from thrifty.llm import LanguageModel

_OPENING = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorise it. "
    "I will quiz you about the important information there.\n"
)
_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
_NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key. "
_QUESTION = "\nWhat is the pass key? The pass key is"


@dataclass(frozen=True)
class Passkey:
    """A prompt of `num_tokens` tokens that hides `key` at `depth` (0 start, 1 end) of its filler."""

    ids: list[int]
    key: str
    depth: float

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.ids)


def make(language: LanguageModel, tokens: int, depth: float, seed: int) -> Passkey:
    """A prompt of at most `tokens` tokens. Raises `SettingError` where the question alone is longer."""
    key = str(random.Random(seed).randint(10000, 99999))
    filler = language.encode(_FILLER)
    opening, question = language.encode(_OPENING), language.encode(_QUESTION) + _before_digits(language, key)
    needle = language.encode(_NEEDLE.format(key=key))
    least = len(opening) + len(needle) + len(question)
    if tokens < least:
        raise SettingError(f"a passkey prompt of {tokens} tokens has no room; use {least} or more, or 0 for none")
    repeats = (tokens - least) // len(filler)
    before = round(repeats * depth)
    ids = opening + filler * before + needle + filler * (repeats - before) + question
    return Passkey(ids, key, depth)


def _before_digits(language: LanguageModel, key: str) -> list[int]:
    """The tokens of the answer before its first digit, such as a space; none where that is one token with the digit."""
    answer = language.encode(f" {key}")
    return list(itertools.takewhile(lambda token: key[0] not in language.tokenizer.decode([token]), answer))


@torch.inference_mode()
def is_found(language: LanguageModel, test: Passkey, cache: Cache, chunk: int) -> bool:
    """Whether greedy decoding through `cache` begins with the key."""
    model = language.model
    ids = torch.tensor([test.ids], device=model.device)
    logits = torch.empty(0)
    for start in range(0, test.num_tokens, chunk):
        logits = model(ids[:, start : start + chunk], past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    answer: list[int] = []
    for _ in range(len(language.encode(f" {test.key}"))):
        answer.append(int(logits[0, -1].argmax()))
        logits = model(torch.tensor([[answer[-1]]], device=model.device), past_key_values=cache).logits
    return language.tokenizer.decode(answer).strip().startswith(test.key)
