"""What a compressed cache costs and what it keeps: measured against the plain cache in the same run."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from thrifty import perplexity
from thrifty.errors import SettingError
from thrifty.kv import passkey
from thrifty.kv.cache import CompressedCache, CompressedLayer
from thrifty.llm import LanguageModel, attention_shape
from thrifty.perplexity import Tally
from thrifty.progress import Track, silent

MakeCache = Callable[[], Cache]


@dataclass(frozen=True)
class Protocol:
    """How much is measured. Lengths are in tokens; passkeys are hidden at `depths` (0 start, 1 end) of the prompt."""

    windows: int = 8
    window: int = 2048
    chunk: int = 256
    passkey_tokens: tuple[int, ...] = (1024,)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    contexts: tuple[int, ...] = (512, 2048, 8192)
    ratio_context: int = 2048
    speed_context: int = 1024
    speed_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse lengths that measure nothing."""
        for name, least in (("windows", 1), ("window", 2), ("chunk", 1), ("speed_tokens", 0), ("speed_context", 1)):
            if getattr(self, name) < least:
                raise SettingError(f"{name}={getattr(self, name)}; use {least} or more")


def windows_of(language: LanguageModel, text: str, name: str, protocol: Protocol) -> Tensor:
    """The first `windows` non-overlapping windows of `text` as token ids [windows, window]."""
    return perplexity.windows_of(language, text, name, protocol.windows, protocol.window)


@torch.inference_mode()
def quality(
    language: LanguageModel, windows: Tensor, caches: Mapping[str, MakeCache], protocol: Protocol, track: Track = silent
) -> dict[str, dict[str, Any]]:
    """Perplexity, KL divergence and top-1 agreement of each cache, against the plain cache, on the same windows.

    The model reads a window in chunks through the cache, so what a query sees of earlier tokens is what the cache
    holds. Logits exist for one chunk at a time: memory does not grow with the window.
    """
    model = language.model
    tallies = {name: Tally() for name in ["plain reference", *caches]}
    starts = range(0, windows.shape[1], protocol.chunk)
    steps = [(window, start) for window in windows for start in starts]
    live: dict[str, Cache] = {}
    sums: dict[str, list[float]] = {}
    for window, start in track(steps, "perplexity", len(steps)):
        if start == 0:
            live = {"plain reference": DynamicCache(config=model.config)}
            live |= {name: make() for name, make in caches.items()}
            sums = {name: [0.0, 0.0] for name in live}
        ids = window[None, start : start + protocol.chunk].to(model.device)
        target = window[start + 1 : start + 1 + ids.shape[1]].to(model.device)
        plain = None
        for name, cache in live.items():
            logits = model(ids, past_key_values=cache, use_cache=True).logits[0, : len(target)].float()
            scores = logits.log_softmax(-1)
            plain = scores if plain is None else plain
            tally, total = tallies[name], sums[name]
            total[0] -= scores.gather(1, target[:, None]).sum().item()
            total[1] += (plain.exp() * (plain - scores)).sum().item()
            tally.agreed += int((scores.argmax(-1) == plain.argmax(-1)).sum())
            tally.predictions += len(target)
        if start == starts[-1]:
            for name, (loss, divergence) in sums.items():
                tallies[name].loss.append(loss / (windows.shape[1] - 1))
                tallies[name].divergence.append(divergence / (windows.shape[1] - 1))
    return {name: tallies[name].row(tallies["plain reference"]) for name in caches}


def passkeys(language: LanguageModel, protocol: Protocol) -> list[passkey.Passkey]:
    """The passkey prompts that fit the model. Raises `SettingError` where a length has no room for the question."""
    return [
        passkey.make(language, tokens, depth, protocol.seed + index)
        for tokens in protocol.passkey_tokens
        if tokens <= language.max_positions
        for index, depth in enumerate(protocol.depths)
    ]


def recall(
    language: LanguageModel, caches: Mapping[str, MakeCache], protocol: Protocol, track: Track = silent
) -> dict[str, dict[str, Any]]:
    """The share of passkeys that the model finds through each cache, next to the plain cache's."""
    tests = passkeys(language, protocol)
    everyone = {"plain reference": lambda: DynamicCache(config=language.model.config), **caches}
    found: dict[str, list[bool]] = {name: [] for name in everyone}
    steps = [(test, name) for test in tests for name in everyone]
    for test, name in track(steps, "passkeys", len(steps)):
        found[name].append(passkey.is_found(language, test, everyone[name](), protocol.chunk))
    share = {name: statistics.fmean(hits) if hits else math.nan for name, hits in found.items()}
    depths = [f"{test.num_tokens}@{test.depth:.0%}" for test in tests]
    return {
        name: {
            "passkey": share[name],
            "passkey_plain": share["plain reference"],
            "passkey_by_depth": dict(zip(depths, found[name], strict=True)),
        }
        for name in caches
    }


def sizes(language: LanguageModel, caches: Mapping[str, MakeCache], protocol: Protocol) -> dict[str, dict[str, Any]]:
    """Bytes per token by context length: real tensors of a filled cache, everything counted, for one sequence.

    `bytes_ratio` compares with a bfloat16 cache at `ratio_context` tokens.
    """
    layers, kv_heads, head_dim = attention_shape(language.model)
    bfloat16 = layers * kv_heads * head_dim * 2 * 2
    contexts = [tokens for tokens in protocol.contexts if tokens <= language.max_positions] or [language.max_positions]
    at = max(tokens for tokens in contexts if tokens <= max(protocol.ratio_context, contexts[0]))
    rows = {}
    for name, make in caches.items():
        held = {str(tokens): filled_bytes(make(), language, tokens) / tokens for tokens in contexts}
        rows[name] = {
            "bytes_per_token": held,
            "bytes_per_token_bf16": bfloat16,
            "bytes_ratio": held[str(at)] / bfloat16,
            "bytes_ratio_context": at,
        }
    return rows


def filled_bytes(cache: Cache, language: LanguageModel, tokens: int) -> int:
    """Bytes that `cache` really holds after `tokens` tokens of one sequence. The values do not matter: random ones."""
    assert isinstance(cache, CompressedCache)
    model = language.model
    _, kv_heads, head_dim = attention_shape(model)
    k = torch.randn(1, kv_heads, tokens, head_dim, device=model.device, dtype=model.dtype)
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, CompressedLayer):
            layer.store(k, k)
        else:
            cache.update(k, k, index)
    return cache.nbytes


@torch.inference_mode()
def speed(
    language: LanguageModel, caches: Mapping[str, MakeCache], protocol: Protocol, track: Track = silent
) -> dict[str, dict[str, Any]]:
    """Tokens per second of greedy decoding, one sequence, after `speed_context` tokens: 1 / median step.

    The caches take turns step by step, so a busy machine slows all of them alike.
    """
    if protocol.speed_tokens == 0:
        return {name: {} for name in caches}
    model = language.model
    generator = torch.Generator().manual_seed(protocol.seed)
    vocabulary = model.config.get_text_config().vocab_size
    context = max(1, min(protocol.speed_context, language.max_positions - protocol.speed_tokens))
    prompt = torch.randint(0, vocabulary, (1, context), generator=generator).to(model.device)
    live = {"plain reference": DynamicCache(config=model.config), **{name: make() for name, make in caches.items()}}
    for cache in live.values():
        model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
    seconds: dict[str, list[float]] = {name: [] for name in live}
    token = prompt[:, -1:]
    for _ in track(range(protocol.speed_tokens), "speed", protocol.speed_tokens):
        for name, cache in live.items():
            start = time.perf_counter()
            model(token, past_key_values=cache, use_cache=True).logits.argmax(-1).tolist()
            seconds[name].append(time.perf_counter() - start)
    rate = {name: 1 / statistics.median(steps) for name, steps in seconds.items()}
    return {
        name: {
            "tokens_per_second": rate[name],
            "tokens_per_second_plain": rate["plain reference"],
            "speed_context": context,
        }
        for name in caches
    }
