"""Many tokens on a GPU through experts with matrices of their own: each expert's products through cuBLAS, on streams.

Tokens are brought into the order of their experts, so that each expert has rows of its own, one after the other. How
many each has comes back to the CPU once, while the rows are gathered. Experts then run on a few streams: where the last
tiles of one product leave a part of the GPU idle, another expert's product, activation or scatter fills it. As a length
is read, this cannot be captured in a CUDA graph; `thrifty.moe.grouped` can.
"""

import functools
import importlib.util

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.moe.grouped import grouped_product

STREAMS = 2
"""The fastest of 1, 2, 3, 4 and 8 in benchmarks/moe_speed.py (4,096 tokens, 8 experts of a Llama-3-8B layer, H100)."""
FROM_TOKENS = 128
"""Tokens for each expert from which streams replace grouped products: a guess, not yet measured side by side."""


@functools.cache
def has_triton() -> bool:
    """Whether kernels in Triton can be had."""
    return importlib.util.find_spec("triton") is not None


def run_whole(
    x: Float[Tensor, "tokens d"],
    choice: Int[Tensor, " tokens"],
    gate_up: Float[Tensor, "experts two_width d"],
    down: Float[Tensor, "experts d width"],
    activation: str,
) -> Float[Tensor, "tokens d"]:
    """Each token through its expert, by whichever way is faster; needs Triton, and gives no gradients."""
    from thrifty.moe.kernels.whole import MOST_TOKENS, run_vectors

    if 0 < len(x) <= MOST_TOKENS:
        return run_vectors(x, choice, gate_up, down, activation)
    is_many = len(x) >= FROM_TOKENS * len(gate_up) and not torch.cuda.is_current_stream_capturing()
    return (run_streams if is_many else run_offsets)(x, choice, gate_up, down, activation)


def run_offsets(
    x: Float[Tensor, "tokens d"],
    choice: Int[Tensor, " tokens"],
    gate_up: Float[Tensor, "experts two_width d"],
    down: Float[Tensor, "experts d width"],
    activation: str,
) -> Float[Tensor, "tokens d"]:
    """As `thrifty.moe.grouped.run_grouped`, with kernels in Triton around the grouped products."""
    from thrifty.moe.kernels.act import gated
    from thrifty.moe.kernels.order import gathered, order_of, scatter

    order, ends = order_of(choice, len(gate_up))
    gate, up = grouped_product(gathered(x, order), gate_up.mT, ends).chunk(2, -1)
    out = torch.empty_like(x)
    scatter(grouped_product(gated(gate, up, activation), down.mT, ends), order, out)
    return out


def run_streams(
    x: Float[Tensor, "tokens d"],
    choice: Int[Tensor, " tokens"],
    gate_up: Float[Tensor, "experts two_width d"],
    down: Float[Tensor, "experts d width"],
    activation: str,
    num_streams: int = STREAMS,
) -> Float[Tensor, "tokens d"]:
    """Each token through its expert; `activation` is one that the kernels know (`thrifty.moe.kernels.act`)."""
    from thrifty.moe.kernels.act import gated
    from thrifty.moe.kernels.order import gathered, order_of, scatter

    order, ends = order_of(choice, len(gate_up))
    on_cpu = torch.empty(ends.shape, dtype=ends.dtype, pin_memory=True)
    on_cpu.copy_(ends, non_blocking=True)
    is_read = torch.cuda.Event()
    is_read.record()
    rows = gathered(x, order)
    both = torch.empty(len(x), gate_up.shape[1], dtype=x.dtype, device=x.device)
    hidden = torch.empty(len(x), down.shape[2], dtype=x.dtype, device=x.device)
    products, out = torch.empty_like(rows), torch.empty_like(x)
    main, sides = torch.cuda.current_stream(x.device), _streams(x.device, num_streams)
    for side in sides:
        side.wait_stream(main)
    is_read.synchronize()
    spans = _spans(on_cpu.tolist())
    for turn, (expert, first, last) in enumerate(spans):
        with torch.cuda.stream(sides[turn % len(sides)]):
            torch.mm(rows[first:last], gate_up[expert].mT, out=both[first:last])
            gate, up = both[first:last].chunk(2, -1)
            gated(gate, up, activation, out=hidden[first:last])
            torch.mm(hidden[first:last], down[expert].mT, out=products[first:last])
            scatter(products[first:last], order[first:last], out)
    for side in sides:
        main.wait_stream(side)  # so that all memory can be used again by what `main` does next
    return out


def _spans(ends: list[int]) -> list[tuple[int, int, int]]:
    """Expert, first row and the one after its last, most rows first: what comes last should be short."""
    spans = [(expert, first, last) for expert, (first, last) in enumerate(zip([0, *ends], ends, strict=False))]
    return sorted((span for span in spans if span[2] > span[1]), key=lambda span: span[1] - span[2])


@functools.cache
def _streams(device: torch.device, count: int) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(count)]
