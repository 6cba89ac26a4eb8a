"""The prune part of `thrifty demo`: a small network learns digits and loses half of its work while it does."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from thrifty import catalogue
from thrifty.progress import Track
from thrifty.prune import images
from thrifty.prune.job import PruneJob
from thrifty.prune.models import ResNet
from thrifty.prune.outcome import outcome_of
from thrifty.prune.report import report
from thrifty.prune.training import Training
from thrifty.prune.unpruned import Unpruned
from thrifty.report import Report, provenance

KEEP = "flops=50%"
TRAINING = Training(epochs=10, batch_size=64, learning_rate=0.1)
METHODS = ("ato", "uniform")


def run(command: str, track: Track, say: Callable[[str], None]) -> Report:
    """Prune while training, beside the whole network and one that is narrower by the same share everywhere."""
    start = time.perf_counter()
    found = images.load("digits")
    say(f"a network of 14 layers and {len(found.train):,} handwritten digits; finding what can go")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResNet([2, 2, 2], [16, 32, 64], len(found.classes))
    first = PruneJob.of(network, found, KEEP, TRAINING, track=track)
    channels = sum(group.size for group in first.groups)
    say(f"{channels} channels in {len(first.groups)} groups; the budget is half of the work")
    rows: list[dict[str, Any]] = []
    histories = []
    for method in (*(catalogue.find("prune", name)() for name in METHODS), Unpruned()):
        job = replace(first, model=copy.deepcopy(first.model), history=[])
        name = catalogue.name_of(method)
        say(f"training: {name}")
        began = time.perf_counter()
        plan = method.plan(job)
        rows.append(outcome_of(method, plan, job, time.perf_counter() - began).row)
        histories.append(job.history)
    title = "thrifty demo: a network learns digits and keeps half of its work"
    notes = ["so small a task tells little about accuracy; it shows the steps: search, shrink, cut, train on"]
    return report(title, rows, histories[0], notes, provenance(command, time.perf_counter() - start))
