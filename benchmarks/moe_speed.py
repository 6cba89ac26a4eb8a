"""How fast experts run: dense against mixture of experts, in the same run, contenders taking turns, medians of rounds.

    python benchmarks/moe_speed.py --device cuda [--active 0.5] [--experts 8] [--out results/moe_speed_gpu.jsonl]
    python benchmarks/moe_speed.py --device cpu [--threads 2] [--rounds 7] [--out results/moe_speed_cpu.jsonl]

GPU: see benchmarks/moe_speed_gpu.py. CPU: SmolLM2-135M whole, float32: decode of one token at batch 1 after 64 tokens,
prefill of 512 tokens (logits of the last one).
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from moe_speed_gpu import MOST_COPIED, on_gpu
from torch import nn


def random_plan(model: nn.Module, active: float, experts: int) -> object:
    """A plan with experts by chance, the same share of channels in every layer."""
    from thrifty.moe.cost import Sizes
    from thrifty.moe.sites import found
    from thrifty.plan import Plan

    widths = Sizes.of(model).uniform_width(active)
    keep, evidence = {}, {}
    for site in found(model):
        scores = torch.rand(experts, site.channels)
        keep[site.name] = torch.zeros_like(scores).scatter_(1, scores.topk(widths[site.name]).indices, 1.0)
        evidence[f"{site.name}.router"] = torch.randn(experts, site.width)
    return Plan("random", keep, evidence)


def on_cpu(asked: argparse.Namespace) -> Iterator[dict]:
    from thrifty import llm
    from thrifty.moe import apply as outputs
    from thrifty.moe.stock_experts import IMPLEMENTATION, register_experts
    from thrifty.report import provenance

    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    dense = llm.load("smollm2").model
    plan = random_plan(dense, asked.active, asked.experts)
    models = {"dense": dense, "packed": outputs.build(plan, dense, "tomoe")}
    if asked.experts <= MOST_COPIED:
        register_experts()
        models["copies"] = outputs.build(plan, dense)
        models["copies"].set_experts_implementation(IMPLEMENTATION)
    tokens = torch.randint(0, dense.config.vocab_size, (1, 512))
    times = {}
    for round_ in range(asked.rounds + 1):
        for name, model in models.items():
            for kind, seconds in timed(model, tokens, asked.steps).items():
                if round_:
                    times.setdefault((name, kind), []).append(seconds)
        print(f"  round {round_} of {asked.rounds}", end="\r", flush=True)
    middle = {key: statistics.median(found) for key, found in times.items()}
    about = {"kind": "moe speed", "device": "cpu", "machine": provenance("", 0)["machine"]["cpu"], "model": "smollm2"}
    about |= {"active": asked.active, "experts": asked.experts, "threads": asked.threads, "dtype": "float32"}
    for (name, kind), seconds in middle.items():
        line = {"contender": name, "what": kind, "ms": seconds * 1e3, "fastest_ms": min(times[name, kind]) * 1e3}
        line["times_dense"] = middle["dense", kind] / seconds
        line["times_dense_fastest"] = min(times["dense", kind]) / min(times[name, kind])
        print(f"  {kind:15} {name:8} {line['ms']:9.2f} ms {line['times_dense']:5.2f}x (fastest rounds "
              f"{line['fastest_ms']:9.2f} ms {line['times_dense_fastest']:5.2f}x)")  # fmt: skip
        yield about | line


def timed(model: nn.Module, tokens: torch.Tensor, steps: int) -> dict:
    """Seconds of a prefill of 512 tokens, and of one step of decoding (the median of `steps`)."""
    begin = time.perf_counter()
    model(tokens, logits_to_keep=1)
    prefill = time.perf_counter() - begin
    cache = model(tokens[:, :64], use_cache=True, logits_to_keep=1).past_key_values
    found = []
    for step in range(steps):
        begin = time.perf_counter()
        model(tokens[:, 64 + step : 65 + step], past_key_values=cache)
        found.append(time.perf_counter() - begin)
    return {"prefill 512": prefill, "decode batch 1": statistics.median(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--active", type=float, default=0.5)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--prefill", type=int, nargs="*", default=[4096, 1024])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    about = {"command": " ".join(sys.argv), "torch": torch.__version__, "python": platform.python_version()}
    out = asked.out or Path(f"results/moe_speed_{'gpu' if asked.device == 'cuda' else 'cpu'}.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with torch.inference_mode(), out.open("w", encoding="utf-8") as file:
        for line in on_gpu(asked) if asked.device == "cuda" else on_cpu(asked):
            file.write(json.dumps(about | line) + "\n")
            file.flush()
    print(f"{out}, {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
