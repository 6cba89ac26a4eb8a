"""Decoding speed of SmolLM2-135M with each cache at a long context: tokens per second, next to peers in the same run.

    .venv/bin/python benchmarks/kv_generate.py [--context 8000] [--steps 12] [--results results/kv_generate.jsonl]

Peers: the plain cache in float32 and bfloat16, and transformers' `QuantizedCache` where its backends are installed
(`pip install optimum-quanto hqq`); one that is not is named in the output. All caches hold the same keys and values,
those of a real prompt; then they take turns step by step, so a busy machine slows all alike. The time is that of the
whole model, weights included.
"""

import argparse
import dataclasses
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Cache, DynamicCache, QuantizedCache

from thrifty import data, llm
from thrifty.files import write_text
from thrifty.kv.cache import CompressedCache, CompressedLayer
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.kivi import Kivi
from thrifty.report import Column, Report, provenance


def caches(model: Any) -> dict[str, Callable[[], Cache]]:
    """Makers of the caches that can be had here."""
    four, two = Hack(k_bits=4, v_bits=4), Hack()
    makers: dict[str, Callable[[], Cache]] = {
        "plain": lambda: DynamicCache(config=model.config),
        "hack 4/4": lambda: CompressedCache.of(model, four),
        "hack 2/2": lambda: CompressedCache.of(model, two),
        "hack 4/4 in PyTorch": lambda: CompressedCache.of(model, dataclasses.replace(four, kernel="reference")),
        "kivi 4/4": lambda: CompressedCache.of(model, Kivi(k_bits=4, v_bits=4)),
    }
    for backend in ("quanto", "hqq"):
        try:
            QuantizedCache(backend, model.config, nbits=4)
        except (ImportError, ValueError) as error:
            print(f"QuantizedCache {backend} is not here: {error}", file=sys.stderr)
            continue
        axis = 0 if backend == "quanto" else 1
        makers[f"QuantizedCache {backend} 4 bits"] = lambda b=backend, a=axis: QuantizedCache(
            b, model.config, nbits=4, axis_key=a, axis_value=a
        )
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
def measure(model: Any, prompt: torch.Tensor, steps: int, threads: int) -> dict[str, list[float]]:
    """Seconds of each step by cache. The prompt is read once; only the steps are timed, after one that is not."""
    torch.set_num_threads(threads)
    read = DynamicCache(config=model.config)
    for piece in prompt.split(1024, dim=1):
        model(piece, past_key_values=read, use_cache=True, logits_to_keep=1)
    live = {}
    for name, make in caches(model).items():
        live[name] = filled(make(), read)
        print(f"{name} holds the prompt", file=sys.stderr, flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in live}
    for step in range(steps + 1):
        for name, cache in live.items():
            begin = time.perf_counter()
            model(prompt[:, -1:], past_key_values=cache, use_cache=True).logits.argmax(-1).tolist()
            if step:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    """Measure in float32 and bfloat16, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--context", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--results", type=Path, default=Path("results/kv_generate.jsonl"))
    asked = parser.parse_args()
    start, rows = time.perf_counter(), []
    text = data.default_text()[1]
    for dtype in asked.dtypes:
        language = llm.load("smollm2", dtype)
        prompt = torch.tensor([language.encode(text[: asked.context * 10])[: asked.context]])
        seconds = measure(language.model, prompt, asked.steps, asked.threads)
        plain = statistics.median(seconds["plain"])
        for name, steps in seconds.items():
            middle = statistics.median(steps)
            spread = (max(steps) - min(steps)) / middle
            row = {"cache": name, "dtype": dtype, "context": prompt.shape[1], "threads": asked.threads}
            rows.append(row | {"tokens_per_second": 1 / middle, "times_plain": plain / middle, "spread": spread})
    origin = provenance(shlex.join(["python", *sys.argv]), time.perf_counter() - start)
    columns = [Column("cache", "cache"), Column("dtype", "model in"), Column("context", "context", ",d")]
    columns += [Column("tokens_per_second", "tokens/s", ".2f"), Column("times_plain", "times plain", ".2f")]
    columns += [Column("spread", "spread of steps", ".0%")]
    Report("Decoding with a long cache", "kv_generate", rows, columns, provenance=origin).print()
    lines = [json.dumps({**row, "kind": "kv_generate", "provenance": origin}) for row in rows]
    write_text(asked.results, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
