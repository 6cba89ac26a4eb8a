"""The moe part of `thrifty demo`: three quarters of every MLP active, by methods that need no long training."""

import time
from collections.abc import Callable
from typing import Any

from thrifty import catalogue, llm
from thrifty.moe import report, result, text
from thrifty.moe.job import MoeJob
from thrifty.moe.run import Asked, texts_of
from thrifty.perplexity import windows_of
from thrifty.progress import Track
from thrifty.report import Report, provenance

ACTIVE = 0.75
ENTRIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("magnitude", {}),
    ("wanda_sp", {}),
    ("cluster", {"num_experts": 8}),
)
ASKED = Asked(active=ACTIVE, window=256, windows=4, calibration=8)


def run(command: str, track: Track, say: Callable[[str], None]) -> Report:
    """Make experts of SmolLM2 without training, compare them with static pruning, and return the report."""
    start = time.perf_counter()
    say("loading SmolLM2-135M-Instruct (the first time it is unpacked, which takes a little longer)")
    language = llm.load("smollm2")
    learnt, measured = texts_of(ASKED)
    windows = windows_of(language, measured[1], measured[0], ASKED.windows, ASKED.window)
    needed = 20 * ASKED.calibration * ASKED.window
    corpus = text.corpus(language, [(name, content[:needed]) for name, content in learnt], ASKED.window)
    job = MoeJob.of(language.model, corpus, ACTIVE, calibration=ASKED.calibration)
    say(f"making experts of {corpus.first(ASKED.calibration).numel():,} tokens, measuring on {measured[0]}")
    rows = []
    for name, settings in track(ENTRIES, "methods", len(ENTRIES)):
        method = catalogue.find("moe", name)(**settings)
        row = result.of(job, method, method.plan(job), windows, is_shuffled=name == "cluster")
        label = " ".join([name, *(f"of {value}" for value in settings.values())])
        about = {"label": label, "text": measured[0], "model": language.name, "window": ASKED.window}
        rows.append(about | row | {"windows": len(windows)})
    origin = provenance(command, time.perf_counter() - start)
    title = "thrifty demo: a language model as a mixture of experts"
    notes = [
        f"{ACTIVE:.0%} of each MLP is active on a token; attention is whole. Nothing is trained here and no weight is "
        "changed: magnitude and wanda_sp keep the same channels for all tokens, cluster gives each token the expert of "
        "its group. `thrifty moe smollm2 --active 0.5 -o FOLDER` trains routers and experts (ToMoE)."
    ]
    return report.report(title, rows, origin, notes)
