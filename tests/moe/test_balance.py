"""The regularisers: zero where they should be, two-sided, and the Switch loss over soft probabilities of all tokens."""

import pytest
import torch

from thrifty.moe.balance import balance_loss, expected_width, log_ratio, together, union, union_loss


def test_the_log_ratio_is_zero_at_the_limit_and_as_steep_on_either_side() -> None:
    assert log_ratio(torch.tensor(0.5), 0.5) == 0
    above, below = log_ratio(torch.tensor(0.999), 0.499), log_ratio(torch.tensor(0.499), 0.999)
    assert above == pytest.approx(float(below))
    assert above == pytest.approx(float(torch.tensor(2.0).log()), abs=1e-6)


def test_every_expert_feels_the_budget() -> None:
    masks = torch.tensor([[1.0, 1, 0, 0], [1.0, 1, 1, 1]], requires_grad=True)
    width = expected_width(masks)
    assert width == 3
    width.backward()
    assert (masks.grad > 0).all()


def test_the_union_counts_a_channel_that_any_expert_has_once() -> None:
    masks = torch.tensor([[1.0, 1, 0, 0], [0.0, 1, 1, 0]])
    assert union(masks) == 0.75
    assert union_loss(torch.tensor([1.0, 1.0])) == 0
    assert union_loss(torch.tensor([0.5, 1.0])) > 0


def test_the_union_is_a_mean_over_the_layers_that_have_experts() -> None:
    """The released code divides by the attention layers as well, which have none."""
    one = torch.tensor([0.5, 1.0, 0.7])
    assert union_loss(one) == pytest.approx(float(union_loss(torch.cat([one, one]))))
    assert union_loss(one[:1]) == pytest.approx(float(torch.tensor(1.001 / 0.501).log()))


def test_the_union_pushes_towards_channels_that_no_expert_has() -> None:
    masks = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]], requires_grad=True)
    union_loss(union(masks)[None]).backward()
    assert (masks.grad[:, 0] == 0).all()
    assert (masks.grad[:, 1:] < 0).all()


def test_the_balance_is_one_where_all_experts_are_used_alike_and_their_number_where_one_takes_all() -> None:
    even = 20 * torch.eye(4).repeat(25, 1)
    assert balance_loss([even]) == pytest.approx(1, abs=1e-4)
    one = torch.tensor([20.0, 0, 0, 0]).repeat(100, 1)
    assert balance_loss([one]) == pytest.approx(4, abs=1e-4)


def test_the_balance_does_not_depend_on_how_tokens_lie_in_the_batch() -> None:
    """The released code averages over a batch of one only, and so compares every token with every token."""
    logits = torch.randn(48, 4)
    assert balance_loss([logits]) == pytest.approx(float(balance_loss([logits.view(3, 16, 4)])), abs=1e-6)


def test_the_balance_passes_a_gradient_through_soft_probabilities() -> None:
    logits = torch.randn(64, 4, requires_grad=True)
    balance_loss([logits + torch.tensor([2.0, 0, 0, 0])]).backward()
    assert logits.grad[:, 0].sum() > 0 > logits.grad[:, 1:].sum()


def test_together_is_each_by_itself() -> None:
    tensors = {"a": torch.rand(4, 6), "b": torch.rand(3, 5), "c": torch.rand(4, 6)}
    found = together(union, tensors)
    assert list(found) == ["a", "b", "c"]
    for name, tensor in tensors.items():
        assert torch.allclose(found[name], (1 - (1 - tensor).prod(0)).mean())
