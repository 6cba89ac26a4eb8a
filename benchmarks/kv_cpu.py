"""Decode attention on a CPU: HACK's codes against PyTorch's scaled dot product attention, out of memory.

    python benchmarks/kv_cpu.py [--tokens 1024 16384] [--threads 1 2] [--rounds 9] [--out results/kv_cpu.jsonl]

Every contender walks over several copies of its cache, together larger than the last-level cache, and the contenders
take turns in each round, so that all meet the same noise; times are medians over the rounds. SDPA is the faster of
its two forms: `enable_gqa`, and the query heads of a key head packed as queries. `share` is the rate of reading
against that of `torch.sum` over 256 MiB, measured in the same rounds. Each line of the output is one contender.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from thrifty.kv import native_kernel, presets
from thrifty.kv.blocks import encode
from thrifty.kv.codecs.hack import Hack
from thrifty.report import provenance

SHAPES = {"SmolLM2-135M": (3, 3, 64), "Llama-3-8B": (8, 4, 128)}  # key heads, query heads of each, channels
CODECS = {f"hack {bits} bits": Hack(k_bits=bits, v_bits=bits, summation_elimination=False) for bits in (2, 3, 4, 8)}
CODECS |= {name: presets.codec_of(name) for name in ("smallest", "finest")}
ROTATED_BYTES = 100 << 20
ROUND_SECONDS = 0.04


def copies(cache_bytes: int) -> int:
    return max(2, ROTATED_BYTES // cache_bytes + 1)


def in_turn(calls: list[Callable[[], object]]) -> Callable[[], object]:
    state = [0]

    def call() -> object:
        state[0] = (state[0] + 1) % len(calls)
        return calls[state[0]]()

    return call


def hack(codec: Hack, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[Callable[[], object], int]:
    blocks = encode(codec, k, v)
    held = [blocks, *(blocks.each(torch.clone) for _ in range(copies(blocks.nbytes) - 1))]
    return in_turn([lambda one=one: codec.attend(q, one, q.shape[-1] ** -0.5) for one in held]), blocks.nbytes


def exact(form: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[Callable[[], object], int]:
    held = [(k.clone(), v.clone()) for _ in range(copies(k.nbytes + v.nbytes))]
    if form == "packed":
        q = q.view(1, k.shape[1], -1, k.shape[3])
        return in_turn([lambda k=k, v=v: sdpa(q, k, v) for k, v in held]), k.nbytes + v.nbytes
    return in_turn([lambda k=k, v=v: sdpa(q, k, v, enable_gqa=True) for k, v in held]), k.nbytes + v.nbytes


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    times = max(1, int(ROUND_SECONDS / (time.perf_counter() - begin)))
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


def measure(shape: tuple[int, int, int], tokens: int, rounds: int) -> list[dict]:
    heads, shared, dim = shape
    k, v = torch.randn(2, 1, heads, tokens, dim).bfloat16()
    q = torch.randn(1, heads * shared, 1, dim).bfloat16()
    memory = torch.ones(64 << 20)
    contenders = {"read floor": (memory.sum, memory.nbytes)}
    contenders |= {name: hack(codec, q, k, v) for name, codec in CODECS.items()}
    for kind in (torch.bfloat16, torch.float32):
        tensors = [x.to(kind) for x in (q, k, v)]
        for form in ("gqa", "packed"):
            contenders[f"sdpa {str(kind)[6:]} {form}"] = exact(form, *tensors)
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (call, _) in contenders.items():
            times[name].append(seconds(call))
    middle = {name: statistics.median(found) for name, found in times.items()}
    floor = memory.nbytes / middle["read floor"]
    best = {kind: min(middle[f"sdpa {kind} {form}"] for form in ("gqa", "packed")) for kind in ("bfloat16", "float32")}
    return [
        {
            "contender": name,
            "ms": middle[name] * 1e3,
            "fastest_ms": min(times[name]) * 1e3,
            "bytes": size,
            "gb_per_s": size / middle[name] / 1e9,
            "share": size / middle[name] / floor,
            "times_sdpa_bfloat16": best["bfloat16"] / middle[name],
            "times_sdpa_float32": best["float32"] / middle[name],
        }
        for name, (_, size) in contenders.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384, 32768])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("results/kv_cpu.jsonl"))
    asked = parser.parse_args()
    about = {
        "command": " ".join(sys.argv),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpu": provenance("", 0)["machine"]["cpu"],
        "variant": native_kernel.variant(),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with asked.out.open("w", encoding="utf-8") as out, torch.inference_mode():
        for threads in asked.threads:
            torch.set_num_threads(threads)
            for model, shape in SHAPES.items():
                for tokens in asked.tokens:
                    torch.manual_seed(0)
                    print(f"\n{model}, {tokens} tokens, {threads} thread(s), {about['variant']}")
                    for line in measure(shape, tokens, asked.rounds):
                        out.write(
                            json.dumps(about | {"model": model, "tokens": tokens, "threads": threads} | line) + "\n"
                        )
                        print(
                            f"  {line['contender']:22} {line['ms']:9.3f} ms  {line['bytes'] / 1e6:8.2f} MB "
                            f"{line['gb_per_s']:6.1f} GB/s  {line['share']:4.0%} of floor "
                            f" {line['times_sdpa_bfloat16']:6.2f}x sdpa bf16 {line['times_sdpa_float32']:6.2f}x fp32"
                        )


if __name__ == "__main__":
    main()
