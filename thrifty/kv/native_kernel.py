"""Decode attention on packed codes in C++ (`thrifty/kv/native`), for one new token on a CPU.

Where the library can neither be found nor compiled (`thrifty.native_build`), one warning says so and the reference in
PyTorch runs instead. `$THRIFTY_NATIVE` is 0 to switch the kernel off, or `avx512`, `avx2` or `portable` to force one
variant.
"""

import ctypes
import functools
import os
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty import native_build
from thrifty.kv.blocks import Blocks, Side

SOURCES = Path(__file__).parent / "native"
VERSION = 3
VARIANTS = native_build.VARIANTS
MAX_DIM, MAX_GROUPS, MAX_TOKENS = 256, 16, 128
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class _View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("head", ctypes.c_int64))


class _Side(ctypes.Structure):
    _fields_ = (*((name, _View) for name in ("sinks", "codes", "scale", "low", "open")), ("bits", ctypes.c_int64))


_COUNTS = ("rows", "kv_heads", "shared", "dim", "blocks", "tokens", "group", "sinks", "open", "queries")
_COUNTS += ("turned_k", "turned_v", "type", "threads")


class _Call(ctypes.Structure):
    """Mirrors `Call` in native/call.h."""

    _fields_ = (
        *(("k", _Side), ("v", _Side), ("q", ctypes.c_void_p), ("out", ctypes.c_void_p)),
        *((name, ctypes.c_int64) for name in _COUNTS),
        ("scale", ctypes.c_float),
    )


def variant() -> str | None:
    """The variant of the kernel that runs here; None where the reference does.

    Raises `SettingError` where `$THRIFTY_NATIVE` asks for one that does not exist or that this machine cannot run.
    """
    asked = os.environ.get("THRIFTY_NATIVE", "")
    if asked == "0" or (library := _library()) is None:
        return None
    return native_build.variant(library, asked)


def attend(
    q: Float[Tensor, "rows q_heads queries d"],
    blocks: Blocks,
    k_bits: int,
    v_bits: int,
    group: int,
    scale: float,
    turned: tuple[bool, bool] = (False, False),
) -> Float[Tensor, "rows q_heads queries d"] | None:
    """Causal attention of the newest `queries` tokens on `blocks`: keys coded per channel and block, values per token
    and `group` channels. Where keys or values are `turned`, their codes are in rotated channels
    (`thrifty.kv.rotation`), and so is `q` or the result; sinks and open block are not. None where the kernel cannot do
    it: no library, several queries that are not all in the open block, another device, unusual shapes."""
    name = variant() if _suits(q, blocks, group) else None
    library = _library() if name else None
    if name is None or library is None:
        return None
    rows, heads, queries, dim = q.shape
    closed, kv_heads = blocks.k.closed, blocks.k.open.shape[1]
    query, out = q.float().contiguous(), torch.empty(q.shape, dtype=torch.float32)  # each head's queries side by side
    sides = [side if _is_plain(side) else side.each(Tensor.contiguous) for side in (blocks.k, blocks.v)]
    units, unit = (closed["codes"].shape[2], closed.unit) if closed else (0, 32)
    call = _Call(
        *(_side(side, bits) for side, bits in zip(sides, (k_bits, v_bits), strict=True)),
        *(query.data_ptr(), out.data_ptr(), rows, kv_heads, heads // kv_heads * queries, dim),
        *(units, unit, group, blocks.k.sinks.shape[2], blocks.k.open.shape[2], queries, *turned),
        *(_TYPES[blocks.k.open.dtype], torch.get_num_threads()),
        scale,
    )
    failed = library.thrifty_attend(ctypes.byref(call), name.encode(), native_build.torch_threads())
    return None if failed else out.to(q.dtype)


def _suits(q: Tensor, blocks: Blocks, group: int) -> bool:
    k, v, dim = blocks.k, blocks.v, q.shape[-1]
    coded = k.closed if k.closed and v.closed else None
    tensors = [side.closed[name] for side in (k, v) if side.closed for name in ("scale", "low")]
    return (
        (q.shape[2] == 1 or q.shape[2] <= k.open.shape[2])
        and q.device.type == k.open.device.type == "cpu"
        and not (q.requires_grad and torch.is_grad_enabled())
        and q.dtype in _TYPES
        and k.open.dtype in _TYPES
        and all(tensor.dtype == k.open.dtype for tensor in (*tensors, k.sinks, v.sinks, v.open))
        and k.lengths == v.lengths
        and (coded is not None or k.lengths[1] == 0)
        and dim <= MAX_DIM
        and dim % group == 0
        and group % 16 == 0
        and dim // group <= MAX_GROUPS
        and (coded is None or (coded.unit <= MAX_TOKENS and coded.unit % 16 == 0))
    )


def _is_plain(side: Side) -> bool:
    """Rows and heads may lie anywhere; what a head has must lie in one piece."""
    tensors = (side.sinks, side.open, *(side.closed.tensors.values() if side.closed else ()))
    return all(tensor.is_contiguous() or tensor[0, 0].is_contiguous() for tensor in tensors)


def _side(side: Side, bits: int) -> _Side:
    closed = [side.closed[name] if side.closed else side.open for name in ("codes", "scale", "low")]
    return _Side(*(_view(tensor) for tensor in (side.sinks, *closed, side.open)), bits)


def _view(tensor: Tensor) -> _View:
    size, (row, head, *_) = tensor.element_size(), tensor.stride()
    return _View(tensor.data_ptr(), row * size, head * size)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library; None, and one warning, where it cannot be had."""
    library = native_build.library(SOURCES, VERSION, "attention on codes runs")
    if library is not None:
        library.thrifty_attend.restype = ctypes.c_int32
        library.thrifty_attend.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return library
