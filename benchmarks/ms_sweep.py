"""One sweep of MLP kernels on an H100: PYTHONPATH=$PWD python3 benchmarks/ms_sweep.py [--seconds 75]; in the repository's root.

Workers compile all variants first, side by side, into Triton's cache (their errors are ignored); then each variant is
timed against dense, taking turns, as a CUDA graph over four layers, with its error against float32. One line a variant.
"""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

BEGIN = time.time()
WORKERS = 12
import torch

sys.path.insert(0, os.path.join(os.getcwd(), "benchmarks"))
import moe_speed_gpu as bench

W = bench.WIDTH


def variants():
    """(tokens, name, function of layer and x)."""
    from thrifty.moe.kernels import experts, few, single

    found = []

    def whole(run):
        def call(layer, x):
            both = layer.copies
            return run(x, few.route(x, layer.packed.router), both.gate_up, both.down, "silu")

        return call

    for changes in ({}, {"tall_first": False}, {"hidden_tall_first": True}):
        t = experts.Tuning(**changes)
        found.append((4096, f"experts {changes}", whole(lambda *a, t=t: experts.run_experts(*a, t))))
    found.append((1024, "experts {}", whole(experts.run_experts)))
    wide = {"rows": 1, "warps": 4, "programs": 2}
    for changes in (
        {}, {"join_columns": 16}, {"join_columns": 32, "overlap": False}, {"join_columns": 16, "overlap": False},
        {"join_columns": 32, **wide}, {"join_columns": 16, **wide}, {"join_columns": 32, "overlap": False, **wide},
        {"join_columns": 16, "overlap": False, **wide}, {"join_columns": 32, "overlap": False, "warps": 16},
        {"join_columns": 32, "warps": 16},
    ):  # fmt: skip
        t = single.Tuning(**changes)
        found.append(
            (1, f"single {changes}", lambda layer, x, t=t: single.run_single(layer.packed, x, None, "silu", t)[0])
        )
    for tokens in (2, 4, 128):
        found.append((tokens, "product", lambda layer, x: layer.packed(x)))
    return found


def filled(layer, multiple):
    """The packed MLP with channels of no expert up to a multiple."""
    key = f"filled{multiple}"
    if not hasattr(layer, key):
        mlp = layer.packed
        more = -len(mlp.up) % multiple
        pad = lambda weight: torch.nn.functional.pad(weight.data, (0, 0, 0, more))
        setattr(layer, key, SimpleNamespace(gate=pad(mlp.gate), up=pad(mlp.up), down=pad(mlp.down), gate_bias=None,
                up_bias=None, out_bias=None, members=torch.nn.functional.pad(mlp.members, (0, more))))  # fmt: skip
    return getattr(layer, key)


def warm(number):
    """Compile a share of the variants."""
    layer = bench.Layer(0.5, 8, torch.Generator().manual_seed(0))
    for tokens, name, call in variants()[number::WORKERS]:
        try:
            call(layer, torch.randn(tokens, W, device="cuda", dtype=torch.bfloat16))
            torch.cuda.synchronize()
        except Exception:
            pass


def dense(layer, x):
    return torch.nn.functional.linear(bench_silu(torch.nn.functional.linear(x, layer.gate_up)), layer.down)


def bench_silu(pair):
    from thrifty.moe.kernels.act import gated

    return gated(*pair.chunk(2, -1), "silu")


def main():
    limit = float(sys.argv[sys.argv.index("--seconds") + 1]) if "--seconds" in sys.argv else 75
    jobs = [
        subprocess.Popen(
            [sys.executable, __file__, "--warm", str(n)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for n in range(WORKERS)
    ]
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layers = [bench.Layer(0.5, 8, generator) for _ in range(bench.LAYERS)]
    print(
        f"{torch.cuda.get_device_name()}, stored {[one.stored for one in layers]}, {time.time() - BEGIN:.0f} s",
        flush=True,
    )
    until = BEGIN + 0.45 * limit
    for job in jobs:
        try:
            job.wait(max(0.1, until - time.time()))
        except subprocess.TimeoutExpired:
            job.kill()
    print(f"compiled, {time.time() - BEGIN:.0f} s", flush=True)
    best = {}
    todo = variants()
    order = [1, 4096, 128, 1024, 2, 4]
    for tokens in order:
        if time.time() - BEGIN > limit - 8:
            print(f"{tokens} tokens: no time left", flush=True)
            continue
        x = torch.randn(tokens, W, device="cuda", dtype=torch.bfloat16)
        rows = x[-min(tokens, 384) :].contiguous()
        wanted = layers[0].masked(rows)
        norm = torch.ones(W, device="cuda", dtype=torch.bfloat16)
        form = (tokens, 1) if tokens <= 128 else (1, tokens)
        attention = [bench.Attention(*form) for _ in layers]
        calls, errors = {}, {}
        tried = sorted(
            (one for one in todo if one[0] == tokens), key=lambda one: ("experts" in one[1]) + 2 * ("persist" in one[1])
        )
        here = [("dense fused", dense), *((name, call) for _, name, call in tried)]
        for name, call in here:
            if time.time() - BEGIN > limit - 6:
                print(f"{tokens} {name}: no time left")
                continue
            try:
                out = call(layers[0], x)
                errors[name] = bench.error_of(out[-len(rows) :], wanted) if name != "dense fused" else 0.0

                def mlps(x, call=call):
                    for layer in layers:
                        call(layer, x)

                def blocks(x, call=call):
                    x = x.view(*form, W)
                    for layer, attend in zip(layers, attention):
                        x = x + attend(x)
                        x = x + call(layer, torch.nn.functional.rms_norm(x, (W,), norm).view(-1, W)).view(x.shape)

                if "streams" in name:
                    calls[name, "mlp"], calls[name, "blocks"] = (
                        (lambda mlps=mlps: mlps(x)),
                        (lambda blocks=blocks: blocks(x)),
                    )
                else:
                    calls[name, "mlp"], calls[name, "blocks"] = bench.captured(mlps, x), bench.captured(blocks, x)
            except Exception as error:
                print(f"{tokens} {name}: LEFT OUT, {type(error).__name__}: {str(error)[:200]}", flush=True)
        times = bench.milliseconds(calls, 5 if tokens > 512 else 7, 2 if tokens > 512 else 20)
        us = {key: value * 1e3 / bench.LAYERS for key, value in times.items()}
        for name, _ in here:
            if (name, "mlp") in us:
                mlp, block = us[name, "mlp"], us[name, "blocks"]
                print(
                    f"{tokens:5} {name:50} mlp {mlp:8.1f} us {us['dense fused', 'mlp'] / mlp:5.2f}x  blocks {block:8.1f} us "
                    f"{us['dense fused', 'blocks'] / block:5.2f}x  error {errors[name]:.1e}",
                    flush=True,
                )
        good = {
            name: us[name, "blocks"]
            for name, _ in here
            if (name, "mlp") in us and name != "dense fused" and errors[name] < 2e-2
        }
        if good:
            best[tokens] = min(good, key=good.get)
        del calls
        torch.cuda.empty_cache()
        if tokens == 4096:
            parts(layers, x)
    print("best:", best, f"{time.time() - BEGIN:.0f} s")


def parts(layers, x):
    """What the two products and the steps around them take, each alone."""
    from thrifty.moe.kernels import few, order

    places, ends = order.order_of(few.route(x, layers[0].packed.router), 8)
    print("tokens of each expert", ends.diff(prepend=ends.new_zeros(1)).tolist())
    calls = {
        "route": lambda x: [few.route(x, one.packed.router) for one in layers],
        "order": lambda x: [order.order_of(few_choice, 8) for one in layers],
        "gather": lambda x: [order.gathered(x, places) for _ in layers],
    }
    few_choice = few.route(x, layers[0].packed.router)
    for name, ms in bench.milliseconds({name: bench.captured(call, x) for name, call in calls.items()}, 5, 3).items():
        print(f"  {name:10} {ms * 1e3 / bench.LAYERS:8.1f} us", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        warm(int(sys.argv[2])) if "--warm" in sys.argv else main()
