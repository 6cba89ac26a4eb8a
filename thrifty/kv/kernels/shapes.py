"""What the kernels in Triton can do, and where they run."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from thrifty.kv.blocks import Blocks


def on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current GPU, which need not be that of the tensors: a model may lie on several."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def suit(q: Tensor, blocks: Blocks, k_bits: int, v_bits: int, group: int) -> bool:
    """Whether queries [rows, q_heads, new, d] can attend on `blocks`, keys coded per channel and block, values per
    token and `group` channels: there are codes, in widths that divide 16, and all else has one 16-bit dtype."""
    k, v, dim = blocks.k, blocks.v, q.shape[-1]
    if k.closed is None or v.closed is None or k.lengths != v.lengths:
        return False
    coded = [closed[name] for closed in (k.closed, v.closed) for name in ("scale", "low")]
    dense = (k.sinks, k.open, v.sinks, v.open, *coded)
    return (
        not (q.requires_grad and torch.is_grad_enabled())
        and q.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and all(tensor.dtype == k.open.dtype and tensor.dtype.itemsize == 2 for tensor in dense)
        and {k_bits, v_bits} <= {2, 4, 8}
        and dim in ((64, 128, 256) if q.shape[2] == 1 else (64, 128))
        and dim // group in (1, 2, 4)
        and k.closed.unit in (32, 64, 128)
        and q.shape[1] // k.open.shape[1] <= 16
    )
