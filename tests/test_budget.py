"""Budgets: what fits, what is best, what a wrong one says."""

import pytest
import torch

from thrifty.budget import Budget, read_amount
from thrifty.errors import SettingError

WIDTHS = {"first": 3.0, "second": 1.0}


def cost(keep):
    return sum((keep[name].sum() * WIDTHS[name] for name in keep), torch.zeros(()))


def scores(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"first": torch.rand(5, generator=generator), "second": torch.rand(2, 4, generator=generator)}


@pytest.mark.parametrize("limit", [4.0, 7.5, 11.0, 23.0, 100.0])
@pytest.mark.parametrize("seed", range(5))
def test_best_fits_the_limit_and_empties_no_group(limit, seed):
    budget = Budget(cost, limit, "units")
    keep = budget.best(scores(seed))
    assert budget.fits(keep)
    assert all(kept.sum() >= 1 for kept in keep.values())
    assert {name: kept.shape for name, kept in keep.items()} == {name: s.shape for name, s in scores().items()}


def test_best_keeps_no_part_below_one_that_it_drops():
    keep, given = Budget(cost, 14.0, "units").best(scores()), scores()
    kept = torch.cat([given[name][keep[name] == 1] for name in keep])
    dropped = torch.cat([given[name][keep[name] == 0] for name in keep])
    leads = {float(part.max()) for part in given.values()}
    assert min(float(score) for score in kept if float(score) not in leads) >= dropped.max()


def test_best_fills_the_budget_until_the_next_part_is_too_much():
    budget, given = Budget(cost, 14.0, "units"), scores()
    keep = budget.best(given)
    best_dropped = max((float(given[name][keep[name] == 0].max()), name) for name in keep if (keep[name] == 0).any())[1]
    assert budget.spent(keep) + WIDTHS[best_dropped] > 14.0


def test_a_score_that_is_not_a_number_counts_as_the_worst():
    given = scores()
    given["first"][2] = torch.nan
    assert Budget(cost, 19.0, "units").best(given)["first"][2] == 0


def test_a_limit_below_one_part_of_each_group_is_refused_with_the_least_possible():
    with pytest.raises(SettingError, match="costs 4"):
        Budget(cost, 3.9, "units").best(scores())


def test_the_penalty_is_zero_at_the_limit_and_equal_on_both_sides():
    budget = Budget(lambda keep: keep["x"].sum(), 8.0, "units")
    penalties = [budget.penalty({"x": torch.tensor([value])}) for value in (4.0, 8.0, 16.0)]
    assert penalties[1] == 0
    assert torch.isclose(penalties[0], penalties[2])


def test_the_penalty_pulls_towards_the_limit():
    for start, sign in ((4.0, -1), (16.0, 1)):
        x = torch.tensor([start], requires_grad=True)
        Budget(lambda keep: keep["x"].sum(), 8.0, "units").penalty({"x": x}).backward()
        assert torch.sign(x.grad) == sign


@pytest.mark.parametrize(("text", "amount"), [("30%", 300), ("0.3", 300), ("1", 1000), ("250", 250), ("0.5k", 500)])
def test_amounts_are_read_as_shares_or_absolute(text, amount):
    assert read_amount(text, 1000) == pytest.approx(amount)


def test_more_than_the_whole_can_be_allowed_and_is_told():
    assert read_amount("150%", 1000, most=2) == pytest.approx(1500)
    with pytest.raises(SettingError, match=r"2500 is not above 0 and at most 2 times the whole, 1000$"):
        read_amount("250%", 1000, most=2)


@pytest.mark.parametrize("text", ["0", "150%", "-1", "much", "", "2M", "nan"])
def test_an_impossible_amount_is_refused_with_what_was_asked(text):
    with pytest.raises(SettingError, match=f"budget {text}"):
        read_amount(text, 1000)
