"""Tiny language models with random weights, one of each family that moe knows, and random plans for them."""

import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from thrifty.llm import LanguageModel
from thrifty.moe.job import MoeJob
from thrifty.moe.sites import found
from thrifty.moe.text import Corpus
from thrifty.plan import Plan

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi")
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # far apart logits, so that a wrong expert shows
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}

Tiny = Callable[..., PreTrainedModel]
Random = Callable[..., Plan]


def make(family: str = "Llama", **changes: object) -> PreTrainedModel:
    """A tiny causal language model, the same at each call."""
    torch.manual_seed(7)
    options = SHAPE | ({"partial_rotary_factor": 0.5} if family == "Phi" else {}) | changes
    config = getattr(transformers, f"{family}Config")(**options)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def random_plan(model: PreTrainedModel, num_experts: int = 4, widths: int | list[int] = 48, common: int = 16) -> Plan:
    """A plan with random experts and routers; `widths` may name one for each layer, `common` channels are in all."""
    generator = torch.Generator().manual_seed(3)
    keep: dict[str, Tensor] = {}
    evidence: dict[str, Tensor] = {}
    sites = found(model)
    for site, width in zip(sites, [widths] * len(sites) if isinstance(widths, int) else widths, strict=True):
        scores = torch.rand(num_experts, site.channels, generator=generator)
        scores[:, torch.randperm(site.channels, generator=generator)[:common]] += 1
        keep[site.name] = torch.zeros_like(scores).scatter_(1, scores.topk(width).indices, 1.0)
        if num_experts > 1:
            evidence[f"{site.name}.router"] = torch.randn(num_experts, site.width, generator=generator)
    return Plan("random", keep, evidence)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Make a tiny model: `tiny("Qwen3", num_hidden_layers=3)`."""
    return make


@pytest.fixture(scope="session")
def random() -> Random:
    """Make a random plan: `random(model, num_experts=4, widths=48)`."""
    return random_plan


@pytest.fixture(params=FAMILIES)
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny model of each family."""
    return make(request.param)


@pytest.fixture
def tokens() -> Tensor:
    """Two rows of 33 token ids."""
    return torch.randint(2, 97, (2, 33), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Forty windows of 32 random tokens to learn from, and four held out."""
    ids = torch.randint(2, 97, (44, 32), generator=torch.Generator().manual_seed(2))
    return Corpus(("random",), (ids[:40],), ids[40:])


@pytest.fixture(scope="module")
def job(corpus: Corpus) -> MoeJob:
    """A tiny Llama of which half the MLPs may be active, and a training of six steps."""
    return MoeJob.of(make(), corpus, 0.5, steps=6, batch=2, calibration=8)


class Letters:
    """A tokenizer with one token for each character."""

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [2 + ord(letter) % 95 for letter in text]}


@pytest.fixture
def language() -> LanguageModel:
    """A tiny Llama that reads characters."""
    return LanguageModel("tiny", make(max_position_embeddings=2048), Letters())


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and a tokenizer of characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = tmp_path_factory.mktemp("model") / "tiny"
    make(max_position_embeddings=2048).save_pretrained(path)
    words = {word: number for number, word in enumerate(["<pad>", "<s>", *string.printable[:95]])}
    letters = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<pad>", bos_token="<s>").save_pretrained(
        path
    )
    return path
