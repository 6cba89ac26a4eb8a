"""What is given when a network is to become smaller: the network, the images, what may remain, how long to train."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.budget import Budget
from thrifty.errors import ModelError
from thrifty.progress import Track, silent
from thrifty.prune.cost import budget_of, steps_of
from thrifty.prune.coupling import Coupling, Group, coupling_of
from thrifty.prune.evaluate import evaluating
from thrifty.prune.images import Images
from thrifty.prune.repair import repair
from thrifty.prune.training import Training


@dataclass(frozen=True)
class PruneJob:
    """A network to be trained on images within `budget`. A method leaves its trained weights in `model`, in which what
    the plan drops is exactly 0; `apply` then gives the small network.

    `keep` is the budget as it was asked for. `folder` takes the state of the run and its log; with `resume` it goes on
    with what it holds. `history` is filled with what is noted of each epoch.
    """

    model: nn.Module
    images: Images
    coupling: Coupling
    budget: Budget
    keep: str
    training: Training = field(default_factory=Training)
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    round_to: int = 1
    residual: bool = False
    folder: Path | None = None
    resume: bool = False
    track: Track = silent
    history: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def of(
        model: nn.Module,
        images: Images,
        keep: str = "flops=50%",
        training: Training | None = None,
        *,
        seed: int = 0,
        device: torch.device | None = None,
        round_to: int = 1,
        residual: bool = False,
        folder: Path | None = None,
        resume: bool = False,
        track: Track = silent,
    ) -> "PruneJob":
        """A job for `model`: finds what can go and what it costs.

        `keep` is a budget such as `flops=45%` or `params=2M`. Raises `ModelError` where the network cannot be captured
        or does not give a number for each class, `SettingError` where the budget is none or cannot be reached.
        """
        coupling = coupling_of(model, (example_of(images),))
        _check_output(model, images)
        device = device or torch.device("cpu")
        budget = budget_of(keep, coupling, residual=residual, round_to=round_to, model=model, device=device)
        return PruneJob(
            model,
            images,
            coupling,
            budget,
            keep,
            training or Training(),
            seed,
            device,
            round_to,
            residual,
            folder,
            resume,
            track,
        )

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that may lose parts."""
        return self.coupling.prunable(residual=self.residual)

    @property
    def weights(self) -> dict[str, Float[Tensor, "parts weights"]]:
        """What makes the parts of each group, a row for each part, as the model has it now."""
        return weights_of(self.model, self.groups)

    def best(self, scores: Mapping[str, Tensor], limit: float | None = None) -> dict[str, Tensor]:
        """The parts to keep where those with the highest scores stay, all groups in one ranking, within the budget (or
        within another `limit` of the same cost)."""
        budget = self.budget if limit is None else replace(self.budget, limit=limit)
        return best(scores, budget, self.groups, self.round_to)


def best(
    scores: Mapping[str, Tensor], budget: Budget, groups: Sequence[Group], round_to: int = 1
) -> dict[str, Float[Tensor, " parts"]]:
    """The parts with the highest scores that fit, in widths that are multiples of `round_to`, as close to the limit as
    whole parts come."""
    scores = {name: score.detach().cpu() for name, score in scores.items()}
    return repair(scores, budget.best(scores), budget, steps_of(groups, round_to))


def weights_of(model: nn.Module, groups: Sequence[Group]) -> dict[str, Float[Tensor, "parts weights"]]:
    """The weights of at least two dimensions that make each group, a row for each part."""
    tensors = dict(model.named_parameters())
    found = {}
    for group in groups:
        rows = [
            tensors[one.tensor].detach().movedim(one.dim, 0)[one.index.to(tensors[one.tensor].device)]
            for one in group.slices
            if one.role == "makes" and one.tensor in tensors and tensors[one.tensor].dim() > 1
        ]
        found[group.name] = torch.cat([row.reshape(group.size, -1) for row in rows], 1)
    return found


def ranks_within(scores: Mapping[str, Tensor]) -> dict[str, Float[Tensor, " parts"]]:
    """Each score as the share of its own group that it surpasses, so that every group loses the same share."""
    found = {}
    for name, score in scores.items():
        order = score.argsort(stable=True, descending=True).argsort()
        found[name] = 1 - (order.double() + 0.5) / len(order)
    return found


def _check_output(model: nn.Module, images: Images) -> None:
    """Better now than after the first batch."""
    place = next(model.parameters())
    with evaluating(model), torch.no_grad():
        output = model(example_of(images).to(place.device, place.dtype))
    found, name, count = type(output).__name__, type(model).__name__, len(images.classes)
    if not isinstance(output, Tensor):
        raise ModelError(f"{name} gives a {found}; a tensor (images, classes) is needed: return the logits alone")
    if output.ndim != 2 or output.shape[1] < count:
        shape = tuple(output.shape[1:])
        raise ModelError(f"{name} gives {shape} for an image; {images.name} has {count} classes: give as many logits")


def example_of(images: Images) -> Float[Tensor, "images colours height width"]:
    """Two images of noise, in the shape of the data."""
    return torch.randn(2, *images.shape, generator=torch.Generator().manual_seed(0))
