"""How fast experts run on a GPU; called by benchmarks/moe_speed.py, which says how.

Blocks (attention and MLP) of the shape of Llama-3-8B with random weights in bfloat16, four of them one after the other
so that no cache holds a layer's weights, everything as CUDA graphs. Contenders: `dense` as transformers runs it (gate,
up, silu, product, down), `dense fused` (gate and up as one product, silu and product as one kernel), `packed` (the
tomoe layout, as the product runs it: each weight is stored once) and `copies` (matrices of each expert, as the product
runs the standard layout and long prompts of tomoe with copies). `attention` is what is left of a block without its
MLP, compiled by PyTorch: no MLP can make a block faster than that. Each expert has its share of channels by chance,
independent of the others: the least that experts can have in common. `blocks` are whole blocks, `mlp` the MLPs alone
with their routers. Ratios are to the faster dense one. `error` is that of the MLP's output in bfloat16 against the
masked dense MLP in float32.
"""

import argparse
import statistics
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

WIDTH, CHANNELS, HEADS, KV_HEADS, HEAD_DIM = 4096, 14336, 32, 8, 128
LAYERS, CACHED = 4, 512
DEVICE = "cuda"
BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]  # the fastest first
MOST_COPIED = 16  # with more experts their copies do not fit beside the rest


class Attention:
    """Attention of one layer with the products of queries, keys and values as one; decoding has a cache of 512."""

    def __init__(self, rows: int, new: int) -> None:
        heads = HEADS + 2 * KV_HEADS
        self.qkv, self.o = weight(heads * HEAD_DIM, WIDTH), weight(WIDTH, HEADS * HEAD_DIM)
        self.norms = [torch.ones(WIDTH, device=DEVICE, dtype=torch.bfloat16) for _ in range(2)]
        self.turn = [torch.randn(new, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16) for _ in range(2)]
        shape = (rows, KV_HEADS, CACHED, HEAD_DIM)
        self.cache = [torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for _ in range(2)] if new == 1 else None

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum that goes on, and what the MLP reads."""
        return compiled(x, self.qkv, self.o, self.norms, self.turn, self.cache)


def attended(
    x: torch.Tensor,
    qkv: torch.Tensor,
    o: torch.Tensor,
    norms: list[torch.Tensor],
    turn: list[torch.Tensor],
    cache: list[torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, new, _ = x.shape
    heads = linear(rms_norm(x, (WIDTH,), norms[0]), qkv).view(rows, new, -1, HEAD_DIM).transpose(1, 2)
    turned, v = heads.split((HEADS + KV_HEADS, KV_HEADS), 1)
    turned = torch.addcmul(turned * turn[0], turned.roll(HEAD_DIM // 2, -1), turn[1])
    q, k = turned.split((HEADS, KV_HEADS), 1)
    if cache is not None:
        for cached, fresh in zip(cache, (k, v), strict=True):
            cached[:, :, -1:] = fresh
        k, v = cache
    mixed = scaled_dot_product_attention(q, k, v, is_causal=cache is None, enable_gqa=True)
    x = x + linear(mixed.transpose(1, 2).reshape(rows, new, -1), o)
    return x, rms_norm(x, (WIDTH,), norms[1])


compiled = torch.compile(attended, dynamic=False)
"""What is around the MLP as fast as PyTorch makes it, for all contenders alike: the slower it is, the less any MLP can
change."""


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) * shape[-1] ** -0.5


class Layer:
    """The MLP of one layer in every form, all of the same weights."""

    def __init__(self, active: float, experts: int, generator: torch.Generator) -> None:
        from thrifty.moe.experts import PackedMlp, Shape
        from thrifty.moe.grouped import Copies
        from thrifty.moe.packing import Packing

        width = int(CHANNELS * active) // 16 * 16
        scores = torch.rand(experts, CHANNELS, generator=generator)
        masks = torch.zeros(experts, CHANNELS, dtype=torch.bool).scatter_(1, scores.topk(width).indices, True)
        packing = Packing.of(masks)
        shape = Shape(experts, len(packing.order), True, False, False, True)
        self.packed = PackedMlp(shape, WIDTH, nn.SiLU()).to(DEVICE, torch.bfloat16).eval().requires_grad_(False)
        for name in ("gate", "up", "down"):
            setattr(self.packed, name, nn.Parameter(weight(shape.stored, WIDTH), requires_grad=False))
        self.packed.router = nn.Parameter(torch.randn(experts, WIDTH, device=DEVICE), requires_grad=False)
        self.packed.members.copy_(packing.members)
        self.stored, self.width = shape.stored, width
        left = CHANNELS - shape.stored  # channels of no expert: only the dense MLP has them
        self.gate, self.up = (torch.cat((own.data, weight(left, WIDTH))) for own in (self.packed.gate, self.packed.up))
        self.down = torch.cat((self.packed.down.data, weight(left, WIDTH))).T.contiguous()
        self.gate_up = torch.cat((self.gate, self.up))
        self.copies = Copies.of(self.packed) if experts <= MOST_COPIED else None

    def masked(self, x: torch.Tensor) -> torch.Tensor:
        """What is right, in float32: the mask of each token's expert on its hidden channels."""
        choice = (x.float() @ self.packed.router.T).argmax(-1)
        hidden = silu(x.float() @ self.packed.gate.float().T) * (x.float() @ self.packed.up.float().T)
        return (hidden * self.packed.members[choice]) @ self.packed.down.float()


def forms(has_copies: bool) -> dict:
    """The MLP as a function of a layer and tokens, by the name of the contender; experts as the product runs them."""
    from thrifty.moe.experts import choose
    from thrifty.moe.kernels.act import gated
    from thrifty.moe.whole import run_whole

    def fused(pair: torch.Tensor) -> torch.Tensor:
        return gated(*pair.chunk(2, -1), "silu")

    def copies(layer: Layer, x: torch.Tensor) -> torch.Tensor:
        both = layer.copies
        return run_whole(x, choose(layer.packed.router, x), both.gate_up, both.down, "silu")

    found = {
        "dense": lambda layer, x: linear(silu(linear(x, layer.gate)) * linear(x, layer.up), layer.down),
        "dense fused": lambda layer, x: linear(fused(linear(x, layer.gate_up)), layer.down),
        "packed": lambda layer, x: layer.packed(x),
    }
    return found | ({"copies": copies} if has_copies else {})


def captured(call: object, *inputs: torch.Tensor) -> object:
    """Runs a CUDA graph of `call(*inputs)`, warmed up."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(*inputs)
    return graph.replay


def milliseconds(calls: dict, rounds: int, repeats: int) -> dict:
    """Medians over rounds in which all take turns."""
    times = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(repeats):
                call()
            end.record()
            end.synchronize()
            if number:
                times[name].append(begin.elapsed_time(end) / repeats)
    return {name: statistics.median(found) for name, found in times.items()}


def parts(layers: list[Layer], tokens: int, few_tokens: int = 128) -> None:
    """Print what the steps of long prompts take, each alone, and the products of masked experts."""
    from thrifty.moe.grouped import sorted_by_expert
    from thrifty.moe.kernels import act, few, order

    x = torch.randn(tokens, WIDTH, device=DEVICE, dtype=torch.bfloat16)
    some, layer = x[:few_tokens].contiguous(), layers[0]
    choice = few.route(x, layer.packed.router)
    places, ends = order.order_of(choice, len(layer.packed.router))
    pair = torch.randn(tokens, 2 * layer.width, device=DEVICE, dtype=torch.bfloat16)
    both = torch.randn(few_tokens, CHANNELS, device=DEVICE, dtype=torch.bfloat16)
    owned, out = [both[:, : len(one.packed.down)].contiguous() for one in layers], torch.empty_like(x)
    right = layer.down.T.contiguous()
    counts = ends.diff(prepend=ends.new_zeros(1)).tolist()
    print(f"\ntokens of each expert {counts}; steps of {tokens} tokens, each alone:")
    calls = {
        "route": lambda x: [few.route(x, one.packed.router) for one in layers],
        "order": lambda x: [order.order_of(choice, len(one.packed.router)) for one in layers],
        "order, by torch": lambda x: [sorted_by_expert(choice, len(one.packed.router)) for one in layers],
        "gather": lambda x: [order.gathered(x, places) for _ in layers],
        "gather, by torch": lambda x: [x[places] for _ in layers],
        "scatter": lambda x: [order.scatter(x, places, out) for _ in layers],
        "activation": lambda x: [act.gated(*pair.chunk(2, -1), "silu") for _ in layers],
        f"{few_tokens} tokens, up, stored rows": lambda x: [linear(some, one.packed.up) for one in layers],
        f"{few_tokens} tokens, up, all rows": lambda x: [linear(some, one.up) for one in layers],
        f"{few_tokens} tokens, down as stored": lambda x: [
            own @ one.packed.down for own, one in zip(owned, layers, strict=True)
        ],
        f"{few_tokens} tokens, down, all rows": lambda x: [both @ right for _ in layers],
        f"{few_tokens} tokens, down, transposed": lambda x: [linear(both, one.down) for one in layers],
    }
    for name, time_ in milliseconds({name: captured(call, x) for name, call in calls.items()}, 5, 2).items():
        print(f"  {name:32} {time_ * 1e3 / LAYERS:8.1f} us", flush=True)


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


def measure(layers: list[Layer], rows: int, new: int, rounds: int) -> list[dict]:
    """Blocks and MLPs alone of `rows` sequences with `new` tokens each, every contender, and attention alone."""
    torch.compiler.reset()  # it stops compiling after some shapes
    x = torch.randn(rows, new, WIDTH, device=DEVICE, dtype=torch.bfloat16)
    attention = [Attention(rows, new) for _ in layers]
    calls, contenders = {}, forms(layers[0].copies is not None)

    def without(x: torch.Tensor) -> None:
        for attend in attention:
            x, normed = attend(x)
            x = x + normed

    calls["attention", "blocks"] = captured(without, x)
    for name, run in contenders.items():

        def mlps(x: torch.Tensor, run=run) -> None:
            for layer in layers:
                run(layer, x.view(-1, WIDTH))

        def blocks(x: torch.Tensor, run=run) -> None:
            for layer, attend in zip(layers, attention, strict=True):
                x, normed = attend(x)
                x = x + run(layer, normed.view(-1, WIDTH)).view(x.shape)

        try:
            calls[name, "mlp"], calls[name, "blocks"] = captured(mlps, x), captured(blocks, x)
        except Exception as error:  # tiles that do not fit this GPU with so many tokens
            print(f"  {name}: left out, {type(error).__name__}: {str(error)[:100]}", flush=True)
    times = milliseconds(calls, rounds, 5 if rows * new <= 64 else 1)
    us = {key: time_ * 1e3 / LAYERS for key, time_ in times.items()}
    few_rows = x.view(-1, WIDTH)[:256].contiguous()
    wanted = layers[0].masked(few_rows)
    lines = []
    for name, run in contenders.items():
        if (name, "blocks") not in us:
            continue
        line = {"contender": name, "rows": rows, "new_tokens": new, "attention_us": us["attention", "blocks"]}
        for part in ("mlp", "blocks"):
            dense = min(us["dense", part], us["dense fused", part])
            line |= {f"{part}_us": us[name, part], f"{part}_times_dense": dense / us[name, part]}
            line[f"{part}_times_dense_as_transformers"] = us["dense", part] / us[name, part]
        if not name.startswith("dense"):
            line["error"] = error_of(run(layers[0], few_rows), wanted)
        lines.append(line)
    return lines


def on_gpu(asked: argparse.Namespace) -> Iterator[dict]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layers = [Layer(asked.active, asked.experts, generator) for _ in range(LAYERS)]
    about = {"kind": "moe speed", "device": "cuda", "machine": torch.cuda.get_device_name(), "active": asked.active}
    about |= {
        "experts": asked.experts,
        "channels": CHANNELS,
        "stored": layers[0].stored,
        "expert_width": layers[0].width,
    }
    parts(layers, next(iter(asked.prefill), 4096))
    for rows, new in [*((1, new) for new in asked.prefill), *((rows, 1) for rows in asked.batches)]:
        print(f"\n{rows} rows of {new} new tokens, {about['machine']}, {LAYERS} layers; a layer:")
        with sdpa_kernel(BACKENDS, set_priority=True):
            lines = measure(layers, rows, new, asked.rounds)
        print(f"  attention    {lines[0]['attention_us']:27.1f} us of each block, whatever its MLP")
        for line in lines:
            yield about | line
            error = f"  error {line['error']:.1e}" if "error" in line else ""
            print(
                f"  {line['contender']:12} mlp {line['mlp_us']:9.1f} us {line['mlp_times_dense']:5.2f}x   blocks "
                f"{line['blocks_us']:9.1f} us {line['blocks_times_dense']:5.2f}x dense, "
                f"{line['blocks_times_dense_as_transformers']:5.2f}x as transformers runs it{error}",
                flush=True,
            )
        torch.cuda.empty_cache()
