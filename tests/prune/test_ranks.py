"""Several processes: the same mask on every rank, under DDP; models that are spread over ranks are refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from thrifty.errors import SettingError
from thrifty.prune import ranks

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from pathlib import Path
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from thrifty.prune.methods.ato import Ato
from thrifty.prune.models import ResNet

torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
model = DistributedDataParallel(ResNet([1, 1], [8, 12]))
optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
example = torch.randn(2, 3, 8, 8)
pruning = Ato().loop(model, optimizer, (example,), keep="flops=50%", num_steps=30)
chance = torch.Generator().manual_seed(rank)  # each rank sees images of its own
cuts = 0
for _ in range(30):
    x, y = torch.randn(16, 3, 8, 8, generator=chance), torch.randint(0, 10, (16,), generator=chance)
    cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    if pruning.wants_controller_step:
        pruning.controller_step(torch.randn(16, 3, 8, 8, generator=chance), y)
    if pruning.after_step():
        model, cuts = pruning.model, cuts + 1
    pruning.epoch_end()
assert cuts == 1 and isinstance(model, DistributedDataParallel)
torch.save([pruning.mask, model.module.state_dict(), pruning.search.state_dict()["controller"]], folder / f"{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_every_rank_decides_the_same_and_the_weights_stay_equal(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), tmp_path], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error[-2000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one if "running" not in name)
    assert all(kept.sum() > 0 for kept in first[0].values())


def test_a_model_that_is_spread_over_ranks_is_refused() -> None:
    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(SettingError, match=r"FSDP.*DistributedDataParallel"):
        ranks.inner(nn.Sequential(FullyShardedDataParallel()))


def test_copies_of_a_network_in_one_process_are_refused() -> None:
    with pytest.raises(SettingError, match="DataParallel cannot be pruned"):
        ranks.inner(nn.DataParallel(nn.Linear(2, 2)))


def test_with_one_process_nothing_happens() -> None:
    tensor = torch.randn(3)
    assert torch.equal(ranks.mean([tensor])[0], tensor)
    assert ranks.of_first(tensor) is tensor
    model = nn.Linear(2, 2)
    assert ranks.inner(model) is model
    assert ranks.rewrapped(model) is model
