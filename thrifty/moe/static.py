"""One mask for all tokens: the channels with the highest scores, layer by layer or across layers."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.moe.job import MoeJob
from thrifty.moe.learnt import top

Scores = Mapping[str, Float[Tensor, " _"]]


def within_layers(job: MoeJob, scores: Scores) -> dict[str, Float[Tensor, "1 _"]]:
    """The same share of every layer."""
    widths = job.sizes.uniform_width(job.active, job.scope)
    return {name: top(one[None].float().cpu(), widths[name]) for name, one in scores.items()}


def across_layers(job: MoeJob, scores: Scores) -> dict[str, Float[Tensor, "1 _"]]:
    """All channels in one ranking, each layer's width then rounded to a multiple of 16 within the budget.

    Where the job wants equal widths this is `within_layers`.
    """
    if job.widths == "equal":
        return within_layers(job, scores)
    flat = torch.cat([one.flatten() for one in scores.values()]).float().cpu()
    edge = flat.sort(descending=True).values[max(0, round(job.share * len(flat)) - 1)]
    widths = job.fitted({name: float((one.float().cpu() >= edge).sum()) for name, one in scores.items()})
    return {name: top(one[None].float().cpu(), widths[name]) for name, one in scores.items()}


def standardised(scores: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    """Scores of one layer with mean 0 and standard deviation 1, so that layers compare."""
    return (scores - scores.mean()) / scores.std().clamp_min(1e-12)
