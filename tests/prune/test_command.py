"""`thrifty prune`: what it writes, how it goes on, and what it refuses in one line."""

import json
from pathlib import Path

import pytest
import torch

from thrifty.plan import Plan
from thrifty.prune.compact import load
from thrifty.prune.named import model_of

MINE = """
import torch
from torch import nn

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x

def branching():
    return Branching()

def small(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, num_classes),
    )
"""
SHORT = ("--epochs", 1, "--train", "batch_size=256", "--device", "cpu")


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of the user's."""
    pytest.importorskip("sklearn")
    (tmp_path / "mine_for_prune.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_pruned_network_comes_with_plan_log_report_and_state(thrifty, tmp_path: Path) -> None:
    status, out, error = thrifty("mine_for_prune:small", "--epochs", 3, "--train", "batch_size=128", "--keep", "60%",
                                 "--device", "cpu", "-o", "out", "--json", "out.json")  # fmt: skip
    assert status == 0, error
    assert "8 channels in 1 groups may go" in error
    assert "report:" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "kept.json", "plan.safetensors", "log.jsonl", "report.html", "state.pt"} <= names
    found = json.loads((tmp_path / "out.json").read_text())
    asked = ("flops_before", "flops_after", "flops_ratio", "params_before", "params_after", "accuracy",
             "max_abs_difference", "latency_ms", "seconds")  # fmt: skip
    assert all(found[name] is not None for name in asked)
    assert found["flops_ratio"] <= 0.6
    assert found["max_abs_difference"] < 1e-5
    small = load(model_of("mine_for_prune:small", 10), tmp_path / "out")
    assert sum(one.numel() for one in small.parameters()) == found["params_after"]
    plan = Plan.load(tmp_path / "out" / "plan.safetensors")
    assert small[0].out_channels == int(plan.keep["0"].sum())
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_a_finished_run_that_is_resumed_tells_the_same(thrifty, tmp_path: Path) -> None:
    words = ("mine_for_prune:small", *SHORT, "--keep", "70%", "--method", "uniform", "-o", "out", "--json", "out.json")
    assert thrifty(*words)[0] == 0
    first = json.loads((tmp_path / "out.json").read_text())
    assert thrifty(*words, "--resume")[0] == 0
    again = json.loads((tmp_path / "out.json").read_text())
    for name in ("accuracy", "widths", "flops_after", "epochs"):
        assert again[name] == first[name]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("resnet8", "--keep", "flops=0%"), "budget"),
        (("resnet8", "--keep", "flops=150%"), "budget"),
        (("resnet8", "--keep", "flops=2%"), "cannot go below"),
        (("resnet7",), "did you mean resnet8"),
        (("mine_for_prune:branching",), "cannot be captured"),
        (("resnet8", "--data", "nowhere"), "no folder 'nowhere'"),
        (("resnet8", "--data", "empty"), "holds no images"),
        (("resnet8", "--method", "atoo"), "did you mean ato"),
        (("resnet8", "--set", "speed=3"), "no setting speed"),
        (("resnet8", "--set", "search=0.01"), "must rise"),
        (("resnet8", "--train", "form=fast"), "eager, graph"),
        (("resnet8", "--train", "epochs=3"), "give one of them"),
        (("resnet8", "--resume"), "without --resume"),
        (("resnet8", "--method", "uniform", "--train", "learning_rate=1e12"), "use a learning rate below"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(thrifty, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    (tmp_path / "empty").mkdir()
    status, _, error = thrifty(*words, *SHORT, "-o", "out")
    assert status == 2
    assert said in error.strip().splitlines()[-1]
    assert error.strip().splitlines()[-1].startswith("thrifty: ")


def test_what_is_refused_leaves_no_folder_and_an_earlier_run_as_it_was(thrifty, tmp_path: Path) -> None:
    assert thrifty("resnet8", "--keep", "flops=1%", *SHORT, "-o", "out")[0] == 2
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "state.pt").write_bytes(b"earlier")
    assert thrifty("resnet8", "--keep", "flops=1%", *SHORT, "-o", "out", "--overwrite")[0] == 2
    assert (tmp_path / "out" / "state.pt").read_bytes() == b"earlier"
    status, _, error = thrifty("resnet8", "--epochs", 1, "--train", "batch_size=2000", "-o", "out", "--overwrite")
    assert status == 2
    assert "too few" in error
    assert (tmp_path / "out" / "state.pt").read_bytes() == b"earlier"


def test_a_new_run_leaves_nothing_of_an_earlier_one(thrifty, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("state.pt", "model.onnx", "kept.json"):
        (tmp_path / "out" / name).write_bytes(b"earlier")
    words = ("mine_for_prune:small", *SHORT, "--method", "uniform", "-o", "out", "--overwrite")
    assert thrifty(*words)[0] == 0
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert (tmp_path / "out" / "kept.json").read_bytes() != b"earlier"


@pytest.mark.parametrize(
    ("words", "said"), [(("--round-to", 4), "round_to: 1 then, 4 now"), (("--residual",), "residual")]
)
def test_a_run_goes_on_with_what_it_was_asked_for_only(thrifty, words: tuple, said: str) -> None:
    start = ("resnet8", *SHORT, "--method", "uniform", "-o", "out")
    assert thrifty(*start)[0] == 0
    status, _, error = thrifty(*start, *words, "--resume")
    assert status == 2
    assert said in error


def test_several_limits_are_told_before_and_after(thrifty, tmp_path: Path) -> None:
    words = ("mine_for_prune:small", *SHORT, "--keep", "params=80%,activations=70%", "--method", "uniform", "-o", "out")
    status, out, error = thrifty(*words, "--json", "out.json")
    assert status == 0, error
    assert "parameters -> " in error
    assert "activations -> " in error
    assert "parameters are used" in out
    assert "activations are used" in out
    limits = json.loads((tmp_path / "out.json").read_text())["limits"]
    assert [one["unit"] for one in limits] == ["parameters", "activations"]
    assert all(one["spent"] <= one["limit"] < one["whole"] for one in limits)


@pytest.mark.parametrize(("round_to", "is_told"), [(8, True), (1, False)])
def test_coarse_steps_that_leave_little_to_choose_are_told(thrifty, round_to: int, is_told: bool) -> None:
    words = (*SHORT, "--keep", "50%", "--method", "uniform", "-o", "out", "--round-to", round_to)
    status, _, error = thrifty("resnet8", *words)
    assert status == 0, error
    assert ("leaves more to choose" in error) is is_told


def test_a_folder_that_is_in_use_is_left_alone(thrifty, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    status, _, error = thrifty("resnet8", *SHORT, "-o", "out")
    assert status == 2
    assert "already holds files" in error
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"thesis.txt"}
    (tmp_path / "out" / "state.pt").write_bytes(b"")
    assert "add --resume to go on" in thrifty("resnet8", *SHORT, "-o", "out")[2]


def test_ctrl_c_tells_how_to_go_on(thrifty, monkeypatch: pytest.MonkeyPatch) -> None:
    from thrifty.prune.methods.uniform import Uniform

    def stopped(self, job) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Uniform, "plan", stopped)
    status, _, error = thrifty("mine_for_prune:small", *SHORT, "--method", "uniform", "-o", "out")
    assert status == 130
    assert "the state is in out; add --resume to go on" in error
