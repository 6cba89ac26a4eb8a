"""Shared by the tests of the kernels in Triton: where they run, and what is right."""

import os

import pytest
import torch
from torch import Tensor

from thrifty.kv.blocks import Blocks, restore
from thrifty.kv.codecs.hack import Hack

HAS_GPU = torch.cuda.is_available()


class Kernels:
    """The device of the kernels, and attention as it should be."""

    has_gpu = HAS_GPU
    device = "cuda" if HAS_GPU else "cpu"

    @staticmethod
    def exact(codec: Hack, q: Tensor, blocks: Blocks) -> Tensor:
        """Attention of the newest token in float64 on restored keys and values."""
        k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in restore(codec, blocks))
        return ((q.double() @ k.mT) * q.shape[-1] ** -0.5).softmax(-1) @ v

    @staticmethod
    def error(found: Tensor, wanted: Tensor) -> float:
        """Relative error."""
        return float((found.double() - wanted.double()).norm() / wanted.double().norm())

    @staticmethod
    def sample(
        rows: int, heads: int, shared: int, tokens: int, dim: int, dtype: torch.dtype, new: int = 1
    ) -> tuple[Tensor, ...]:
        """Queries of the newest `new` tokens, keys with large channels, values."""
        k, v = torch.randn(2, rows, heads, tokens, dim, device=Kernels.device)
        q = torch.randn(rows, heads * shared, new, dim, device=Kernels.device)
        return q.to(dtype), (k + 2 * torch.randn(dim, device=Kernels.device)).to(dtype), v.to(dtype)


@pytest.fixture(scope="session")
def kernels() -> type[Kernels]:
    """Skips, loudly, where no kernel in Triton can run."""
    if not HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU and no TRITON_INTERPRET=1: the GPU kernels are NOT tested here")
    pytest.importorskip("triton", reason="no Triton: the GPU kernels are NOT tested here")
    return Kernels


@pytest.fixture
def gpu(kernels: type[Kernels]) -> type[Kernels]:
    """Skips, loudly, where there is no GPU."""
    if not HAS_GPU:
        pytest.skip("no GPU: the kernels as compiled are NOT tested here")
    return kernels
