"""Attention on a GPU: HACK's codes in Triton against scaled dot product attention and a dequantising peer.

    python benchmarks/kv_gpu.py [--bits 2 4] [--shapes 8x32768 1x131072x64] [--prefill 32768] [--rounds 15]
        [--peers 1x131072 8x32768] [--out results/kv_gpu.jsonl]

Heads as in Llama-3: 32 query heads, 8 key heads; a shape is rows x tokens (x channels of a head, 128 where not given).
Decoding: each contender is a CUDA graph that walks over several copies of its cache, together larger than three times
the L2 cache; the contenders take turns in each round, times are medians over the rounds. `sdpa` is PyTorch's attention
in bf16 by backend; `restoring` is our own kernel of the same shape that makes float16 keys and values from the codes in
registers, the usual way (KIVI, CacheGen). The floor is the time in which `torch.sum` reads as many bytes. Prefill: one
row, causal, every query reading the closed blocks before its own as codes. Peers (none unless asked for) restore the
whole cache at each step, one call after the other as a model makes them: the KIVI codec, and transformers'
`QuantizedCache` with those of its backends that are installed. There a step appends a token and attends, but for
`sdpa`, whose cache is complete.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import kv_restoring
import torch
import triton
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from thrifty.kv import presets
from thrifty.kv.blocks import Blocks, encode
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.kivi import Kivi
from thrifty.kv.kernels import prefill

HEADS, SHARED = 8, 4
SHAPES = [
    *("1x1024", "1x4096", "1x16384", "1x131072", "8x1024", "8x4096", "8x32768", "8x131072"),
    *("32x1024", "32x4096", "32x16384", "32x131072", "1x1024x64", "1x4096x64", "1x131072x64"),
    *("8x1024x64", "8x4096x64", "8x32768x64", "32x1024x64", "32x4096x64", "32x131072x64"),
]
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
ROTATED_BYTES = 150_000_000
Calls = list[Callable[[], object]]


def captured(calls: Calls) -> tuple[torch.cuda.CUDAGraph, int]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    times = max(1, -(-16 // len(calls)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls * times:
            call()
    return graph, len(calls) * times


def milliseconds(contenders: dict[str, Calls], rounds: int) -> dict[str, float]:
    graphs = {}
    for name, calls in contenders.items():
        try:
            graphs[name] = captured(calls)
        except RuntimeError as error:
            print(f"  {name}: left out, {str(error).splitlines()[0][:90]}")
            torch.cuda.synchronize()
    times = {name: [] for name in graphs}
    for round_ in range(rounds + 1):
        for name, (graph, count) in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if round_:
                times[name].append(begin.elapsed_time(end) / count)
    return {name: statistics.median(found) for name, found in times.items()}


def exact(backend: str, q: torch.Tensor, held: list) -> Calls:
    def call(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return sdpa(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True)

    return [lambda k=k, v=v: call(k, v) for k, v in held]


def copies(size: int) -> int:
    return max(2, -(-ROTATED_BYTES // size))


def encoded(codec: Hack, k: torch.Tensor, v: torch.Tensor) -> Blocks:
    """As `encode`, one row after the other, which needs less memory."""
    parts = [encode(codec, k[i : i + 1], v[i : i + 1]) for i in range(k.shape[0])]
    tensors: list[list[torch.Tensor]] = []
    for part in parts:
        tensors.append([])
        part.each(lambda tensor: tensors[-1].append(tensor) or tensor)
    joined = iter([torch.cat(rows) for rows in zip(*tensors, strict=True)])
    return parts[0].each(lambda _: next(joined))


def wanted(codec: Hack, q: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """Attention of the first row in float32 on what its codes stand for."""
    row = blocks.rows(torch.zeros(1, dtype=torch.long))
    k, v = (side.restore(back) for side, back in ((row.k, codec.restore_k), (row.v, codec.restore_v)))
    return sdpa(q[:1].view(1, HEADS, SHARED, -1).float(), k, v).reshape(1, HEADS * SHARED, 1, -1)


def measure(rows: int, tokens: int, dim: int, bits: list[int], rounds: int) -> list[dict]:
    torch.manual_seed(0)
    k, v = (torch.randn(rows, HEADS, tokens, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(rows, HEADS * SHARED, 1, dim, device="cuda", dtype=torch.bfloat16)
    held = [(k, v)] + [(k.clone(), v.clone()) for _ in range(copies(2 * k.nbytes) - 1)]
    contenders = {f"sdpa {name}": exact(name, q, held) for name in BACKENDS}
    sizes, errors = dict.fromkeys(contenders, 2 * k.nbytes), {}
    for width in bits:
        codec = Hack(k_bits=width, v_bits=width, summation_elimination=False)
        blocks = encoded(codec, k, v)
        caches = [blocks] + [blocks.each(torch.clone) for _ in range(copies(blocks.nbytes) - 1)]
        added = {f"hack {width} bits": lambda b, codec=codec: codec.attend(q, b, dim**-0.5)}
        for tuned in kv_restoring.TUNED:
            name = f"restoring {width} bits {' '.join(f'{key}={value}' for key, value in tuned.items())}"
            added[name] = lambda b, w=width, tuned=tuned: kv_restoring.attend(q, b, w, **tuned)
        want = wanted(codec, q, blocks)
        for name, call in added.items():
            try:
                errors[name] = float((call(blocks)[:1].float() - want).norm() / want.norm())
            except Exception as error:  # a peer that does not know this shape is named and left out
                print(f"  {name}: left out, {type(error).__name__}")
                continue
            contenders[name] = [lambda b=b, call=call: call(b) for b in caches]
            sizes[name] = blocks.nbytes
    memory = torch.randn(256 << 20, device="cuda")
    contenders["floor"], sizes["floor"] = [memory.sum], memory.nbytes
    times = milliseconds(contenders, rounds)
    rate = sizes["floor"] / times["floor"]
    best = min(time for name, time in times.items() if name.startswith("sdpa"))
    return [
        {
            "contender": name,
            "us": time * 1e3,
            "bytes": sizes[name],
            "tb_per_s": sizes[name] / time / 1e9,
            "share_of_floor": sizes[name] / time / rate,
            "times_sdpa": best / time,
            "error": errors.get(name),
        }
        for name, time in times.items()
    ]


def measure_prefill(tokens: int, bits: list[int], rounds: int, dim: int = 128) -> list[dict]:
    torch.manual_seed(0)
    k, v = (torch.randn(1, HEADS, tokens, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(1, HEADS * SHARED, tokens, dim, device="cuda", dtype=torch.bfloat16)
    contenders = {f"sdpa {name}": exact(name, q, [(k, v)])[0] for name in BACKENDS}
    for width in bits:
        codec = Hack(k_bits=width, v_bits=width, summation_elimination=False)
        blocks, sinks = encode(codec, k, v), codec.num_sinks
        k_side, v_side = (
            replace(side, open=x[:, :, sinks:].contiguous()) for side, x in ((blocks.k, k), (blocks.v, v))
        )
        seen = Blocks(k_side, v_side)
        contenders[f"hack {width} bits"] = lambda w=width, seen=seen: prefill.attend(
            q, seen, tokens, w, w, 64, dim**-0.5
        )
    times = one_by_one(contenders, rounds)
    operations = 2 * HEADS * SHARED * tokens**2 * dim  # two products, half of each hidden
    return [
        {"contender": name, "us": middle * 1e3, "tflop_per_s": operations / middle / 1e9}
        for name, middle in times.items()
    ]


def one_by_one(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of a call as Python makes it, contenders in turns: medians, after a round that is not timed."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, call in contenders.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            if round_:
                times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(found) for name, found in times.items()}


def measure_peers(rows: int, tokens: int, dim: int, rounds: int) -> list[dict]:
    torch.manual_seed(0)
    k, v = (torch.randn(rows, HEADS, tokens, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(rows, HEADS * SHARED, 1, dim, device="cuda", dtype=torch.bfloat16)
    contenders = {f"sdpa {name}": exact(name, q, [(k, v)])[0] for name in BACKENDS}
    codecs = {
        "hack 2 bits": Hack(summation_elimination=False),
        "smallest": presets.codec_of("smallest"),
        "kivi 2 bits": Kivi(group=64, residual=64),
    }
    contenders |= {name: partial(step, codec, q, encoded(codec, k, v), k[:, :, :1]) for name, codec in codecs.items()}
    contenders |= quantized(q, k, v)
    for name in list(contenders):
        try:
            contenders[name]()
        except Exception as error:
            print(f"  {name}: left out, {type(error).__name__}: {str(error).splitlines()[:1]}")
            del contenders[name]
    times = one_by_one(contenders, rounds)
    best = min(time for name, time in times.items() if name.startswith("sdpa"))
    return [{"contender": name, "us": time * 1e3, "times_sdpa": best / time} for name, time in times.items()]


def step(codec: Hack | Kivi, q: torch.Tensor, held: Blocks, new: torch.Tensor) -> torch.Tensor:
    """A step with a layer of codes: one token more, then attention."""
    return codec.attend(q, held.append(new, new, codec), q.shape[-1] ** -0.5)


def quantized(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The same with a layer of `QuantizedCache` by backend, which attends on what the layer gives."""
    from transformers import cache_utils

    found = {}
    for name, kind, settings in (
        ("QuantizedCache fp8", "Fp8QuantizedLayer", {}),
        ("QuantizedCache hqq 2 bits", "HQQQuantizedLayer", {"nbits": 2, "axis_key": 1, "axis_value": 1}),
    ):
        try:
            layer = getattr(cache_utils, kind)(**settings)
        except (AttributeError, ImportError) as error:
            print(f"  {name}: not here, {str(error).splitlines()[0][:90]}")
            continue
        layer.update(k, v)
        new = k[:, :, :1].contiguous(), v[:, :, :1].contiguous()
        found[name] = lambda layer=layer, new=new: sdpa(q, *layer.update(*new), enable_gqa=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    parser.add_argument("--prefill", type=int, nargs="*", default=[4096, 32768])
    parser.add_argument("--peers", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("results/kv_gpu.jsonl"))
    asked = parser.parse_args()
    about = {
        "command": " ".join(sys.argv[:1]),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "machine": torch.cuda.get_device_name(),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with asked.out.open("w", encoding="utf-8") as out, torch.inference_mode():
        for tokens in asked.prefill:
            print(f"\nprefill of {tokens} tokens, {about['machine']}")
            for line in measure_prefill(tokens, asked.bits, 5):
                out.write(json.dumps(about | {"kind": "prefill", "tokens": tokens, "head_dim": 128} | line) + "\n")
                print(f"  {line['contender']:42} {line['us'] / 1e3:8.2f} ms {line['tflop_per_s']:5.0f} TFLOP/s")
        for shape in asked.shapes:
            rows, tokens, dim = map(int, f"{shape}x128".split("x")[:3])
            print(f"\n{rows} rows of {tokens} tokens, heads of {dim}, {about['machine']}")
            place = {"kind": "decode", "rows": rows, "tokens": tokens, "head_dim": dim}
            for line in measure(rows, tokens, dim, asked.bits, asked.rounds):
                out.write(json.dumps(about | place | line) + "\n")
                error = "" if line["error"] is None else f"  error {line['error']:.1e}"
                print(
                    f"  {line['contender']:42} {line['us']:8.1f} us {line['bytes'] / 1e6:8.1f} MB "
                    f"{line['tb_per_s']:5.2f} TB/s {line['share_of_floor']:4.0%} of floor "
                    f"{line['times_sdpa']:5.2f}x sdpa{error}",
                    flush=True,
                )
            torch.cuda.empty_cache()
        for shape in asked.peers:
            rows, tokens, dim = map(int, f"{shape}x128".split("x")[:3])
            print(f"\nas Python calls them: {rows} rows of {tokens} tokens, heads of {dim}, {about['machine']}")
            place = {"kind": "peers", "rows": rows, "tokens": tokens, "head_dim": dim}
            for line in measure_peers(rows, tokens, dim, asked.rounds):
                out.write(json.dumps(about | place | line) + "\n")
                print(f"  {line['contender']:42} {line['us']:8.1f} us {line['times_sdpa']:5.2f}x sdpa", flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
