"""How well a language model predicts a text: fixed windows of it, and sums over the predictions."""

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from thrifty.errors import DataError, SettingError
from thrifty.llm import LanguageModel

CHARACTERS = 10
"""More characters than any token needs on average; a whole book need not be tokenised for eight windows."""


def windows_of(language: LanguageModel, text: str, name: str, count: int, window: int) -> Tensor:
    """The first `count` non-overlapping windows of `text` as token ids [windows, window]; fewer where it is shorter.

    Raises `DataError` where the text called `name` is shorter than one window, `SettingError` where the model cannot
    read so long a window.
    """
    if window > language.max_positions:
        raise SettingError(f"window={window}: {language.name} reads at most {language.max_positions} tokens")
    ids = language.encode(text[: count * window * CHARACTERS])
    found = min(count, len(ids) // window)
    if found == 0:
        raise DataError(
            f"{name} has {len(ids)} tokens; one window of {window} is needed: give a longer text or a smaller --window"
        )
    return torch.tensor(ids[: found * window]).view(found, window)


@dataclass
class Tally:
    """Sums over predictions, window by window."""

    loss: list[float] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)
    agreed: int = 0
    predictions: int = 0

    def row(self, reference: "Tally", name: str = "plain") -> dict[str, Any]:
        """Perplexity, its ratio to the reference (called `name` in the keys) with the standard error over the windows,
        KL divergence (nats) and top-1 agreement."""
        ratios = [mine - plain for mine, plain in zip(self.loss, reference.loss, strict=True)]
        count = len(self.loss)
        error = statistics.stdev(ratios) / math.sqrt(count) if count > 1 else math.nan
        ratio = math.exp(statistics.fmean(ratios))
        return {
            f"ppl_{name}": math.exp(statistics.fmean(reference.loss)),
            "ppl": math.exp(statistics.fmean(self.loss)),
            "ppl_ratio": ratio,
            "ppl_ratio_error": ratio * error,
            "kl": statistics.fmean(self.divergence),
            "top1": self.agreed / self.predictions,
            "predictions": self.predictions,
        }
