"""How the weights are trained: the settings, the optimiser, and one step in the form that suits the device."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.prune.batches import Batches, Draw
from thrifty.replay import Replay


@dataclass(frozen=True)
class Training:
    """The same for every method, so that they can be compared.

    `learning_rate` is that of a batch of 128 and grows with `batch_size`; it rises over the first `rising_epochs` and
    falls as a cosine to 0. `cutout` is the side, in pixels, of the square that each image misses. `form` says how a
    step is run: `eager`; `graph`, replayed from a CUDA graph, for networks of many small kernels; `compiled` by
    torch.compile; or `compiled_graph`, both. `holdout` is the share of the training images that a controller learns
    from and weights do not, until the decision is made.
    """

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 0.1
    rising_epochs: float = 5.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    cutout: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    form: Literal["eager", "graph", "compiled", "compiled_graph"] = "eager"
    holdout: float = 0.05
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Refuse values that make no training."""
        settings.check(self)
        if self.epochs < 1 or self.batch_size < 1:
            raise SettingError(f"{self.epochs} epochs of batches of {self.batch_size}: both must be at least 1")
        if self.cutout < 0:
            raise SettingError(f"cutout={self.cutout}: use 0, for none, or the side of a square in pixels")
        if not 0 < self.holdout < 1:
            raise SettingError(f"holdout={self.holdout:g}: use a share above 0 and below 1, such as 0.05")

    @property
    def is_replayed(self) -> bool:
        """Whether steps are replayed from a CUDA graph where there is a GPU."""
        return self.form.endswith("graph")

    def rate_at(self, step: int, num_steps: int, batch_size: int) -> float:
        """The learning rate of this step of so many: linear up, then a cosine down to 0 after the last."""
        peak = self.learning_rate * batch_size / 128
        rising = min(self.rising_epochs / self.epochs, 0.2) * num_steps
        if step < rising:
            return peak * (step + 1) / (rising + 1)
        return peak * (1 + math.cos(math.pi * (step - rising) / (num_steps - rising))) / 2

    def optimizer_of(self, model: nn.Module, rate: Tensor) -> torch.optim.Optimizer:
        """The optimiser of all parameters; it reads its learning rate from the tensor `rate`."""
        if self.optimizer == "adamw":
            is_cuda = rate.device.type == "cuda"
            return torch.optim.AdamW(
                model.parameters(), rate, weight_decay=self.weight_decay, fused=True, capturable=is_cuda
            )
        return torch.optim.SGD(
            model.parameters(),
            rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
            fused=True,
        )


class WeightStep:
    """One step of the weights on one batch; `sums` gathers the loss, the right answers and the number of images."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, training: Training
    ) -> None:
        """Prepare; the first call is the first step."""
        self.model, self.optimizer, self.batches, self.training = model, optimizer, batches, training
        self.device = batches.labels.device
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=training.label_smoothing)
        self.reset()

    def reset(self) -> None:
        """Forget all that depends on the shapes of the network, which have changed."""
        self._replay = Replay(self._step, self.device)
        self._forward = self.model
        if self.training.form.startswith("compiled"):
            torch._dynamo.reset()
            self._forward = torch.compile(self.model, dynamic=False)

    @property
    def precision(self) -> torch.autocast:
        """The autocast in which the network is to be run."""
        is_low = self.training.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_low)

    def __call__(self, draw: Draw) -> None:
        """Train on one batch."""
        (self._replay if self.training.is_replayed else self._step)(draw)

    def _step(self, draw: Draw) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        inputs, labels = self.batches.take(draw)
        with self.precision:
            logits = self._forward(inputs)
            loss = self.criterion(logits, labels)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            right = (logits.argmax(1) == labels).sum()
            self.sums += torch.stack([loss.double() * len(labels), right.double(), torch.full_like(right, len(labels))])


def device_of(name: str) -> torch.device:
    """The device called `auto` (CUDA where there is a GPU), `cpu`, `cuda`, `cuda:1`, ...

    Raises `SettingError` where there is none such.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingError(f"there is no device {name!r}; use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingError(f"device {name}: torch finds {torch.cuda.device_count()} CUDA GPUs here; use cpu")
    return device
