"""ATO in a Lightning training: one callback.

    trainer = Trainer(max_epochs=100, callbacks=[Pruning(Ato(), "net", example, held_out, keep="flops=45%")])

`held_out` is what a `DataLoader` gives, batches of inputs and targets that the weights do not train on. The network is
an attribute of the LightningModule ("net" above), and the module has one optimiser. On several devices Lightning holds
wrappers of its own that cannot be made anew while it trains, so there the callback refuses; use `Ato().loop` in a loop
of your own. A checkpoint that Lightning takes after the cut fits the small network only.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.functional import cross_entropy

from thrifty.errors import SettingError
from thrifty.prune.loop import Criterion, Loop


class Pruning(Callback):
    """Calls ATO's loop where Lightning has taken a step and where an epoch ends."""

    def __init__(
        self,
        method: Any,
        network: str,
        example: tuple[Any, ...],
        held_out: Iterable[Sequence[Any]],
        keep: str = "flops=50%",
        criterion: Criterion = cross_entropy,
    ) -> None:
        """`method` is an `Ato`; `network` names the attribute that is pruned; `example` are inputs of it."""
        self.method, self.network, self.example = method, network, example
        self.held_out, self.keep, self.criterion = held_out, keep, criterion
        self.loop: Loop | None = None
        self._batches: Iterator[Sequence[Any]] = iter(())
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what can go. Raises `SettingError` on several devices or with several optimisers."""
        if trainer.world_size > 1 or len(trainer.optimizers) != 1:
            raise SettingError(
                f"the callback prunes on one device with one optimiser; here are {trainer.world_size} devices and "
                f"{len(trainer.optimizers)} optimisers: use Ato().loop in a loop of your own"
            )
        num_steps = int(trainer.estimated_stepping_batches)
        if num_steps < 0:
            raise SettingError("the number of steps is not known; give the Trainer max_epochs or max_steps")
        model, example = getattr(pl_module, self.network), tuple(one.to(pl_module.device) for one in self.example)
        optimizer = trainer.optimizers[0]
        self.loop = self.method.loop(model, optimizer, example, self.keep, num_steps, criterion=self.criterion)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step has been taken, unless gradients are being gathered."""
        if self.loop is None or trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        if self.loop.wants_controller_step:
            inputs, targets = (one.to(pl_module.device) for one in self._next())
            with trainer.precision_plugin.forward_context():
                self.loop.controller_step(inputs, targets)
        self.loop.after_step()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what would be kept, and the budget."""
        if self.loop is not None:
            facts = self.loop.epoch_end()
            pl_module.log_dict({name: float(facts[name]) for name in ("kept", "target")})

    def _next(self) -> Sequence[Any]:
        """The next held-out batch, from the first again after the last."""
        for batch in self._batches:
            return batch
        self._batches = iter(self.held_out)
        for batch in self._batches:
            return batch
        raise SettingError("there are no held-out images for the controller to learn from; give some as held_out")
