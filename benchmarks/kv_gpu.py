# ruff: noqa: RUF005 -- Triton does not unpack tuples
"""Decode attention on a GPU: HACK's codes in Triton against scaled dot product attention and a dequantising peer.

    python benchmarks/kv_gpu.py [--bits 2 4] [--shapes 8x32768 1x131072] [--rounds 15] [--out results/kv_gpu.jsonl]

Heads as in Llama-3-8B: 32 query heads, 8 key heads, 128 channels. Each contender is a CUDA graph that walks over
several copies of its cache, together larger than three times the L2 cache; the contenders take turns in each round,
times are medians over the rounds. `sdpa` is every backend of PyTorch in both forms (`gqa`: enable_gqa; `packed`: the
query heads of a key head as queries); the summary compares with the fastest. `restoring` is our own kernel of the
same shape that makes float16 keys and values from the codes in registers, the usual way (KIVI, CacheGen). The floor
is the time in which `torch.sum` reads as many bytes.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from thrifty.kv.blocks import Blocks, encode
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.kernels import decode
from thrifty.kv.kernels.fields import by_field, offset_of, unpacked

HEADS, SHARED, DIM = 8, 4, 128
SHAPES = ["8x32768", "1x131072", "1x4096", "1x16384", "32x4096"]
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
ROTATED_BYTES = 150_000_000
Calls = list[Callable[[], object]]


@triton.jit(do_not_specialize=["splits", "blocks", "blocks_each", "sinks", "opened"])
def _restoring(
    q, k_codes, k_scale, k_low, v_codes, v_scale, v_low, sink_k, sink_v, open_k, open_v, part, stats,
    splits, blocks, blocks_each, sinks, opened, factor,
    SHARED: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr,
    BITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    if split == splits:
        decode._attend_dense(
            q, sink_k, sink_v, open_k, open_v, part, stats, head, splits, sinks, opened, factor,
            SHARED, PADDED, DIM, GROUP, BITS, True,
        )  # fmt: skip
        return
    FIELDS: tl.constexpr = 16 // BITS
    HALVES: tl.constexpr = DIM // FIELDS
    GROUPS: tl.constexpr = DIM // GROUP
    WIDTH: tl.constexpr = GROUP // FIELDS
    row = tl.arange(0, 16)
    token = tl.arange(0, UNIT)
    channel = tl.arange(0, DIM)
    half = tl.arange(0, HALVES)
    width = tl.arange(0, WIDTH)
    at = (head * SHARED + row)[:, None] * DIM + channel[None, :]
    query = tl.load(q + at, mask=(row < SHARED)[:, None], other=0.0)
    query = by_field(tl.reshape(query.to(tl.float16), (16, HALVES, FIELDS)), FIELDS)
    highest = tl.full((16,), -1.0e20, tl.float32)
    total = tl.zeros((16,), tl.float32)
    mixed = ()
    for _ in tl.static_range(GROUPS * FIELDS):
        mixed = mixed + (tl.zeros((16, WIDTH), tl.float32),)
    first = head * blocks + split * blocks_each
    last = head * blocks + tl.minimum(split * blocks_each + blocks_each, blocks)
    for block in tl.range(first, last, num_stages=STAGES):
        at = block * DIM + channel[None, :]
        scale = by_field(tl.reshape(tl.load(k_scale + at).to(tl.float16), (1, HALVES, FIELDS)), FIELDS)
        low = by_field(tl.reshape(tl.load(k_low + at).to(tl.float16), (1, HALVES, FIELDS)), FIELDS)
        halves = tl.load(k_codes + (block * UNIT + token)[:, None] * HALVES + half[None, :])
        scores = tl.zeros((16, UNIT), tl.float32)
        for field in tl.static_range(FIELDS):
            codes = unpacked(halves, BITS, field, True) - tl.full((), offset_of(BITS, field), tl.float16)
            scores = tl.dot(query[field], tl.trans(codes * scale[field] + low[field]), scores)
        scores = scores * factor
        before = highest
        highest = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp2(before - highest)
        weights = tl.exp2(scores - (highest - 2.0)[:, None])
        total = total * shrink + tl.sum(weights, 1)
        weights = weights.to(tl.float16)
        summed = ()
        for g in tl.static_range(GROUPS):
            token_at = (block * UNIT + token) * GROUPS + g
            v_s = tl.load(v_scale + token_at).to(tl.float16)[:, None]
            v_l = tl.load(v_low + token_at).to(tl.float16)[:, None]
            halves = tl.load(v_codes + (block * UNIT + token)[:, None] * HALVES + g * WIDTH + width[None, :])
            for field in tl.static_range(FIELDS):
                codes = unpacked(halves, BITS, field, True) - tl.full((), offset_of(BITS, field), tl.float16)
                old = mixed[g * FIELDS + field] * shrink[:, None]
                summed = summed + (tl.dot(weights, codes * v_s + v_l, old),)
        mixed = summed
    at = (head * (splits + 1) + split) * PADDED + row
    tl.store(stats + at * 2, highest, mask=row < PADDED)
    tl.store(stats + at * 2 + 1, total, mask=row < PADDED)
    for index in tl.static_range(GROUPS * FIELDS):
        tl.store(part + at[:, None] * DIM + index * WIDTH + width[None, :], mixed[index], mask=(row < PADDED)[:, None])


def restoring(q: torch.Tensor, blocks: Blocks, bits: int, per_sm: int, stages: int, warps: int) -> torch.Tensor:
    rows, heads, _, dim = q.shape
    k, v = blocks.k, blocks.v
    kv_heads, units = k.open.shape[1], k.closed["codes"].shape[2]
    slots = decode.multiprocessors(q.device) * per_sm
    each = -(-units // max(1, slots // (rows * kv_heads)))
    splits, shared = -(-units // each), heads // kv_heads
    part = torch.empty(rows * kv_heads, splits + 1, shared, dim, device=q.device)
    stats = torch.empty(rows * kv_heads, splits + 1, shared, 2, device=q.device)
    out = torch.empty_like(q)
    _restoring[rows * kv_heads, splits + 1](
        q, k.closed["codes"].view(torch.int16), k.closed["scale"], k.closed["low"],
        v.closed["codes"].view(torch.int16), v.closed["scale"], v.closed["low"],
        k.sinks, v.sinks, k.open, v.open, part, stats,
        splits, units, each, k.sinks.shape[2], k.open.shape[2], dim**-0.5 * math.log2(math.e),
        SHARED=shared, PADDED=shared, DIM=dim, UNIT=k.closed.unit, GROUP=64, BITS=bits, STAGES=stages,
        num_warps=warps,
    )  # fmt: skip
    decode._combine[rows * kv_heads, shared, dim // 32](
        part, stats, out, splits, SHARED=shared, PADDED=shared, DIM=dim, GROUP=64, V_BITS=bits,
        STEP=min(128, triton.next_power_of_2(splits + 1)), CHANNELS=32, num_warps=4,
    )  # fmt: skip
    return out


RESTORING = [{"per_sm": 8, "stages": 3, "warps": 1}, {"per_sm": 8, "stages": 2, "warps": 4}]


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


def exact(backend: str, form: str, q: torch.Tensor, held: list) -> Calls:
    packed = q.view(q.shape[0], HEADS, SHARED, DIM)

    def call(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return sdpa(packed, k, v) if form == "packed" else sdpa(q, k, v, enable_gqa=True)

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


def measure(rows: int, tokens: int, bits: list[int], rounds: int) -> list[dict]:
    torch.manual_seed(0)
    k, v = (torch.randn(rows, HEADS, tokens, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(rows, HEADS * SHARED, 1, DIM, device="cuda", dtype=torch.bfloat16)
    held = [(k, v)] + [(k.clone(), v.clone()) for _ in range(copies(2 * k.nbytes) - 1)]
    contenders = {f"sdpa {b} {form}": exact(b, form, q, held) for b in BACKENDS for form in ("gqa", "packed")}
    sizes = dict.fromkeys(contenders, 2 * k.nbytes)
    errors: dict[str, float] = {}
    for width in bits:
        codec = Hack(k_bits=width, v_bits=width, qp_bits="exact", summation_elimination=False)
        blocks = encoded(codec, k, v)
        caches = [blocks] + [blocks.each(torch.clone) for _ in range(copies(blocks.nbytes) - 1)]
        added = {f"hack {width} bits": lambda b, w=width: decode.attend(q, b, w, w, 64, DIM**-0.5)}
        for tuned in RESTORING:
            name = f"restoring {width} bits {' '.join(f'{key}={value}' for key, value in tuned.items())}"
            added[name] = lambda b, w=width, tuned=tuned: restoring(q, b, w, **tuned)
        row = blocks.rows(torch.zeros(1, dtype=torch.long))
        row_k, row_v = (side.restore(back) for side, back in ((row.k, codec.restore_k), (row.v, codec.restore_v)))
        want = sdpa(q[:1].view(1, HEADS, SHARED, DIM).float(), row_k, row_v).reshape(1, -1, 1, DIM)
        for name, call in added.items():
            errors[name] = float((call(blocks)[:1].float() - want).norm() / want.norm())
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("results/kv_gpu.jsonl"))
    asked = parser.parse_args()
    about = {
        "command": " ".join(sys.argv),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "machine": torch.cuda.get_device_name(),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with asked.out.open("a", encoding="utf-8") as out, torch.inference_mode():
        for shape in asked.shapes:
            rows, tokens = map(int, shape.split("x"))
            print(f"\n{rows} rows of {tokens} tokens, {about['machine']}")
            for line in measure(rows, tokens, asked.bits, asked.rounds):
                out.write(json.dumps(about | {"rows": rows, "tokens": tokens} | line) + "\n")
                error = "" if line["error"] is None else f"  error {line['error']:.1e}"
                print(
                    f"  {line['contender']:42} {line['us']:8.1f} us {line['bytes'] / 1e6:8.1f} MB "
                    f"{line['tb_per_s']:5.2f} TB/s {line['share_of_floor']:4.0%} of floor "
                    f"{line['times_sdpa']:5.2f}x sdpa{error}"
                )
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
