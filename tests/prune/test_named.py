"""Networks by name: thrifty's own, and functions of the user's."""

from pathlib import Path

import pytest
import torch

from thrifty.errors import ModelError, SettingError
from thrifty.prune import named

MINE = """
from torch import nn

def net(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))

def fixed():
    return nn.Linear(2, 2)

def broken():
    raise RuntimeError("no weights here")

def number():
    return 7
"""


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `mine_of_prune` in the working folder."""
    (tmp_path / "mine_of_prune.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_same_seed_gives_the_same_weights() -> None:
    one, other, third = (named.model_of("resnet8", 7, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert not torch.equal(one["stem.weight"], third["stem.weight"])
    assert one["classifier.weight"].shape[0] == 7


def test_a_function_gets_the_number_of_classes_where_it_takes_it() -> None:
    assert named.model_of("mine_of_prune:net", 5)[3].out_features == 5
    assert named.model_of("mine_of_prune:fixed", 5).out_features == 2


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("resnet21", SettingError, "did you mean resnet20"),
        ("perceptron", SettingError, "package.module:function"),
        ("nowhere_at_all:net", SettingError, "cannot be imported"),
        ("mine_of_prune:nothing", SettingError, "no function 'nothing'"),
        ("mine_of_prune:broken", ModelError, "RuntimeError: no weights here"),
        ("mine_of_prune:number", ModelError, "must return a torch.nn.Module"),
    ],
)
def test_what_is_no_network_is_refused_in_one_line(name: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        named.model_of(name, 10)


def test_every_own_network_can_be_made() -> None:
    assert {"resnet8", "resnet18", "resnet20", "resnet56"} <= set(named.names())
