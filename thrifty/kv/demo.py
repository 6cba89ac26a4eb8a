"""The kv part of `thrifty demo`: a real model with a compressed cache, in a few minutes."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from thrifty import catalogue, data, llm
from thrifty.kv import compare, measure
from thrifty.kv.cache import CompressedCache
from thrifty.kv.measure import Protocol
from thrifty.progress import Track
from thrifty.report import Exchange, Report, provenance

QUESTION = "Explain in three sentences why the sky is blue."
ENTRIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("hack", {"k_bits": 4, "v_bits": 4}),
    ("kivi", {"k_bits": 4, "v_bits": 4}),
    ("hack", {"k_bits": 4, "v_bits": 2}),
    ("hack", {"k_bits": 2, "v_bits": 2}),
    ("kivi", {"k_bits": 2, "v_bits": 2}),
)
PROTOCOL = Protocol(
    windows=2,
    window=1024,
    passkey_tokens=(768,),
    depths=(0.1, 0.5, 0.9),
    contexts=(512, 1024, 2048, 4096, 8192),
    speed_tokens=12,
)


def run(command: str, track: Track, say: Callable[[str], None]) -> Report:
    """Chat through two caches, compare five codecs with the plain one, and return the report."""
    start = time.perf_counter()
    say("loading SmolLM2-135M-Instruct (the first time it is unpacked, which takes a little longer)")
    language = llm.load("smollm2")
    uniform = catalogue.find("kv", "uniform")()
    entries = [
        compare.entry(language, name, catalogue.find("kv", name, "codecs")(**chosen), uniform)
        for name, chosen in ENTRIES
    ]
    exchange = _chat(language, entries[0], say)
    text_name, text = data.default_text()
    say(f"comparing {len(entries)} codecs with the plain cache on {text_name}")
    windows = measure.windows_of(language, text, text_name, PROTOCOL)
    results = compare.rows(language, entries, windows, text_name, PROTOCOL, track)
    seconds = time.perf_counter() - start
    report = compare.report(
        "thrifty demo: a language model with a compressed cache", "kv", results, provenance(command, seconds)
    )
    return replace(report, exchanges=[exchange], notes=[*report.notes, _honest(results)])


def _chat(language: llm.LanguageModel, one: compare.Entry, say: Callable[[str], None]) -> Exchange:
    """Ask one question through a plain and a compressed cache, greedy."""
    messages = [{"role": "user", "content": QUESTION}]
    inputs = language.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(language.model.device)
    prompt = inputs["input_ids"].shape[1]
    answers = {}
    say(f"\nQuestion: {QUESTION}")
    plain = compare.entry(
        language, "plain", catalogue.find("kv", "plain", "codecs")(dtype="bfloat16"), catalogue.find("kv", "uniform")()
    )
    for chosen in (plain, one):
        cache = chosen.make()
        assert isinstance(cache, CompressedCache)
        output = language.model.generate(**inputs, past_key_values=cache, max_new_tokens=120, do_sample=False)
        answer = language.tokenizer.decode(output[0, prompt:], skip_special_tokens=True).strip()
        name = f"{chosen.label} cache, {cache.nbytes / 2**20:.1f} MiB for {output.shape[1] - 1} tokens"
        answers[name] = answer
        say(f"\n{name}:\n{answer}")
    say("")
    return Exchange(QUESTION, answers)


def _honest(results: list[dict[str, Any]]) -> str:
    two = [row for row in results if row["label"].endswith("2/2")]
    told = "; ".join(f"{row['label']}: perplexity x {row['ppl_ratio']:.2f}" for row in two)
    return f"Two bits cost a model this small a lot ({told}). Give keys more bits than values: hack 4/2."
