"""Prefill on codes: every variant beside SDPA. From the repository root: PYTHONPATH=. python3 kp_sweep.py [--seconds 75]

First each variant alone in a process of its own (compiles, and gives the error at 4k tokens against float64), all at
once; then those that lived take turns in one process at 32k tokens.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

VARIANTS = [
    {"apart": True, "stages": 4},
    {"apart": True, "stages": 4, "ahead": True},
    {"apart": True, "stages": 5, "ahead": True},
    {"tma": False},
    {"tma": True},
    {"tma": False, "stages": 3},
    {"tma": True, "stages": 3},
    {"tma": False, "wide": 2},
    {"tma": True, "wide": 2},
    {"tma": False, "lazy": True},
    {"tma": True, "wide": 2, "lazy": True},
    {"tma": False, "wide": 2, "lazy": True},
    {"tma": False, "turn": False},
    {"tma": True, "stack": 1, "warps": 4},
    {"tma": False, "stack": 1, "warps": 4},
    {"tma": True, "stack": 1, "warps": 4, "lazy": True},
]


def prepared(tokens, bits, heads, shared=4, dim=128, seed=0):
    from thrifty.kv.blocks import Blocks, encode
    from thrifty.kv.codecs.hack import Hack

    torch.manual_seed(seed)
    k, v = (torch.randn(1, heads, tokens, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(1, heads * shared, tokens, dim, device="cuda", dtype=torch.bfloat16)
    codec = Hack(k_bits=bits, v_bits=bits, summation_elimination=False)
    blocks, sinks = encode(codec, k, v), codec.num_sinks
    sides = (replace(side, open=x[:, :, sinks:].contiguous()) for side, x in ((blocks.k, k), (blocks.v, v)))
    return codec, q, k, v, Blocks(*sides), blocks


def run(variant, q, seen, tokens, bits):
    from thrifty.kv.kernels import prefill

    return prefill.attend(q, seen, tokens, bits, bits, 64, 128**-0.5, prefill.Tuning(**variant))


def error(variant, bits, tokens=4096):
    """Against float64, head by head."""
    codec, q, k, v, seen, blocks = prepared(tokens, bits, 2, seed=3)
    found = run(variant, q, seen, tokens, bits).double()
    again = run(variant, q, seen, tokens, bits).double()
    position = torch.arange(tokens, device="cuda")
    unit = torch.div(position - codec.num_sinks, 64, rounding_mode="floor")
    exact = (unit[:, None] == unit[None]) | (position[None] < codec.num_sinks)
    hidden = position[None] > position[:, None]
    whole = [torch.cat([x[:, :, :4].double(), r(s.closed).double()], 2) for x, s, r in
             ((k, blocks.k, codec.restore_k), (v, blocks.v, codec.restore_v))]
    whole = [torch.cat([x, y[:, :, x.shape[2]:].double()], 2) for x, y in zip(whole, (k, v))]
    wanted = torch.empty_like(found)
    for head in range(q.shape[1]):
        one, at = q[0, head].double(), head // 4
        scores = torch.where(exact, one @ k[0, at].double().T, one @ whole[0][0, at].T) * 128**-0.5
        p = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        wanted[0, head] = (p * exact) @ v[0, at].double() + (p * ~exact) @ whole[1][0, at]
    return float((found - wanted).norm() / wanted.norm()), float((found - again).abs().max())


def alone(index):
    begin = time.time()
    try:
        done = subprocess.run([sys.executable, __file__, "--alone", str(index)], capture_output=True, text=True, timeout=45)
    except subprocess.TimeoutExpired:
        return {"failed": "45 s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1][:160]}
    return json.loads(lines[-1]) | {"seconds": round(time.time() - begin, 1)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--alone", type=int)
    parser.add_argument("--tokens", type=int, default=32768)
    asked = parser.parse_args()
    if asked.alone is not None:
        with torch.inference_mode():
            e2, moved = error(VARIANTS[asked.alone], 2)
            e4, _ = error(VARIANTS[asked.alone], 4)
        print(json.dumps({"error2": e2, "error4": e4, "moved": moved}))
        return
    begin = time.time()
    with ThreadPoolExecutor(len(VARIANTS)) as pool:
        lone = list(pool.map(alone, range(len(VARIANTS))))
    for variant, found in zip(VARIANTS, lone):
        print(variant, found, flush=True)
    print(f"compiled in {time.time() - begin:.0f} s, {torch.cuda.get_device_name()}", flush=True)
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    tokens = asked.tokens
    with torch.inference_mode():
        contenders = {}
        _, q, k, v, seen, _ = prepared(tokens, 2, 8)
        seen4 = prepared(tokens, 4, 8)[4]

        def exact(backend):
            with sdpa_kernel(backend):
                return sdpa(q, k, v, is_causal=True, enable_gqa=True)

        contenders["sdpa flash"] = lambda: exact(SDPBackend.FLASH_ATTENTION)
        contenders["sdpa cudnn"] = lambda: exact(SDPBackend.CUDNN_ATTENTION)
        for variant, found in zip(VARIANTS, lone):
            if "failed" not in found:
                for bits, held in ((2, seen), (4, seen4)):
                    contenders[f"{bits} bits {variant}"] = lambda x=variant, b=bits, h=held: run(x, q, h, tokens, b)
        times = {name: [] for name in contenders}
        for round_ in range(5):
            for name, call in list(contenders.items()):
                try:
                    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    start.record()
                    call()
                    end.record()
                    end.synchronize()
                    if round_:
                        times[name].append(start.elapsed_time(end))
                except Exception as failure:  # noqa: BLE001
                    print(name, "failed:", str(failure).splitlines()[0][:120], flush=True)
                    del contenders[name]
    for name, found in sorted(times.items(), key=lambda pair: statistics.median(pair[1] or [1e9])):
        if found:
            middle = statistics.median(found)
            print(f"{name:70} {middle:7.2f} ms {2 * 32 * tokens**2 * 128 / middle / 1e9:6.0f} TFLOP/s")
    print(f"{time.time() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
