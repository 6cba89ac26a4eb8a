"""Bits per layer, or per head, by measured error: those whose codes disturb the predictions most get more."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from thrifty import data, settings
from thrifty.errors import DataError, SettingError
from thrifty.kv.blocks import Codec
from thrifty.kv.by_head import for_heads
from thrifty.kv.cache import CompressedCache
from thrifty.kv.cost import has_bits
from thrifty.kv.job import KvJob
from thrifty.plan import Plan

_CHOICES = (2, 3, 4, 8)
_LEAST, _MOST = _CHOICES[0], _CHOICES[-1]


class Part(NamedTuple):
    """What gets bits of its own: the keys or the values of some heads of a layer."""

    layer: int
    side: str
    heads: tuple[int, ...]


@dataclass(frozen=True)
class Sensitivity:
    """Start every part at 2 bits, then spend the budget where a byte takes away most error.

    Parts are the keys and the values of each layer, or, `by=head`, of each head. The error of a part is the KL
    divergence (nats a token) between the predictions of the plain model and of one where only it is at 2 bits and the
    rest of its layer at 8, over `windows` windows of `window` tokens spread over `text`. Each further level halves the
    step: at b bits the error counts as that of 2 bits times ((2**2 - 1) / (2**b - 1))**2, and errors of parts add up.
    Choose a text that is not the one to be measured. The model reads the windows once for each part.
    """

    by: Literal["layer", "head"] = "layer"
    text: str = "python-topics"
    windows: int = 2
    window: int = 1024

    def __post_init__(self) -> None:
        """Refuse values that do not exist, and lengths that measure nothing."""
        settings.check(self)
        for name, least in (("windows", 1), ("window", 256)):
            if getattr(self, name) < least:
                raise SettingError(f"Sensitivity: {name}={getattr(self, name)}; use {least} or more")

    def plan(self, job: KvJob) -> Plan:
        """Bits per part. Raises `SettingError` where there is no budget, none that can be met, or no bits."""
        if not job.has_limit or not has_bits(job.codec):
            raise SettingError(f"Sensitivity: {job.codec!r} needs bits to choose and a budget; give --keep 20%")
        bits = dict.fromkeys(self._parts(job), _LEAST)
        if not job.budget.fits(_keep(job, bits)):
            least = job.budget.spent(_keep(job, bits))
            raise SettingError(
                f"a budget of {job.budget.limit:.0f} {job.budget.unit} cannot be met: 2 bits cost {least:.0f}; "
                "ask for at least that"
            )
        if not job.budget.fits(_keep(job, dict.fromkeys(bits, _MOST))):
            bits = _spend(job, bits, _errors(job, self._read(job), list(bits)))
        else:
            bits = dict.fromkeys(bits, _MOST)
        return Plan(method=repr(self), keep=_keep(job, bits))

    def _parts(self, job: KvJob) -> list[Part]:
        heads = range(job.shape.kv_heads)
        groups = [(head,) for head in heads] if self.by == "head" else [tuple(heads)]
        return [Part(layer, side, own) for layer in range(job.num_layers) for side in ("k", "v") for own in groups]

    def _read(self, job: KvJob) -> Int[Tensor, "windows window"]:
        if job.read is None:
            raise SettingError("Sensitivity: the job has no tokenizer; give KvJob.of(..., read=language.encode)")
        ids = torch.tensor(job.read(data.text(self.text)[: self.windows * self.window * 40]))
        if len(ids) < self.windows * self.window:
            raise DataError(f"{self.text} has {len(ids)} tokens; {self.windows} windows of {self.window} are needed")
        stride = (len(ids) - self.window) // max(1, self.windows - 1)
        return torch.stack([ids[start * stride :][: self.window] for start in range(self.windows)])


def _keep(job: KvJob, bits: dict[Part, int]) -> dict[str, Tensor]:
    keep = {}
    for part, chosen in bits.items():
        name = job.part(part.layer, part.side)
        keep.setdefault(name, torch.zeros(job.shape.kv_heads, dtype=torch.int32))[list(part.heads)] = chosen
    return keep


def _spend(job: KvJob, bits: dict[Part, int], errors: dict[Part, float]) -> dict[Part, int]:
    """Raise bits one step after the other, always the one that takes away most error a byte, while they fit."""
    spent = job.budget.spent(_keep(job, bits))
    price = {
        (part.side, chosen): job.budget.spent(_keep(job, bits | {part: chosen})) - spent
        for part in {part.side: part for part in bits}.values()
        for chosen in _CHOICES
    }
    while True:
        steps = [
            (
                errors[part] * (_left(now) - _left(chosen)) / (price[part.side, chosen] - price[part.side, now]),
                part,
                chosen,
            )
            for part, now in bits.items()
            for chosen in _CHOICES
            if chosen > now and spent + price[part.side, chosen] - price[part.side, now] <= job.budget.limit
        ]
        if not steps:
            return bits
        _, part, chosen = max(steps)
        spent += price[part.side, chosen] - price[part.side, bits[part]]
        bits = bits | {part: chosen}


def _left(bits: int) -> float:
    """What is left at `bits` bits of the squared error at 2."""
    return ((2**_LEAST - 1) / (2**bits - 1)) ** 2


@torch.inference_mode()
def _errors(job: KvJob, windows: Int[Tensor, "windows window"], parts: list[Part]) -> dict[Part, float]:
    windows = windows.to(job.model.device)
    errors = dict.fromkeys(parts, 0.0)
    with _attention_of(job.model):
        for window in windows:
            plain = _scores(job, window, None)
            for part in parts:
                scores = _scores(job, window, part)
                errors[part] += float((plain.exp() * (plain - scores)).sum(-1).mean()) / len(windows)
    return errors


def _scores(job: KvJob, window: Int[Tensor, " window"], part: Part | None) -> Tensor:
    codecs: list[Codec | None] = [None] * job.num_layers
    if part is not None:
        bits = {side: [_MOST] * job.shape.kv_heads for side in ("k", "v")}
        for head in part.heads:
            bits[part.side][head] = _LEAST
        codecs[part.layer] = for_heads(job.codec, bits["k"], bits["v"])
    cache = CompressedCache.of(job.model, codecs, prefill="coded")
    return job.model(window[None], past_key_values=cache, use_cache=True).logits[0].float().log_softmax(-1)


@contextmanager
def _attention_of(model: PreTrainedModel) -> Iterator[None]:
    """Give the model's attention back as it was."""
    before = model.config._attn_implementation
    try:
        yield
    finally:
        if before is not None and model.config._attn_implementation != before:
            model.set_attn_implementation(before)
