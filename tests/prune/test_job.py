"""A job knows what can go, what it costs, and which parts are best."""

from collections.abc import Callable

import pytest
import torch

from thrifty.errors import ModelError, SettingError
from thrifty.prune.job import PruneJob, ranks_within, weights_of
from thrifty.prune.models import ResNet


def test_weights_are_rows_of_what_makes_each_part(made_job: PruneJob) -> None:
    weights = made_job.weights
    assert weights.keys() == {group.name for group in made_job.groups}
    for group in made_job.groups:
        module = made_job.model.get_submodule(group.name)
        assert torch.equal(weights[group.name], module.weight.flatten(1))


def test_the_best_parts_fit_and_are_those_with_the_highest_scores(made_job: PruneJob) -> None:
    scores = {group.name: torch.rand(group.size) for group in made_job.groups}
    keep = made_job.best(scores)
    assert made_job.budget.fits(keep)
    for name, kept in keep.items():
        if 0 < kept.sum() < len(kept):
            assert scores[name][kept > 0].min() > scores[name][kept == 0].max()
    assert made_job.budget.spent(made_job.best(scores, made_job.budget.limit / 1.3)) < made_job.budget.spent(keep)


def test_ranks_take_the_same_share_from_every_group() -> None:
    ranks = ranks_within({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([1.0, 2.0, 3.0, 4.0])})
    assert ranks["a"].tolist() == [0.75, 0.25]
    assert ranks["b"].tolist() == [0.125, 0.375, 0.625, 0.875]


@pytest.mark.parametrize("keep", ["flops=0%", "flops=150%", "flops=1%", "watts=3"])
def test_a_budget_that_cannot_be_is_refused_before_any_training(few_digits, keep: str) -> None:
    with pytest.raises(SettingError, match="budget"):
        PruneJob.of(ResNet([1], [4]), few_digits, keep)


def test_a_model_that_cannot_be_captured_is_refused(few_digits) -> None:
    class Branching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(ModelError, match="cannot be captured"):
        PruneJob.of(Branching(), few_digits)


class Giving(torch.nn.Module):
    """A network whose output `change` makes of ten logits."""

    def __init__(self, change: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.inner, self.change = ResNet([1], [4]), change

    def forward(self, x: torch.Tensor) -> object:
        return self.change(self.inner(x))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: (x, x), "gives a tuple"),
        (lambda x: {"logits": x}, "gives a dict"),
        (lambda x: x[:, :4], r"gives \(4,\) for an image; digits has 10 classes"),
        (lambda x: x[:, :, None], "as many logits"),
    ],
)
def test_an_output_that_is_no_logits_is_refused(few_digits, change: Callable, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        PruneJob.of(Giving(change), few_digits)


def test_widths_are_rounded_where_asked(few_digits) -> None:
    job = PruneJob.of(ResNet([1, 1], [8, 16]), few_digits, "flops=60%", round_to=4)
    keep = job.best({group.name: torch.rand(group.size) for group in job.groups})
    assert all(int(kept.sum()) % 4 == 0 for kept in keep.values())


def test_weights_of_a_cut_network_are_of_its_own_shapes(made_job: PruneJob) -> None:
    assert weights_of(made_job.model, made_job.groups[:1]).keys() == {made_job.groups[0].name}
