"""One training of a network from its first step to its last, which can be stopped and gone on with.

A method asks for steps and does its part between them:

    with Run(job, self) as run:
        for step in run.steps(until=0.5):
            ...
        run.cut(keep)
        for step in run.steps():
            ...
        return run.plan()

After `resume`, `steps` begins where the run was stopped, and `keep` holds what had been decided by then.
"""

import contextlib
import copy
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from thrifty.errors import DataError, SettingError
from thrifty.plan import Plan
from thrifty.prune import checkpoint, evaluate
from thrifty.prune.apply import shrink
from thrifty.prune.batches import Batches, memory_order, mixed
from thrifty.prune.gating import zero
from thrifty.prune.job import PruneJob
from thrifty.prune.restore import whole_state
from thrifty.prune.training import WeightStep

_CHECK_EVERY = 50
_HELD_OUT_BATCH = 2500  # few launches


@runtime_checkable
class Stateful(Protocol):
    """What has a state of its own that the run is to keep."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state."""
        ...


@dataclass(frozen=True)
class Cycle:
    """Between which shares of all steps the learning rate rises and falls, and how high, in that of the training."""

    since: float = 0.0
    until: float = 1.0
    peak: float = 1.0


WHOLE = Cycle()


@dataclass
class Step:
    """A step that has been taken: how many there have been, in which epoch, at which rate.

    What the method puts into `facts` at the end of an epoch is noted in the log.
    """

    number: int
    epoch: int
    ends_epoch: bool
    learning_rate: float
    facts: dict[str, Any] = field(default_factory=dict)


class Run:
    """A training of a copy of the job's network, in the state that it is in."""

    def __init__(self, job: PruneJob, method: object) -> None:
        """Begin, or go on with what the folder of the job holds. `method` is named in the plan and in the state."""
        self.job, self.method = job, method
        training = job.training
        self.model = copy.deepcopy(job.model).to(device=job.device).train()
        self.model.to(memory_format=memory_order(job.device))  # pyright: ignore[reportCallIssue]
        self.batches = Batches.of(job.images, training.batch_size, job.seed, job.device, training.cutout)
        self.num_steps = training.epochs * self.batches.num_batches
        self.rate = torch.tensor(training.learning_rate, device=job.device)
        self.optimizer = training.optimizer_of(self.model, self.rate)
        self._weight_step = WeightStep(self.model, self.optimizer, self.batches, training)
        self.holdout, self._rest = self.batches.held_out(job.images.train, training.holdout)
        self.done, self.seconds = 0, 0.0
        self.keep: dict[str, Tensor] | None = None
        self.is_held_out = False
        self._extras: dict[str, Stateful] = {}
        self._extra_states: dict[str, dict[str, Any]] = {}
        self._pool_is_rest = False
        self._is_stopped = False
        self._held_out: list[tuple[Tensor, Tensor]] | None = None
        self._status = "training"
        if job.folder is not None and job.resume:
            self._load(checkpoint.load(job.folder, self._about(), job.device))

    def __enter__(self) -> "Run":
        """Take Ctrl-C as the wish to stop after the step that runs; torch's own random numbers come from the seed."""
        self._exits = contextlib.ExitStack()
        self._exits.enter_context(torch.random.fork_rng())
        torch.manual_seed(mixed(self.job.seed, self.done))
        if self._random is not None:
            torch.set_rng_state(self._random)
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGINT, self._stop)
            self._exits.callback(signal.signal, signal.SIGINT, before)
        self._started = time.perf_counter() - self.seconds
        return self

    def __exit__(self, *_: object) -> None:
        """Give back what was taken."""
        self._exits.close()

    _random: Tensor | None = None
    _has_written: bool = False

    def train(self, until: float = 1.0, cycle: Cycle = WHOLE) -> None:
        """As `steps`, with nothing between them."""
        for _ in self.steps(until, cycle):
            pass

    def steps(self, until: float = 1.0, cycle: Cycle = WHOLE) -> Iterator[Step]:
        """Train up to this share of all steps, and yield after each. The epochs are noted, and the state is kept.

        The learning rate rises and falls once over the shares of the steps that `cycle` tells, to the training's rate
        times its `peak`. Raises `DataError` where the loss is no number any more.
        """
        last = round(until * self.num_steps)
        numbers = range(self.done, last)
        saved = time.monotonic()
        for _ in self.job.track(numbers, lambda: self._status, len(numbers)):
            step = self.step(cycle)
            yield step
            if step.ends_epoch:
                self._note(step)
            wants_save = self._is_stopped or time.monotonic() - saved > self.job.training.save_seconds
            if wants_save:
                self.save()
                saved = time.monotonic()
            if self._is_stopped:
                raise KeyboardInterrupt

    def step(self, cycle: Cycle = WHOLE) -> Step:
        """One step of the weights. `steps` takes many, and looks after the state."""
        epoch, place = divmod(self.done, self.batches.num_batches)
        if place == 0:
            self._pool_is_rest = self.is_held_out
        if place == 0 or self.epoch_draw is None:
            self.epoch_draw = self.batches.draw(epoch, self._rest if self._pool_is_rest else None)
        first, last = (round(share * self.num_steps) for share in (cycle.since, cycle.until))
        rate = cycle.peak * self.job.training.rate_at(self.done - first, last - first, self.batches.size)
        self.rate.fill_(rate)
        size = self.batches.size
        self._weight_step(self.epoch_draw[place * size : (place + 1) * size])
        self.done += 1
        ends_epoch = place + 1 == self.batches.num_batches
        if ends_epoch or self.done % _CHECK_EVERY == 0:
            self._check_finite()
        return Step(self.done, epoch, ends_epoch, rate)

    def hold_out(self) -> None:
        """From the next epoch on the weights do not train on the held-out images."""
        self.is_held_out = True

    def give_back(self) -> None:
        """From the next epoch on the weights train on all images."""
        self.is_held_out = False

    def held_out_batch(self) -> tuple[Tensor, Tensor]:
        """A batch of the held-out images, varied as in training, drawn anew for each step."""
        generator = torch.Generator().manual_seed(mixed(self.job.seed + 1, self.done))
        size = min(self.batches.size, len(self.holdout))
        chosen = self.holdout[torch.randperm(len(self.holdout), generator=generator)[:size]]
        draw = self.batches.varied(chosen, generator)
        if self.job.device.type == "cuda":
            draw = draw.pin_memory()  # so that the copy waits for nothing
        return self.batches.take(draw.to(self.job.device, non_blocking=True))

    def held_out_accuracy(self, model: nn.Module) -> float:
        """The share of the held-out images that a network tells right."""
        if self._held_out is None:
            self._held_out = list(self.batches.plain(self.job.images.train.take(self.holdout), _HELD_OUT_BATCH))
        with self.precision:
            return evaluate.accuracy(model, self._held_out)

    @property
    def precision(self) -> torch.autocast:
        """The autocast in which the network is to be run."""
        return self._weight_step.precision

    def register(self, name: str, one: Stateful) -> None:
        """Keep the state of `one` with that of the run; it takes the kept state where the run goes on."""
        self._extras[name] = one
        if name in self._extra_states:
            one.load_state_dict(self._extra_states[name])

    def cut(self, keep: Mapping[str, Tensor]) -> None:
        """Take all parts out of the network that `keep` does not hold, with their state in the optimiser."""
        if self.keep is not None:
            raise SettingError("the network has been cut already, and is cut only once")
        zero(self.model, self.job.groups, keep, self.optimizer)
        shrink(self.model, self.job.coupling, keep, self.optimizer)
        self.adopt(keep)

    def adopt(self, keep: Mapping[str, Tensor]) -> None:
        """Note that the network has been cut to `keep`."""
        self.keep = {name: kept.detach().cpu() for name, kept in keep.items()}
        self._weight_step.reset()

    def say(self, status: str) -> None:
        """What the progress line shows."""
        self._status = status

    def plan(self) -> Plan:
        """The plan; the trained weights go back into the job's network, with zeros where parts were dropped."""
        keep = self.keep or {group.name: torch.ones(group.size) for group in self.job.groups}
        state = {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        self.job.model.load_state_dict(whole_state(self.job.model, self.job.coupling, keep, state))
        if self.job.folder is not None:
            self.save()
        return Plan(repr(self.method), keep)

    def save(self) -> None:
        """Write the state, whole or not at all; nothing where the job has no folder."""
        if self.job.folder is None:
            return
        self._check_finite()
        self.seconds = time.perf_counter() - self._started
        extras = {name: one.state_dict() for name, one in self._extras.items()}
        self._forget_earlier()
        state = {
            "about": self._about(),
            "done": self.done,
            "seconds": self.seconds,
            "keep": self.keep,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "sums": self._weight_step.sums,
            "held_out": [self.is_held_out, self._pool_is_rest],
            "history": self.job.history,
            "extras": extras or self._extra_states,
        }
        checkpoint.save(self.job.folder, state, self.job.history)

    def _forget_earlier(self) -> None:
        """Only now is there something in the place of what the folder held."""
        if self.job.folder is not None and not self.job.resume and not self._has_written:
            checkpoint.remove(self.job.folder)
        self._has_written = True

    def _load(self, state: dict[str, Any]) -> None:
        if state["keep"] is not None:
            shrink(self.model, self.job.coupling, state["keep"], self.optimizer)
            self.adopt(state["keep"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.done, self.seconds = state["done"], state["seconds"]
        self.job.history[:] = state["history"]
        self._weight_step.sums.copy_(state["sums"])
        self.is_held_out, self._pool_is_rest = state["held_out"]
        self._extra_states, self._random = state["extras"], state["random"]

    def _about(self) -> dict[str, Any]:
        """What must be the same where a run goes on."""
        job, training = self.job, dict(vars(self.job.training))
        for unimportant in ("save_seconds", "form"):
            training.pop(unimportant)
        return {
            "method": repr(self.method),
            "budget": job.keep,
            "training": ", ".join(f"{name}={value}" for name, value in training.items()),
            "seed": job.seed,
            "images": f"{job.images.name}: {len(job.images.train)} of {job.images.shape}",
            "parameters": sum(one.numel() for one in job.model.parameters()),
            "round_to": job.round_to,
            "residual": job.residual,
        }

    epoch_draw: Tensor | None = None
    """What the images of the current epoch are."""

    def _note(self, step: Step) -> None:
        loss, right, count = self._weight_step.sums.tolist()
        self._weight_step.sums.zero_()
        self.seconds = time.perf_counter() - self._started
        line = {
            "epoch": step.epoch + 1,
            "step": step.number,
            "loss": loss / count,
            "accuracy_train": right / count,
            "learning_rate": step.learning_rate,
            "seconds": round(self.seconds, 3),
            **step.facts,
        }
        self.job.history.append(line)
        if self.job.folder is not None:
            self._forget_earlier()
            checkpoint.write_log(self.job.folder, self.job.history)

    def _check_finite(self) -> None:
        if not math.isfinite(loss := float(self._weight_step.sums[0])):
            peak = self.job.training.learning_rate
            raise DataError(
                f"the loss is {loss} after {self.done} of {self.num_steps} steps; use a learning rate below {peak:g}"
                + (f" (what was kept before is in {self.job.folder})" if self.job.folder else "")
            )

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._is_stopped:
            raise KeyboardInterrupt
        self._is_stopped = True
