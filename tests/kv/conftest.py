"""Tiny language models with random weights, one of each family that the tests of kv need."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from thrifty.llm import LanguageModel

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "initializer_range": 0.15,  # sharp attention and far apart logits, so that a wrong cache shows
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


class Characters:
    """A tokenizer with one token for each character."""

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(one) for one in ids)


Tiny = Callable[..., PreTrainedModel]


def make(family: str = "Llama", **changes: object) -> PreTrainedModel:
    """A tiny causal language model, the same at each call."""
    torch.manual_seed(5)
    kind = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    config = kind(**(SHAPE | changes))
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Make a tiny model: `tiny("Qwen3", num_hidden_layers=3)`."""
    return make


@pytest.fixture(scope="session")
def reader() -> LanguageModel:
    """A tiny Llama that reads and writes characters."""
    return LanguageModel("tiny", make(), Characters())


@pytest.fixture
def llama() -> PreTrainedModel:
    """A tiny Llama."""
    return make()


@pytest.fixture(scope="session")
def make_unchecked() -> Callable[..., Any]:
    """Make settings as a user does: without the types in signatures being checked, which would come first here."""

    def unchecked(kind: type, **values: object) -> Any:
        made = kind()
        for name, value in values.items():
            object.__setattr__(made, name, value)
        made.__post_init__()
        return made

    return unchecked
