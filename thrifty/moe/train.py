"""The training loop: steps that can be interrupted, and that several processes share.

Only what is learnt is in the optimiser and in the checkpoint; the language model is frozen. Under `accelerate launch`
each process takes its part of every batch and the gradients are averaged, so the command is the same everywhere.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from thrifty.errors import DataError, SettingError
from thrifty.files import replacing
from thrifty.progress import Track

_FORMAT = "thrifty moe checkpoint 1"


@dataclass(frozen=True)
class Recipe:
    """How the learnt tensors move: AdamW, a short warm-up, then the rate falls along a cosine to `final_share` of it.

    `every` steps a checkpoint is written; `clip` bounds the norm of the gradient (0: not at all).
    """

    steps: int
    rate: float
    decay: float = 0.05
    warm_up: float = 0.02
    final_share: float = 0.05
    clip: float = 0.0
    every: int = 50

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = max(1, round(self.warm_up * self.steps))
        if step < rising:
            return self.rate * (step + 1) / rising
        share = (step - rising) / max(1, self.steps - rising)
        return self.rate * (self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * share)))


@dataclass(frozen=True)
class Team:
    """The processes that train together: how many, which this one is (0 is the one that writes files), and whether
    they share the frozen model (FSDP) instead of each having it whole."""

    size: int = 1
    rank: int = 0
    is_sharing: bool = False

    @staticmethod
    def here() -> "Team":
        """What `accelerate launch` (or torchrun) has set up; one process where it has not."""
        import os

        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Team()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        is_sharing = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"  # as accelerate itself asks
        return Team(state.num_processes, state.process_index, is_sharing)

    def part(self, batch: list[Any]) -> list[Any]:
        """This process's part of a batch. Raises `SettingError` where it cannot be shared out evenly."""
        if len(batch) % self.size:
            raise SettingError(f"a batch of {len(batch)} windows cannot be shared by {self.size} processes evenly")
        share = len(batch) // self.size
        return batch[self.rank * share : (self.rank + 1) * share]

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, mean in zip(tensors, (flat / self.size).split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def agree(self, tensors: list[Tensor]) -> None:
        """Give every process the tensors of the first."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)


Gradients = Callable[[int], dict[str, Tensor]]
"""Called with the number of a step; leaves the gradients in the tensors' `grad`, and gives facts to record: scalars,
not yet read from the device."""


def train(
    tensors: Mapping[str, Tensor],
    gradients: Gradients,
    recipe: Recipe,
    *,
    checkpoint: Path | None,
    identity: str,
    track: Track,
    team: Team,
) -> list[dict[str, float]]:
    """Move those `tensors` that require a gradient against it; the others are only kept in the checkpoint.

    Goes on from `checkpoint` where that file is there and `identity`, a text that tells one training from another, is
    the same; the tensors then become bit for bit what an uninterrupted training gives. Returns the recorded facts.
    Raises `DataError` for a checkpoint that is damaged or of another training.
    """
    learnt = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    is_fused = all(tensor.is_cuda for tensor in learnt.values())
    optimizer = torch.optim.AdamW(list(learnt.values()), recipe.rate, weight_decay=recipe.decay, fused=is_fused)
    start, history = 0, list[dict[str, float]]()
    pending: list[tuple[int, dict[str, Tensor]]] = []
    if checkpoint is not None and checkpoint.exists():
        start, history = _restore(checkpoint, identity, tensors, learnt, optimizer)
    team.agree([tensor.detach() for tensor in tensors.values()])
    for step in track(range(start, recipe.steps), "training", recipe.steps - start):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        facts = gradients(step)
        team.average([tensor.grad for tensor in learnt.values() if tensor.grad is not None])
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(list(learnt.values()), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()  # to None: what gets no gradient at a step does not move at it
        pending.append((step, facts))
        if checkpoint is not None and (step + 1) % recipe.every == 0 and step + 1 < recipe.steps and team.rank == 0:
            history, pending = _recorded(history, pending), []
            _store(checkpoint, identity, tensors, learnt, optimizer, step + 1, history)
    return _recorded(history, pending)


def _recorded(history: list[dict[str, float]], pending: list[tuple[int, dict[str, Tensor]]]) -> list[dict[str, float]]:
    """Read the facts of the last steps; not at every step, for which a GPU would have to wait."""
    return history + [{"step": float(step)} | {n: float(v) for n, v in facts.items()} for step, facts in pending]


def _store(
    path: Path,
    identity: str,
    tensors: Mapping[str, Tensor],
    learnt: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
    history: list[dict[str, float]],
) -> None:
    content = {f"tensor/{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in learnt.items():
        for kind, value in optimizer.state[tensor].items():
            content[f"{kind}/{name}"] = value.detach().cpu().contiguous()
    about = {"format": _FORMAT, "identity": identity, "step": str(step), "history": json.dumps(history)}
    with replacing(path) as temporary:
        save_file(content, temporary, metadata=about)


def _restore(
    path: Path,
    identity: str,
    tensors: Mapping[str, Tensor],
    learnt: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, list[dict[str, float]]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no dictionary
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as a checkpoint ({error}); remove it to start over") from error
    if about.get("format") != _FORMAT:
        raise DataError(f"{path} is no checkpoint of a training; name another file")
    if about["identity"] != identity:
        raise DataError(
            f"{path} is a checkpoint of another training ({about['identity']}); remove it, or repeat that command"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(content[f"tensor/{name}"])
    for name, tensor in learnt.items():
        kinds = ("step", "exp_avg", "exp_avg_sq")
        state = {kind: content[f"{kind}/{name}"] for kind in kinds if f"{kind}/{name}" in content}
        optimizer.state[tensor] = {kind: value if kind == "step" else value.to(tensor) for kind, value in state.items()}
    return int(about["step"]), json.loads(about["history"])
