"""Caches of transformers that the benchmarks compare with: `QuantizedCache`, as a frozen set of its settings.

Its backends come with `pip install optimum-quanto hqq`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, QuantizedCache

from thrifty.llm import LanguageModel, attention_shape

AXES = {"quanto": (-1, 0), "hqq": (1, 1)}
"""Of keys and of values: the best of three pairs tried with each backend at 2 bits, on a window of wikitext-2-valid.
For quanto that is KIVI's choice, keys by channel; the axis of hqq that is not by token mixes heads and is far worse. 3
bits of hqq 0.2.8 fail by token: it takes every tensor for a matrix."""


@dataclass(frozen=True)
class Quantized:
    """A `QuantizedCache`: `bits` a value with a scale and a zero for each `group`, the newest `residual` as they are.

    At most `residual` tokens are kept as they are: as soon as there are that many, *all* tokens are coded again.
    """

    backend: str
    bits: int
    group: int = 64
    residual: int = 64

    def make(self, model: Any) -> Cache:
        """A fresh cache. Raises `ImportError` where the backend is not installed."""
        axis_k, axis_v = AXES[self.backend]
        return QuantizedCache(self.backend, model.config, self.bits, axis_k, axis_v, self.group, self.residual)

    def settings(self) -> dict[str, Any]:
        """All settings, axes included."""
        return asdict(self) | {"axis_k": AXES[self.backend][0], "axis_v": AXES[self.backend][1]}

    @torch.inference_mode()
    def filled_bytes(self, language: LanguageModel, tokens: int) -> int:
        """Bytes of the real tensors after `tokens` tokens, nearly `residual` of which are still as they are.

        Numbers with a fraction count as 16 bits, as in a model of that kind, whatever the model computes in.
        """
        layers, heads, width = attention_shape(language.model)
        cache = self.make(language.model)
        closed = (tokens - self.residual) // self.residual * self.residual
        for count in (closed, min(tokens - closed, self.residual - 1)):
            x = torch.randn(1, heads, count, width, device=language.model.device, dtype=language.model.dtype)
            cache.update(x, x, 0)
        held = sum(tensor.numel() * (2 if tensor.is_floating_point() else tensor.itemsize) for tensor in tensors(cache))
        return held * layers


def tensors(cache: Any) -> Iterator[Tensor]:
    """What the first layer of a filled `QuantizedCache` holds."""
    layer = cache.layers[0]
    yield from (layer.keys, layer.values)
    for held in (layer._quantized_keys, layer._quantized_values):
        if isinstance(held, tuple):  # hqq: codes, and what is known about them
            yield from (held[0], held[1]["scale"], held[1]["zero"])
        else:
            yield from (held._data._data, held._scale, held._shift)
