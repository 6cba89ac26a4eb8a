"""Every test runs with the shapes in signatures checked, from the same seed, and without a crowd of threads."""

import os
import random
import sys

import pytest
from jaxtyping import install_import_hook

install_import_hook("thrifty", "beartype.beartype")  # before anything of thrifty is imported

SEED = 0


def pytest_configure() -> None:
    """Use one thread: small products take up to a hundred times longer where threads wait for each other on busy cores,
    and the workers of pytest-xdist use all cores together."""
    import hypothesis
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    hypothesis.settings.register_profile("patient", deadline=None)  # busy cores and kernels that are compiled once
    hypothesis.settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same seeds."""
    import numpy
    import torch

    random.seed(SEED)
    numpy.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `thrifty ...`; return status, stdout with single spaces between words, and stderr."""
    from thrifty import cli

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["thrifty", *map(str, words)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, error = capsys.readouterr()
        return status, " ".join(out.split()), error

    return run


@pytest.fixture
def no_waiting():
    """A context that refuses what would make a CPU wait for a GPU, which a CUDA graph cannot hold."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoWaiting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function._schema.name
            waits = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
            assert name not in waits, name
            return function(*args, **(kwargs or {}))

    return NoWaiting()
