"""Small networks and few images for the tests of pruning."""

import copy
import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from thrifty.prune import images
from thrifty.prune.images import Images
from thrifty.prune.job import PruneJob
from thrifty.prune.models import ResNet
from thrifty.prune.training import Training

sys.path.insert(0, str(Path(__file__).parent))  # so that the tests find the zoo of models beside them

QUICK = Training(epochs=3, batch_size=32, learning_rate=0.2, holdout=0.1, save_seconds=1e9)


@pytest.fixture(scope="session")
def few_digits() -> Images:
    """320 digits to train on, all 359 to test on."""
    pytest.importorskip("sklearn")
    whole = images.load("digits")
    return replace(whole, train=whole.train.take(torch.arange(320)))


@pytest.fixture(scope="session")
def made_job(few_digits: Images) -> PruneJob:
    """A network of two blocks, to be cut to half its FLOPs; do not train it."""
    torch.manual_seed(0)
    return PruneJob.of(ResNet([1, 1], [8, 12]), few_digits, "flops=50%", QUICK)


@pytest.fixture
def job(made_job: PruneJob) -> PruneJob:
    """As `made_job`, with a network of its own."""
    return fresh(made_job)


def fresh(job: PruneJob, **changes: Any) -> PruneJob:
    """The job with a network as it was before any training, nothing noted, and these changes."""
    return replace(job, **{"model": copy.deepcopy(job.model), "history": []} | changes)


@pytest.fixture
def thrifty(command_line):
    """Run `thrifty prune ...`; return status, stdout with single spaces between words, and stderr."""
    return functools.partial(command_line, "prune")
