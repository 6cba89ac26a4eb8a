# ruff: noqa: ANN001, ANN202 -- Triton compiles this: no annotations
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false
"""Codes as whole numbers in float16, unpacked once for all queries of a prefill (Triton).

Nothing is restored: scales and lows stay beside the codes, as they are in the cache, but in the order in which
`thrifty.kv.kernels.prefill` reads them. A block's codes meet hundreds of tiles of queries; unpacking them in each costs
more than both products.
"""

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float16
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from thrifty.kv.blocks import Coded

WIDTH = 16
"""Columns of the thin operand: the least that a product takes."""
_WIDTH = tl.constexpr(WIDTH)


@triton.jit
@no_type_check
def _whole(codes, source, at, DIM: tl.constexpr, UNIT: tl.constexpr, BITS: tl.constexpr):
    """Codes `at` of a block."""
    byte = tl.load(codes + source * (UNIT * DIM * BITS // 8) + at * BITS // 8).to(tl.int32)
    return ((byte >> (at * BITS % 8)) & ((1 << BITS) - 1)).to(tl.float16)


@triton.jit(do_not_specialize=["blocks", "head"])
@no_type_check
def _unpack(
    k_codes, k_scale, v_codes, v_scale, v_low, k, k_scales, v, v_scales, thin, blocks, head,
    DIM: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, K_BITS: tl.constexpr, V_BITS: tl.constexpr,
):  # fmt: skip
    """Program (block, head of those in the workspace)."""
    GROUPS: tl.constexpr = DIM // GROUP
    slot = (tl.program_id(1) * blocks + tl.program_id(0)).to(tl.int64)
    source = ((head + tl.program_id(1)) * blocks + tl.program_id(0)).to(tl.int64)
    token, channel, column = tl.arange(0, UNIT), tl.arange(0, DIM), tl.arange(0, _WIDTH)
    at = token[:, None] * DIM + channel[None, :]
    tl.store(k + slot * (UNIT * DIM) + at, _whole(k_codes, source, at, DIM, UNIT, K_BITS))
    tl.store(v + slot * (UNIT * DIM) + at, _whole(v_codes, source, at, DIM, UNIT, V_BITS))
    tl.store(k_scales + slot * DIM + channel, tl.load(k_scale + source * DIM + channel).to(tl.float16))
    source *= UNIT * GROUPS
    for group in tl.static_range(GROUPS):
        scale = tl.load(v_scale + source + token * GROUPS + group)
        tl.store(v_scales + (slot * GROUPS + group) * UNIT + token, scale.to(tl.float16))
    low = v_low + source + token[:, None] * GROUPS + column[None, :]
    low = tl.load(low, mask=(column < GROUPS)[None, :], other=0.0).to(tl.float16)
    low = tl.where((column == GROUPS)[None, :], 1.0, low).to(tl.float16)
    tl.store(thin + slot * (UNIT * _WIDTH) + token[:, None] * _WIDTH + column[None, :], low)


@dataclass(frozen=True)
class Whole:
    """The closed blocks of several key heads, one head after the other. `thin` has, by column, the low of each group
    of a value's channels, and then ones."""

    k: Float16[Tensor, "tokens d"]
    k_scales: Float16[Tensor, "blocks d"]
    v: Float16[Tensor, "tokens d"]
    v_scales: Float16[Tensor, "groups unit"]
    thin: Float16[Tensor, "tokens width"]

    def described(self, unit: int, group: int) -> list[TensorDescriptor]:
        """Descriptors for copies of a block at a time, by the GPU's own engine where it has one."""
        dim = self.k.shape[1]
        sizes = ((unit, dim), (1, dim), (unit, group), (1, unit), (unit, WIDTH))
        return [TensorDescriptor.from_tensor(x, list(size)) for x, size in zip(self.tensors, sizes, strict=True)]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order above."""
        return self.k, self.k_scales, self.v, self.v_scales, self.thin

    @staticmethod
    def bytes_per_block(dim: int, unit: int, groups: int) -> int:
        """Of one key head."""
        return 2 * (unit * (2 * dim + groups + WIDTH) + dim)

    @staticmethod
    def empty(blocks: int, dim: int, unit: int, groups: int, device: torch.device) -> "Whole":
        """Room for `blocks` blocks in all."""
        sizes = ((unit, dim), (1, dim), (unit, dim), (groups, unit), (unit, WIDTH))
        return Whole(*(torch.empty(blocks * n, m, dtype=torch.float16, device=device) for n, m in sizes))

    def fill(self, k: Coded, v: Coded, first: int, heads: int, k_bits: int, v_bits: int, group: int) -> None:
        """With `heads` heads from `first` on, counted through all rows."""
        blocks = k["codes"].shape[2]
        _unpack[blocks, heads](
            k["codes"], k["scale"], v["codes"], v["scale"], v["low"], *self.tensors, blocks, first,
            DIM=self.k.shape[1], UNIT=k.unit, GROUP=group, K_BITS=k_bits, V_BITS=v_bits,
        )  # fmt: skip
