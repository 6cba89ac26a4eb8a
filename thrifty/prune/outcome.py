"""What came of pruning a network: the small network, and what it is compared with the whole one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from thrifty import catalogue, settings
from thrifty.plan import Plan
from thrifty.prune import evaluate
from thrifty.prune.apply import apply
from thrifty.prune.batches import Batches
from thrifty.prune.cost import Cost
from thrifty.prune.gating import masked
from thrifty.prune.job import PruneJob, example_of


@dataclass(frozen=True)
class Outcome:
    """A plan, the small network that it gives, and its row in a report."""

    plan: Plan
    small: nn.Module
    row: dict[str, Any]


def outcome_of(method: object, plan: Plan, job: PruneJob, seconds: float, batch: int = 64) -> Outcome:
    """Apply a plan to the job's trained network and measure what results.

    `accuracy` is that of the small network on all test images; `max_abs_difference` is between its outputs and those of
    the whole network with what was dropped at 0; `latency_ms` is that of a forward pass of `batch` images.
    """
    cost = Cost.of(job.coupling)
    small = apply(plan, job.model, job.coupling)
    before, after = (float(cost.flops(keep)) for keep in ({}, plan.keep))
    inputs = example_of(job.images)
    with masked(job.model, job.groups, plan.keep):
        difference = evaluate.largest_difference(small, job.model, inputs)
    device_small, device_whole = (one.to(job.device) for one in (small, job.model))
    batches = Batches.of(job.images, batch, job.seed, job.device)
    many = torch.randn(batch, *job.images.shape, device=job.device)
    latency = evaluate.latencies_ms([device_whole, device_small], many)
    row = {
        "method": catalogue.name_of(method),
        "settings": settings.shown(method),
        "images": job.images.name,
        "epochs": job.training.epochs,
        "seed": job.seed,
        "budget": float(job.budget.limit),
        "spent": job.budget.spent(plan.keep),
        "unit": job.budget.unit,
        "limits": [
            {"unit": one.unit, "limit": float(one.limit), "spent": one.spent(plan.keep), "whole": one.spent({})}
            for one in job.budget.each
        ],
        "flops_before": int(before),
        "flops_after": int(after),
        "flops_ratio": after / before,
        "params_before": int(cost.parameters({})),
        "params_after": int(cost.parameters(plan.keep)),
        "activations_before": round(float(cost.activations({}))),
        "activations_after": round(float(cost.activations(plan.keep))),
        "accuracy": evaluate.accuracy(device_small, batches.plain(job.images.test)),
        "test_images": len(job.images.test),
        "max_abs_difference": difference,
        "latency_ms": {"batch": batch, "before": latency[0], "after": latency[1]},
        "seconds": round(seconds, 3),
        "widths": {name: [int(kept.sum()), kept.numel()] for name, kept in plan.keep.items()},
    }
    return Outcome(plan, small, row)
