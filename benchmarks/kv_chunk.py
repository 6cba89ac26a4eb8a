"""Attention of a chunk of new tokens on a cache of codes, on a CPU: a later turn of a chat, or a prompt read in pieces.

    python benchmarks/kv_chunk.py [--past 3840] [--new 16 64 256] [--threads 1] [--out results/kv_chunk.jsonl]

SmolLM2's heads (9 of queries, 3 of keys, 64 channels). Contenders take turns; times are medians over the rounds. SDPA
has all keys and values as they are, and a causal mask; `in PyTorch` is the reference that runs without a compiler.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from thrifty.files import write_text
from thrifty.kv import native_kernel, presets
from thrifty.kv.blocks import encode
from thrifty.kv.codecs.hack import Hack
from thrifty.report import provenance

HEADS, SHARED, DIM = 3, 3, 64
CODECS = {name: presets.codec_of(name) for name in ("smallest", "balanced", "finest")}
CODECS |= {
    "hack 4 bits": Hack(k_bits=4, v_bits=4),
    "hack 4 bits in PyTorch": Hack(k_bits=4, v_bits=4, kernel="reference"),
}


def contenders(past: int, new: int) -> dict[str, Callable[[], object]]:
    """What is to be timed, by name."""
    k, v = torch.randn(2, 1, HEADS, past + new, DIM).bfloat16()
    q = torch.randn(1, HEADS * SHARED, new, DIM).bfloat16()
    mask = torch.ones(new, past + new, dtype=torch.bool).tril(past)
    found: dict[str, Callable[[], object]] = {}
    for kind in (torch.bfloat16, torch.float32):
        held = [x.to(kind) for x in (q, k, v)]
        found[f"sdpa {str(kind)[6:]}"] = lambda held=held: sdpa(*held, attn_mask=mask, enable_gqa=True)
    for name, codec in CODECS.items():
        blocks = encode(codec, k[:, :, :past], v[:, :, :past]).append(k[:, :, past:], v[:, :, past:], codec)
        found[name] = lambda codec=codec, blocks=blocks: codec.attend(q, blocks, DIM**-0.5)
    return found


def milliseconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians of all contenders, after a round that is not timed."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if number:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(found) for name, found in times.items()}


@torch.inference_mode()
def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--past", type=int, default=3840)
    parser.add_argument("--new", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("results/kv_chunk.jsonl"))
    asked = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(asked.threads)
    rows = []
    for new in asked.new:
        torch.manual_seed(0)
        for name, ms in milliseconds(contenders(asked.past, new), asked.rounds).items():
            rows.append({"contender": name, "past": asked.past, "new": new, "threads": asked.threads, "ms": ms})
            print(f"{new:5} new tokens  {name:24} {ms:10.2f} ms", flush=True)
    origin = provenance(shlex.join(sys.argv), time.perf_counter() - start)
    about = {"variant": native_kernel.variant(), "provenance": origin}
    write_text(asked.out, "".join(json.dumps(row | about) + "\n" for row in rows))


if __name__ == "__main__":
    main()
