"""How far a student's predictions are from its teacher's, computed a piece of the tokens at a time.

Student and teacher share the output head, which is frozen. The gradient with respect to the student's last hidden
states is formed together with the loss, so that logits (tokens x vocabulary, in float32) exist for one piece only:
16k tokens of a vocabulary of 49k would take 3 GB a copy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from thrifty.moe.text import Corpus

PIECE = 2048
TOGETHER = 32
"""Windows that the teacher reads together, ahead of the steps that need them."""


def hidden_states(model: nn.Module, ids: Int[Tensor, "batch window"]) -> Float[Tensor, "batch window d"]:
    """What the model's output head reads: its last hidden states after the final norm."""
    decoder: Any = getattr(model, "base_model", None) or model
    return decoder(input_ids=ids, use_cache=False).last_hidden_state


def is_spread(model: nn.Module) -> bool:
    """Whether processes share the model (FSDP), so that each must compute what the others compute, when they do."""
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


_CAUSAL = "thrifty_causal"


def is_recordable(model: Any, window: int) -> bool:
    """Whether a forward pass over unpadded windows reads nothing on the host, once it is `unpadded`: attention through
    PyTorch's kernels, no sliding window shorter than the windows, no rotation that depends on the length."""
    config = model.config
    rotation = getattr(config, "rope_parameters", None) or {}
    return (
        not is_spread(model)
        and config._attn_implementation == "sdpa"
        and (getattr(config, "sliding_window", None) or window) >= window
        and rotation.get("rope_type", "default") not in ("dynamic", "longrope")
    )


@contextmanager
def unpadded(model: Any) -> Iterator[None]:
    """Within, attention is causal over whole windows, and transformers does not look for padding, for which it would
    wait for the device. Raises nothing; the model's own setting comes back."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(_CAUSAL, sdpa_attention_forward)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = _CAUSAL
    try:
        yield
    finally:
        config._attn_implementation = before


class Teacher:
    """The dense model's last hidden states of the corpus's windows.

    On a GPU they are kept, 2 bytes a number, so that the dense model reads every window once however often it is learnt
    from. On a CPU, where few windows come twice and a resumed training is to be the same bit for bit, they are not.
    """

    def __init__(self, model: Any, corpus: Corpus) -> None:
        """Keep what the device has room for: a quarter of its memory."""
        self._model, self._corpus = model, corpus
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._room = 0
        if model.device.type == "cuda" and not is_spread(model):
            window_bytes = corpus.window * model.config.hidden_size * model.dtype.itemsize
            self._room = torch.cuda.get_device_properties(model.device).total_memory // 4 // window_bytes

    @torch.no_grad()
    def read(
        self, places: list[tuple[int, int]]
    ) -> tuple[Int[Tensor, "batch window"], Float[Tensor, "batch window d"]]:
        """The windows at `places` on the model's device, and the dense model's hidden states of them."""
        ids = self._windows(places)
        if all(place in self._kept for place in places):
            return ids, torch.stack([self._kept[place] for place in places])
        return ids, hidden_states(self._model, ids)

    @torch.no_grad()
    def look_ahead(self, places: list[tuple[int, int]]) -> None:
        """Read the windows at `places`, of steps to come, many at a time: a small batch costs a GPU as much as a larger
        one. Does nothing where nothing can be kept."""
        new = [place for place in dict.fromkeys(places) if place not in self._kept]
        for first in range(0, len(new), TOGETHER):
            part = new[first : first + min(TOGETHER, self._room - len(self._kept))]
            if part:
                self._kept |= dict(zip(part, hidden_states(self._model, self._windows(part)), strict=True))

    def _windows(self, places: list[tuple[int, int]]) -> Int[Tensor, "batch window"]:
        return torch.stack([self._corpus.texts[which][index] for which, index in places]).to(self._model.device)


def divergence(
    student: Float[Tensor, "*tokens d"], teacher: Float[Tensor, "*tokens d"], head: Any, piece: int = PIECE
) -> Float[Tensor, ""]:
    """Mean forward KL divergence (nats a token) of the student's predictions from the teacher's at temperature 1, every
    position counted: ToMoE's L_KD less the teacher's entropy, which has no gradient. `head` is the output embedding."""
    rows = student.shape[-1]
    bias = getattr(head, "bias", None)
    total = _Divergence.apply(student.reshape(-1, rows), teacher.reshape(-1, rows), head.weight, bias, piece)
    assert isinstance(total, Tensor)
    return total


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor | None, piece: int) -> Tensor:
        count = len(student)
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float32, device=student.device)
        for start in range(0, count, piece):
            part = slice(start, start + piece)
            wanted = linear(teacher[part], weight, bias).float().log_softmax(-1)
            scores = linear(student[part], weight, bias).float().log_softmax(-1)
            chance = wanted.exp()
            total += (chance * (wanted - scores)).sum()
            if gradient is not None:
                gradient[part] = ((scores.exp() - chance).to(weight.dtype) @ weight).to(gradient.dtype) / count
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * gradients[0].to(gradient.dtype), None, None, None, None)
