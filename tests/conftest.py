"""Every test runs with the shapes in signatures checked, from the same seed, and without a crowd of threads."""

import os
import random

import pytest
from jaxtyping import install_import_hook

install_import_hook("thrifty", "beartype.beartype")  # before anything of thrifty is imported

SEED = 0


def pytest_configure() -> None:
    """Let each worker of pytest-xdist use one thread; together they use all cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same seeds."""
    import numpy
    import torch

    random.seed(SEED)
    numpy.random.seed(SEED)
    torch.manual_seed(SEED)
