"""The number types of a model that is made from another one: those that loading its folder gives."""

from typing import Any

import torch


def match(made: Any, dense: Any, dtype: torch.dtype) -> None:
    """Put the weights of `made` into `dtype`, and its buffers that no file holds as `dense` has them.

    Those are the frequencies of rotations: `Module.to(dtype)` would round them; a folder is loaded with them unrounded.
    """
    for parameter in made.parameters():
        parameter.data = parameter.data.to(dtype)
    theirs, stored = dict(dense.named_buffers()), made.state_dict().keys()
    for name, buffer in made.named_buffers():
        if name in theirs and name not in stored:
            buffer.data = theirs[name].to(buffer.device, copy=True)
