"""What is given when a dense language model is to become a mixture of experts."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from thrifty.budget import Budget
from thrifty.errors import SettingError
from thrifty.moe.cost import Scope, Sizes, check_ratio, round_width
from thrifty.moe.sites import Site, found
from thrifty.moe.text import Corpus
from thrifty.progress import Track, silent

Widths = Literal["layer", "equal"]
"""`layer`: every layer has its own width within one budget of all. `equal`: all layers have the same."""


@dataclass(frozen=True)
class MoeJob:
    """A dense model, of whose weights the share `active` may act on a token; `scope` says of which weights.

    `steps` training steps of `batch` windows each, where the method trains. `checkpoint` is a file that training writes
    now and then and goes on from; `track` shows how far the work is. Nothing here changes the model.
    """

    model: PreTrainedModel
    sites: list[Site]
    sizes: Sizes
    corpus: Corpus
    budget: Budget
    active: float
    scope: Scope = "mlp"
    widths: Widths = "layer"
    steps: int = 600
    batch: int = 4
    calibration: int = 16
    seed: int = 0
    checkpoint: Path | None = None
    track: Track = field(default=silent, compare=False)

    @staticmethod
    def of(
        model: PreTrainedModel,
        corpus: Corpus,
        active: float,
        scope: Scope = "mlp",
        widths: Widths = "layer",
        *,
        steps: int = 600,
        batch: int = 4,
        calibration: int = 16,
        seed: int = 0,
        checkpoint: Path | None = None,
        track: Track = silent,
    ) -> "MoeJob":
        """A job for `model`. `calibration` is the number of windows that training-free parts of a method look at.

        Raises `SettingError` where the budget is no share or cannot be met, `ModelError` where the model is not dense
        or its structure is not known.
        """
        check_ratio(active)
        sizes = Sizes.of(model)
        sizes.room(active, scope)  # refuses a budget that the parts which stay whole exceed
        for name, value in (("steps", steps), ("batch", batch), ("calibration", calibration)):
            if value < 1:
                raise SettingError(f"{name}={value}; use 1 or more")
        return MoeJob(
            model,
            found(model),
            sizes,
            corpus,
            sizes.budget(active, scope),
            active,
            scope,
            widths,
            steps,
            batch,
            calibration,
            seed,
            checkpoint,
            track,
        )

    @property
    def share(self) -> float:
        """The share of the MLPs' weights that may be active, attention kept whole."""
        return self.share_of([site.name for site in self.sites])

    def share_of(self, parts: Collection[str]) -> float:
        """The share of the weights of `parts` that may be active, everything else kept whole."""
        own, counted = self._weights(parts), self.sizes.weights(self.scope)
        return (self.budget.limit - (counted - own)) / own

    def _weights(self, parts: Collection[str]) -> int:
        return sum(self.sizes.parts[name].weights for name in parts)

    def generator(self, purpose: int = 0) -> torch.Generator:
        """Random numbers on the model's device that follow from the seed and `purpose` alone."""
        return torch.Generator(self.model.device).manual_seed(self.seed_of(purpose))

    def seed_of(self, purpose: int) -> int:
        """The seed of those random numbers."""
        return (self.seed * 1_000_003 + purpose) % 2**63

    def calibration_windows(self) -> Int[Tensor, "windows window"]:
        """The windows that training-free methods look at, on the model's device."""
        return self.corpus.first(self.calibration).to(self.model.device)

    def equal_width(self) -> int:
        """The one width of all layers that meets the budget from below, a multiple of 16."""
        widths = self.sizes.uniform_width(self.active, self.scope)
        return min(widths.values())

    def fitted(self, wanted: Mapping[str, float]) -> dict[str, int]:
        """Widths close to `wanted` that use the budget up, in multiples (of 16 channels of an MLP): all wanted widths
        are scaled by one factor, rounded down, and what is left goes to the parts that lost most. Equal where the job
        asks for it; parts that are not wanted stay whole."""
        if self.widths == "equal":
            return dict.fromkeys(wanted, self.equal_width())
        part = {name: self.sizes.parts[name] for name in wanted}
        room = self.share_of(wanted) * self._weights(wanted)
        low, high = 0.0, float(max(one.size for one in part.values())) / max(min(wanted.values()), 1e-6)

        def at(factor: float) -> dict[str, int]:
            return {
                name: round_width(factor * width, part[name].size, part[name].multiple)
                for name, width in wanted.items()
            }

        def spent(widths: Mapping[str, int]) -> int:
            return sum(part[name].unit_weights * width for name, width in widths.items())

        if spent(at(0.0)) > room:
            least, first = spent(at(0.0)) / self._weights(wanted), next(iter(part.values()))
            raise SettingError(
                f"active {self.active:g}: experts of {first.multiple} channels cost {least:.1%} of what can be left out"
            )
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if spent(at(middle)) <= room else (low, middle)
        widths = at(low)
        lost = sorted(widths, key=lambda name: (widths[name] - low * wanted[name]) / part[name].multiple)
        before = {}
        while widths != before:  # what is left may be many steps of a small part
            before = widths
            for name in lost:
                larger = widths | {name: min(widths[name] + part[name].multiple, part[name].size)}
                widths = larger if spent(larger) <= room else widths
        return widths
