"""Shared by the tests of the kernels in Triton: where they run, packed experts, and what is right."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thrifty.moe.experts import PackedMlp, Shape, run_sorted
from thrifty.moe.packing import Packing

HAS_GPU = torch.cuda.is_available()


class Kernels:
    """The device of the kernels, and experts to try."""

    device = "cuda" if HAS_GPU else "cpu"

    @staticmethod
    def mlp(
        num_experts: int = 4, channels: int = 100, width: int = 48, *, has_gate: bool = True, has_bias: bool = False,
        dtype: torch.dtype = torch.float32, share: float = 0.5,
    ) -> PackedMlp:  # fmt: skip
        """Packed experts; the first has every fourth channel only, the others `share` of them by chance."""
        masks = torch.rand(num_experts, channels) < share
        masks[0] = torch.arange(channels) % 4 == 0
        members = Packing.of(masks).members
        shape = Shape(num_experts, members.shape[1], has_gate, has_bias, has_bias, num_experts > 1)
        mlp = PackedMlp(shape, width, nn.SiLU() if has_gate else nn.GELU("tanh"))
        for parameter in mlp.parameters():
            nn.init.normal_(parameter, std=0.3)
        mlp.members.copy_(members)
        return mlp.to(Kernels.device, dtype).eval()

    @staticmethod
    def right(mlp: PackedMlp, x: Tensor, choice: Tensor | None) -> Tensor:
        """The same in PyTorch, in float64."""
        whole = torch.zeros(len(x), dtype=torch.long, device=x.device) if choice is None else choice.long()
        exact = PackedMlp(mlp.shape, x.shape[1], mlp.activation).to(x.device)
        exact.load_state_dict(mlp.state_dict())
        out = run_sorted(exact.double(), x.double(), whole)
        return out if exact.out_bias is None else out + exact.out_bias

    @staticmethod
    def error(found: Tensor, wanted: Tensor) -> float:
        """Relative error."""
        return float((found.double() - wanted).norm() / wanted.norm())


@pytest.fixture(scope="session")
def kernels() -> Any:
    """Skips, loudly, where no kernel in Triton can run."""
    if not HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU and no TRITON_INTERPRET=1: the GPU kernels are NOT tested here")
    pytest.importorskip("triton", reason="no Triton: the GPU kernels are NOT tested here")
    return Kernels


@pytest.fixture
def bfloat16_dot(kernels, monkeypatch) -> None:
    """Triton's interpreter multiplies the bits of bfloat16 as if they were integers: here it takes their values."""
    if HAS_GPU:
        return
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    dot = builder.create_dot

    def exact(self, a, b, *rest):
        return dot(self, *(self.cast_impl(one, interpreter.tl.float32) for one in (a, b)), *rest)

    monkeypatch.setattr(builder, "create_dot", exact)
