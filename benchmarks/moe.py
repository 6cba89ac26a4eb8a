"""Quality of mixtures of experts made of one dense model: ToMoE, its ablations and its neighbours, on the same windows.

    python benchmarks/moe.py --runs dense oracle:0.5 wanda_sp:0.5 tomoe:0.5:layer:0:num_experts=32,seconds=60 ...
        [--model smollm2] [--device cuda] [--minutes 8] [--a-device 1] [--on test|held-out] [--out results/moe.jsonl]

A run is METHOD:ACTIVE[:WIDTHS[:SEED[:SETTINGS]]]; WIDTHS is layer or equal; SETTINGS are the method's, and `steps`,
`seconds` (of training; the steps that fit are found by trying), `batch`, `calibration`, `scope`. Runs are shared out
over the GPUs, `--a-device` processes on each; a line is appended for each as it ends; those for which no time is left
are named. Training text: WikiText-2's validation part and books, a tenth of each held out; `--on held-out` measures on
that, for choosing settings; `--on test` (WikiText-2's test part) is for the numbers that are reported, with the ratio
on what was held out beside them.
"""

import argparse
import dataclasses
import json
import multiprocessing
import queue
import sys
import time
from pathlib import Path
from typing import Any

FIRST_STEPS = 24
JOB = {"steps": int, "batch": int, "calibration": int, "seconds": float, "scope": str}


def parsed(text: str) -> dict[str, Any]:
    """`tomoe:0.5:layer:0:num_experts=32,seconds=60` as fields."""
    name, active, widths, seed, pairs = [*text.split(":", 4), *[""] * 5][:5]
    settings = dict(pair.split("=", 1) for pair in pairs.split(",") if pair)
    job = {key: kind(settings.pop(key)) for key, kind in JOB.items() if key in settings}
    return {
        "run": text,
        "method": name,
        "active": float(active or 1),
        "widths": widths or "layer",
        "seed": int(seed or 0),
        "settings": settings,
        "job": job,
    }


class Bench:
    """A model, its texts and its test windows: loaded once for many runs."""

    def __init__(self, asked: argparse.Namespace, device: str) -> None:
        import torch

        from thrifty import llm
        from thrifty.moe import text
        from thrifty.perplexity import windows_of

        self.asked, self.device = asked, device
        dtype = asked.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
        self.language = llm.load(asked.model, dtype, device)
        self.learnt, measured = text.usual()
        text.check_apart(self.learnt, measured)
        self.windows = windows_of(self.language, measured[1], measured[0], asked.windows, asked.window)
        self.measured = measured[0]
        self.read: Any = None
        self.batch = 8 if device.startswith("cuda") else 1
        self.machine = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"

    def corpus(self, seed: int) -> Any:
        from thrifty.moe import text

        if self.read is None:  # tokenised once; the seed is in the order alone
            self.read = text.corpus(self.language, self.learnt, self.asked.window, num_held_out=self.asked.windows)
        return dataclasses.replace(self.read, seed=seed)

    def run(self, one: dict[str, Any]) -> dict[str, Any]:
        from thrifty.moe import evaluate
        from thrifty.moe.sites import found

        start = time.perf_counter()
        model, corpus = self.language.model, self.corpus(one["seed"])
        windows = self.windows if self.asked.on == "test" else corpus.held_out
        facts: dict[str, Any] = {"on": self.measured if self.asked.on == "test" else "held-out"}
        if one["method"] in ("dense", "oracle"):
            contenders = {"plan": evaluate.oracle(model, one["active"])}
            if one["method"] == "dense":
                contenders = {"plan": evaluate.as_it_is(model)}
        else:
            plan, about = self.plan(one, corpus)
            facts |= about | {"seconds_plan": time.perf_counter() - start}
            loads = evaluate.load(model, plan, corpus.held_out[:8], self.batch)
            health = evaluate.health(found(model), plan, loads)
            facts |= {"widths_found" if key == "widths" else key: value for key, value in health.items()}
            contenders = {"plan": evaluate.with_plan(model, plan)}
            if any(name.endswith(".router") for name in plan.evidence):
                contenders["shuffled"] = evaluate.with_plan(model, evaluate.shuffled(plan))
            if self.asked.plans:
                plan.save(self.asked.plans / f"{one['run'].replace(':', '_').replace('=', '')}.safetensors")
        measured = evaluate.quality(model, windows, contenders, batch=self.batch)
        if self.asked.on == "test":
            held = evaluate.quality(model, corpus.held_out, {"plan": contenders["plan"]}, batch=self.batch)
            facts["ppl_ratio_held_out"] = held["plan"]["ppl_ratio"]
        facts |= measured["plan"]
        facts["windows"] = len(windows)
        if "shuffled" in measured:
            facts["ppl_ratio_shuffled"] = measured["shuffled"]["ppl_ratio"]
        return facts | {"seconds": time.perf_counter() - start}

    def plan(self, one: dict[str, Any], corpus: Any):
        from thrifty import catalogue, settings
        from thrifty.moe.cost import SCOPES, widths_of
        from thrifty.moe.job import MoeJob

        kind = catalogue.find("moe", one["method"])
        method = kind(**settings.read(kind, one["settings"]))
        given = {"batch": self.asked.batch, "steps": self.asked.steps, "calibration": 16} | one["job"]
        seconds = given.pop("seconds", None)
        scope = given.pop("scope", "mlp")

        def job(**changes: Any):
            every = given | changes | {"seed": one["seed"]}
            return MoeJob.of(self.language.model, corpus, one["active"], scope, one["widths"], **every)

        learns = "anneal" in {field.name for field in dataclasses.fields(kind)}
        if seconds is not None and learns:
            given["steps"] = self.steps_within(method, job, seconds)
        asked = job()
        plan = method.plan(asked)
        widths = widths_of(plan.keep)
        about = {f"active_ratio_{scope}": float(asked.sizes.active_ratio(widths, scope)) for scope in SCOPES}
        if learns:
            history = plan.evidence["history"]
            about |= {"steps": asked.steps, "batch": asked.batch, "tokens": asked.steps * asked.batch * corpus.window}
            marks = sorted(
                {int(share * (len(history) - 1)) for share in (0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1)}
            )
            about["history"] = [[round(value, 4) for value in history[mark].tolist()] for mark in marks]
        return plan, about | {"plan": plan.method}

    def steps_within(self, method: Any, job: Any, seconds: float) -> int:
        """How many steps fit into `seconds`, by the time of some that come after the first, which are slow."""
        import torch

        times: list[float] = []

        def timed(items: Any, what: str, total: int):
            for item in items:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times.append(time.perf_counter())
                yield item

        quick = {"settle": 0.0, "start": "published"}
        changes = {name: value for name, value in quick.items() if hasattr(method, name)}
        dataclasses.replace(method, **changes).plan(job(steps=FIRST_STEPS, track=timed))
        half = FIRST_STEPS // 2
        return max(10, round(seconds * half / (times[-1] - times[-1 - half])))


def worker(asked: argparse.Namespace, device: str, runs: Any, results: Any, deadline: float) -> None:
    try:
        bench = Bench(asked, device)
        results.put(("ready", f"{device} {bench.machine}"))
        while True:
            one = runs.get_nowait()
            needed = one["job"].get("seconds", 0.0)
            if time.time() + needed > deadline:
                results.put(("late", one["run"]))
                continue
            try:
                row = bench.run(one)
            except Exception as error:
                results.put(("failed", f"{one['run']}: {type(error).__name__}: {error}"))
                continue
            results.put(("row", {key: one[key] for key in ("run", "method", "active", "widths", "seed")} | row))
    except queue.Empty:
        pass
    finally:
        results.put(("done", device))


def devices(asked: argparse.Namespace) -> list[str]:
    import torch

    if asked.device == "cpu" or not torch.cuda.is_available():
        return ["cpu"]
    return [f"cuda:{number}" for number in range(torch.cuda.device_count()) for _ in range(asked.a_device)]


def shown(row: dict[str, Any]) -> str:
    parts = [f"{row['run']:66} ppl {row['ppl']:9.3f} ratio {row['ppl_ratio']:8.4f} kl {row['kl']:.3f}"]
    if "union" in row:
        shuffled = row.get("ppl_ratio_shuffled")
        parts += [f"active {row['active_ratio_mlp']:.3f} union {row['union']:.2f} common {row['intersection']:.2f}"]
        parts += [f"load {row['max_load']:.2f} dead {row['dead_experts']:.2f}"]
        parts += [f"shuffled {shuffled:.2f}"] if shuffled is not None else []
    parts += [f"held out {row['ppl_ratio_held_out']:.4f}"] if "ppl_ratio_held_out" in row else []
    parts += [f"{row['steps']} steps of {row['batch']}"] if "steps" in row else []
    return " ".join([*parts, f"{row['seconds']:.0f} s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype")
    parser.add_argument("--a-device", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--on", choices=["test", "held-out"], default="test")
    parser.add_argument("--plans", type=Path, help="write every plan into this folder")
    parser.add_argument("--out", type=Path, default=Path("results/moe.jsonl"))
    asked = parser.parse_args()
    from thrifty.report import provenance

    start = time.time()
    context = multiprocessing.get_context("spawn")
    runs, results = context.Queue(), context.Queue()
    for text in asked.runs:
        runs.put(parsed(text))
    places = devices(asked)
    arguments = [(asked, place, runs, results, start + 60 * asked.minutes) for place in places]
    workers = [context.Process(target=worker, args=one) for one in arguments]
    for one in workers:
        one.start()
    origin = provenance(f"python {' '.join(sys.argv)}", 0)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    left = len(workers)
    with asked.out.open("a", encoding="utf-8") as out:
        while left:
            try:
                kind, what = results.get(timeout=5)
            except queue.Empty:
                if not any(one.is_alive() for one in workers):
                    break
                continue
            left -= kind == "done"
            if kind == "row":
                about = {"kind": "moe", "model": asked.model, "window": asked.window} | what
                about["provenance"] = origin | {"seconds": round(what["seconds"], 3)}
                out.write(json.dumps(about) + "\n")
                out.flush()
                print(f"{time.time() - start:5.0f} s  {shown(what)}", flush=True)
            elif kind != "done":
                print(f"{time.time() - start:5.0f} s  {kind}: {what}", flush=True)
    for one in workers:
        one.join()


if __name__ == "__main__":
    main()
