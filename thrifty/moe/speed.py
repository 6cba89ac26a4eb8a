"""Tokens per second of models side by side: reading a prompt, and writing after it, at several batch sizes."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from thrifty.progress import Track, silent

Rates = dict[str, dict[str, dict[str, float]]]
"""By model, by phase (`prefill`, `decode`), by batch size."""


@torch.inference_mode()
def tokens_per_second(
    models: Mapping[str, Any],
    *,
    batches: Sequence[int] = (1, 16),
    prompt: int = 128,
    new: int = 8,
    rounds: int = 3,
    track: Track = silent,
) -> Rates:
    """The median over `rounds`, after one that does not count. Models take turns in every round: a busy machine slows
    all alike. Prompts are random tokens of length `prompt`; decoding writes `new` tokens through a cache, greedy."""
    seconds: dict[tuple[str, str, int], list[float]] = {}
    steps = [(size, turn) for size in batches for turn in range(rounds + 1)]
    for size, turn in track(steps, "speed", len(steps)):
        for name, model in models.items():
            for phase, spent in _once(model, size, prompt, new).items():
                if turn:
                    seconds.setdefault((name, phase, size), []).append(spent)
    rates: Rates = {name: {"prefill": {}, "decode": {}} for name in models}
    for (name, phase, size), spent in seconds.items():
        tokens = size * (prompt if phase == "prefill" else new)
        rates[name][phase][str(size)] = round(tokens / statistics.median(spent), 2)
    return rates


def _once(model: Any, size: int, prompt: int, new: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (size, prompt), generator=generator).to(model.device)
    marks = [_now(model.device)]
    read = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    token = read.logits[:, -1:].argmax(-1)
    marks.append(_now(model.device))
    for _ in range(new):
        read = model(input_ids=token, past_key_values=read.past_key_values, use_cache=True, logits_to_keep=1)
        token = read.logits[:, -1:].argmax(-1)
    marks.append(_now(model.device))
    return {"prefill": marks[1] - marks[0], "decode": marks[2] - marks[1]}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
