"""The Lightning callback: the network becomes small while Lightning trains it."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from thrifty.errors import SettingError
from thrifty.prune.methods.ato import Ato
from thrifty.prune.models import ResNet

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: pip install lightning")


class Digits(lightning.LightningModule):
    """A network as an attribute, a loss, an optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.net: nn.Module = ResNet([1, 1], [8, 12])

    def training_step(self, batch, number) -> torch.Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def loader(count: int) -> DataLoader:
    return DataLoader(TensorDataset(torch.randn(count, 3, 8, 8), torch.randint(0, 10, (count,))), 16)


def trained(callback, tmp_path, **settings) -> Digits:
    """A module after three epochs of eight batches with this callback."""
    model = Digits()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, default_root_dir=tmp_path, callbacks=[callback], **quiet, **settings
    )
    trainer.fit(model, loader(128))
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gathered", [1, 2])
def test_the_network_is_small_when_lightning_has_trained_it(tmp_path, gathered: int) -> None:
    from thrifty.prune.lightning import Pruning

    callback = Pruning(Ato(), "net", (torch.randn(2, 3, 8, 8),), loader(32), keep="params=50%")
    whole = sum(one.numel() for one in Digits().net.parameters())
    model = trained(callback, tmp_path, accumulate_grad_batches=gathered)
    assert callback.loop.is_cut
    assert callback.loop.done == callback.loop.num_steps == 24 // gathered
    assert sum(one.numel() for one in model.net.parameters()) <= whole / 2


def test_no_held_out_images_are_refused() -> None:
    from thrifty.prune.lightning import Pruning

    with pytest.raises(SettingError, match="no held-out images"):
        Pruning(Ato(), "net", (), [])._next()


def test_held_out_batches_begin_again_after_the_last() -> None:
    from thrifty.prune.lightning import Pruning

    callback = Pruning(Ato(), "net", (), [(1, 1), (2, 2)])
    assert [callback._next() for _ in range(5)] == [(1, 1), (2, 2), (1, 1), (2, 2), (1, 1)]
