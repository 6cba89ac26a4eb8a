"""Decoding speed of SmolLM2-135M with each cache after a short and a long prompt, next to peers in the same run.

    .venv/bin/python benchmarks/kv_generate.py [--contexts 256 8000] [--steps 12] [--results results/kv_generate.jsonl]

Peers: the plain cache in float32 and bfloat16, transformers' `QuantizedCache` where its backends are installed
(`kv_peers.py`) and llama.cpp where it is (`kv_llama.py`); one that is not is named in the output. All caches hold the
same keys and values, those of a real prompt; then all of them take turns step by step, so a busy machine slows all
alike. The time is that of the whole model, weights included: llama.cpp computes on 4-bit weights, PyTorch on float32 or
bfloat16. So a row also has the milliseconds that its long prompt adds to a step, which are those of the cache.
"""

import argparse
import dataclasses
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import kv_llama
import torch
from kv_peers import Quantized
from transformers import Cache, DynamicCache, QuantizedCache, cache_utils

from thrifty import data, llm
from thrifty.files import write_text
from thrifty.kv import native_kernel, presets
from thrifty.kv.cache import CompressedCache, CompressedLayer
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.kivi import Kivi
from thrifty.report import Column, Report, provenance

Step = Callable[[], object]


def caches(model: Any) -> dict[str, Callable[[], Cache]]:
    """Makers of the caches that can be had here."""
    four = Hack(k_bits=4, v_bits=4)
    makers: dict[str, Callable[[], Cache]] = {"plain": lambda: DynamicCache(config=model.config)}
    codecs = {
        "hack 4/4": four,
        "hack 2/2": Hack(),
        **{f"`{name}`": presets.codec_of(name) for name in presets.PRESETS},
        "hack 4/4 in PyTorch": dataclasses.replace(four, kernel="reference"),
        "kivi 4/4": Kivi(k_bits=4, v_bits=4),
    }
    makers |= {name: partial(CompressedCache.of, model, codec) for name, codec in codecs.items()}
    for peer in (Quantized("quanto", 4, residual=128), Quantized("hqq", 4, residual=128)):
        try:
            peer.make(model)
        except (ImportError, ValueError) as error:
            print(f"QuantizedCache {peer.backend} is not here: {error}", file=sys.stderr)
            continue
        makers[f"QuantizedCache {peer.backend} 4 bits"] = partial(peer.make, model)
    if hasattr(cache_utils, "Fp8QuantizedLayer"):
        makers["QuantizedCache fp8"] = partial(QuantizedCache, "fp8", model.config)
    return makers


def filled(cache: Cache, prompt: DynamicCache) -> Cache:
    """`cache` with the keys and values of the prompt, as its own prefill would store them."""
    for index, (layer, given) in enumerate(zip(cache.layers, prompt.layers, strict=True)):
        if isinstance(layer, CompressedLayer):
            layer.store(given.keys, given.values)
        else:
            cache.update(given.keys.clone(), given.values.clone(), index)
    return cache


@torch.inference_mode()
def steps(model: Any, prompt: torch.Tensor) -> dict[str, Step]:
    """By cache: what decodes one more token after the prompt, which is read once."""
    read = DynamicCache(config=model.config)
    for piece in prompt.split(1024, dim=1):
        model(piece, past_key_values=read, use_cache=True, logits_to_keep=1)
    found = {}
    for name, make in caches(model).items():
        cache = filled(make(), read)
        found[name] = partial(step, model, prompt[:, -1:], cache)
        print(f"{name} holds {prompt.shape[1]:,} tokens", file=sys.stderr, flush=True)
    return found


@torch.inference_mode()
def step(model: Any, token: torch.Tensor, cache: Cache) -> list[int]:
    """One greedy step."""
    return model(token, past_key_values=cache, use_cache=True).logits.argmax(-1).tolist()


def in_turn(contenders: dict[Any, Step], count: int) -> dict[Any, list[float]]:
    """Seconds of each of `count` steps by contender, after one that is not timed."""
    seconds: dict[Any, list[float]] = {name: [] for name in contenders}
    for turn in range(count + 1):
        for name, contender in contenders.items():
            begin = time.perf_counter()
            contender()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def rows_of(seconds: dict[int, dict[tuple[str, str], list[float]]], plain: dict[str, str]) -> list[dict[str, Any]]:
    """One row for each (cache, weights), from the seconds by context; `plain` names the cache to compare with."""
    short, long = seconds
    middle = {at: {name: statistics.median(times) for name, times in found.items()} for at, found in seconds.items()}
    rows = []
    for (cache, weights), times in seconds[long].items():
        now, before = middle[long][cache, weights], middle[short][cache, weights]
        row = {"cache": cache, "dtype": weights, "context": long, "tokens_per_second": 1 / now}
        row |= {"times_plain": middle[long][plain[weights], weights] / now, "spread": (max(times) - min(times)) / now}
        row |= {"short_context": short, "tokens_per_second_short": 1 / before, "added_ms": (now - before) * 1e3}
        rows.append(row)
    return rows


def main() -> None:
    """Measure in float32, bfloat16 and llama.cpp, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--contexts", type=int, nargs=2, default=[256, 8000], help="tokens of a short and a long prompt"
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--results", type=Path, default=Path("results/kv_generate.jsonl"))
    asked = parser.parse_args()
    start, text = time.perf_counter(), data.default_text()[1]
    torch.set_num_threads(asked.threads)
    languages = {dtype: llm.load("smollm2", dtype) for dtype in asked.dtypes}
    ids = languages[asked.dtypes[0]].encode(text[: asked.contexts[1] * 10])
    seconds = {}
    for context in asked.contexts:
        contenders: dict[tuple[str, str], Step] = {}
        for dtype, language in languages.items():
            found = steps(language.model, torch.tensor([ids[:context]]))
            contenders |= {(name, dtype): call for name, call in found.items()}
        found = kv_llama.steps(ids[:context], asked.threads, asked.steps + 1)
        contenders |= {(name, kv_llama.WEIGHTS): call for name, call in found.items()}
        seconds[context] = in_turn(contenders, asked.steps)
    rows = rows_of(seconds, dict.fromkeys(asked.dtypes, "plain") | {kv_llama.WEIGHTS: "llama.cpp f16"})
    origin = provenance(shlex.join(["python", *sys.argv]), time.perf_counter() - start)
    columns = [Column("cache", "cache"), Column("dtype", "weights")]
    columns += [Column("tokens_per_second_short", f"tokens/s at {asked.contexts[0]:,}", ".2f")]
    columns += [Column("tokens_per_second", f"at {asked.contexts[1]:,}", ".2f"), Column("added_ms", "added ms", ".1f")]
    columns += [Column("times_plain", "times plain", ".2f"), Column("spread", "spread of steps", ".0%")]
    Report("Decoding with a long cache", "kv_generate", rows, columns, provenance=origin).print()
    shared = {"threads": asked.threads, "variant": native_kernel.variant(), "kind": "kv_generate", "provenance": origin}
    write_text(asked.results, "".join(json.dumps(row | shared) + "\n" for row in rows))


if __name__ == "__main__":
    main()
