"""One mask for all tokens: within layers the same share, across layers the best of all within the budget."""

from dataclasses import replace

import torch

from thrifty.moe import static
from thrifty.moe.job import MoeJob


def scores(job: MoeJob) -> dict[str, torch.Tensor]:
    return {site.name: torch.rand(site.channels) + site.index for site in job.sites}


def test_within_layers_every_layer_keeps_its_best_half(job: MoeJob) -> None:
    one = scores(job)
    for name, kept in static.within_layers(job, one).items():
        assert kept.sum() == 48
        assert one[name][kept[0].bool()].min() >= one[name][~kept[0].bool()].max()


def test_across_layers_the_better_layer_keeps_more_within_the_budget(job: MoeJob) -> None:
    keep = static.across_layers(job, scores(job))
    widths = [int(kept.sum()) for kept in keep.values()]
    assert widths[0] <= widths[1] < widths[2]
    assert job.budget.fits(keep)


def test_across_layers_is_within_layers_where_widths_are_equal(job: MoeJob) -> None:
    one = scores(job)
    keep = static.across_layers(replace(job, widths="equal"), one)
    assert all(torch.equal(kept, static.within_layers(job, one)[name]) for name, kept in keep.items())


def test_standardised_scores_have_mean_zero_and_deviation_one() -> None:
    one = static.standardised(torch.rand(500) * 7 + 3)
    assert one.mean().abs() < 1e-5
    assert (one.std() - 1).abs() < 1e-5
