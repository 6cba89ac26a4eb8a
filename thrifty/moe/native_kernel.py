"""Tokens on a CPU through experts that share stored channels, in C++ (`thrifty/moe/native`).

One call routes the tokens and runs their experts on rows of weights where they lie. Of a few tokens each row that some
token needs is read once; many tokens (float32 only) are sorted by expert, and both products work on tiles of rows.
Where the library can neither be found nor compiled (`thrifty.native_build`), one warning says so and PyTorch runs
instead. `$THRIFTY_NATIVE` is 0 to switch the kernel off, or `avx512`, `avx2` or `portable` to force one variant.
"""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty import native_build

SOURCES = Path(__file__).parent / "native"
VERSION = 1
VARIANTS = native_build.VARIANTS
FEW_TOKENS, MOST_TOKENS = 8, 2048
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_ACTIVATIONS = {"silu": 0, "gelu": 1}
_POINTERS = ("x", "router", "choice", "members", "gate", "up", "down", "gate_bias", "up_bias", "out_bias", "out")
_COUNTS = ("tokens", "width", "stored", "experts", "type", "activation", "threads")


class _Call(ctypes.Structure):
    """Mirrors `Call` in native/call.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _COUNTS),
    )


def variant() -> str | None:
    """The variant of the kernel that runs here; None where PyTorch does.

    Raises `SettingError` where `$THRIFTY_NATIVE` asks for one that does not exist or that this machine cannot run.
    """
    asked = os.environ.get("THRIFTY_NATIVE", "")
    if asked == "0" or (library := _library()) is None:
        return None
    return native_build.variant(library, asked)


def run(
    mlp: Any, x: Float[Tensor, "tokens d"], choice: Int[Tensor, " tokens"] | None, activation: str
) -> tuple[Float[Tensor, "tokens d"], Int[Tensor, " tokens"]] | None:
    """Tokens through the experts of a `PackedMlp`, and which expert each took: that of `choice`, or of its router.

    None where the kernel cannot do it: no library, gradients, another device or type.
    """
    if not _suits(mlp, x) or (name := variant()) is None or (library := _library()) is None:
        return None
    if len(x) > MOST_TOKENS:
        choices = [None] * -(-len(x) // MOST_TOKENS) if choice is None else choice.split(MOST_TOKENS)
        parts = [run(mlp, *part, activation) for part in zip(x.split(MOST_TOKENS), choices, strict=True)]
        outs, chosen = zip(*(part for part in parts if part is not None), strict=True)
        return torch.cat(outs), torch.cat(chosen)
    tokens, out = x.float().contiguous(), torch.empty(x.shape, dtype=torch.float32)
    router = mlp.router if choice is None else None
    chosen = torch.zeros(len(x), dtype=torch.long) if choice is None else choice.long()
    tensors = (tokens, router, chosen, mlp.members, mlp.gate, mlp.up, mlp.down, mlp.gate_bias, mlp.up_bias,
               mlp.out_bias, out)  # fmt: skip
    call = _Call(
        *(None if tensor is None else tensor.data_ptr() for tensor in tensors),
        *(*x.shape, *mlp.members.T.shape, _TYPES[mlp.up.dtype], _ACTIVATIONS[activation], torch.get_num_threads()),
    )
    entry = library.thrifty_experts_few if len(x) <= FEW_TOKENS else library.thrifty_experts_many
    failed = entry(ctypes.byref(call), name.encode(), native_build.torch_threads())
    return None if failed else (out.to(x.dtype), chosen)


def _suits(mlp: Any, x: Tensor) -> bool:
    return (
        len(x) > 0
        and (len(x) <= FEW_TOKENS or (mlp.up.dtype == torch.float32 and mlp.shape.num_experts > 1))
        and not torch.is_grad_enabled()
        and x.device.type == mlp.up.device.type == "cpu"
        and mlp.up.dtype in _TYPES
        and x.dtype in _TYPES
        and (mlp.router is None or mlp.router.dtype == torch.float32)
        and all(weight.is_contiguous() for weight in mlp.parameters())
    )


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library; None, and one warning, where it cannot be had."""
    library = native_build.library(SOURCES, VERSION, "experts run")
    if library is not None:
        for entry in (library.thrifty_experts_few, library.thrifty_experts_many):
            entry.restype = ctypes.c_int32
            entry.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return library
