"""Gates open as often as they say, pass gradients, and the controller that feeds them."""

import pytest
import torch

from thrifty import gates
from thrifty.errors import SettingError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gates_open_as_often_as_keep_probability_says():
    logits = torch.linspace(-6, -1, 11)
    drawn = gates.gumbel_sigmoid(logits.expand(40_000, 11), generator=seeded())
    assert torch.allclose(drawn.mean(0), gates.keep_probability(logits), atol=0.015)


def test_a_logit_of_zero_opens_the_gate():
    assert gates.gumbel_sigmoid(torch.zeros(10_000), generator=seeded()).all()


def test_straight_through_gives_the_gradient_of_the_soft_gate():
    hard_logits = torch.linspace(-5, 0, 9, requires_grad=True)
    soft_logits = hard_logits.detach().clone().requires_grad_()
    weights = torch.arange(9.0)
    hard = gates.gumbel_sigmoid(hard_logits, generator=seeded(1))
    soft = gates.gumbel_sigmoid(soft_logits, hard=False, generator=seeded(1))
    (hard * weights).sum().backward()
    (soft * weights).sum().backward()
    assert set(hard.tolist()) <= {0.0, 1.0}
    assert torch.allclose(hard_logits.grad, soft_logits.grad)


def test_logits_for_inverts_keep_probability():
    wanted = torch.tensor([0.01, 0.3, 0.5, 0.9, 0.999])
    assert torch.allclose(gates.keep_probability(gates.logits_for(wanted)), wanted, atol=1e-4)


def test_likely_open_is_a_probability_above_one_half():
    logits = torch.linspace(-6, 0, 101)
    assert torch.equal(gates.likely_open(logits), gates.keep_probability(logits) > 0.5)


def test_gumbel_softmax_chooses_one_and_without_noise_the_largest():
    logits = torch.randn(50, 7, generator=seeded()).requires_grad_()
    drawn = gates.gumbel_softmax(logits, generator=seeded(2))
    assert torch.allclose(drawn.sum(-1), torch.ones(50))
    fixed = gates.gumbel_softmax(logits, sampled=False)
    assert torch.equal(fixed.argmax(-1), logits.argmax(-1))
    (fixed * torch.arange(7.0)).sum().backward()
    assert logits.grad.abs().sum() > 0


def test_scale_gradient_changes_the_gradient_alone():
    x = torch.ones(3, requires_grad=True)
    y = gates.scale_gradient(x, 0.25)
    assert torch.equal(x, y)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 0.25))


def test_gates_stay_in_float32_under_autocast_and_in_half_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        controller = gates.Controller({"a": 4})
        logits = controller()["a"]
        assert logits.dtype == torch.float32
        assert gates.gumbel_sigmoid(logits.bfloat16()).dtype == torch.float32
    assert gates.gumbel(torch.zeros(1_000_000)).isfinite().all()


@pytest.mark.parametrize("rows", [1, 8])
def test_the_controller_gives_logits_for_every_site_and_learns_all_but_its_input(rows):
    controller = gates.Controller({"a": 5, "b": 3}, rows=rows, shared_norm=rows == 1, generator=seeded())
    logits = controller()
    assert {name: tuple(value.shape) for name, value in logits.items()} == {"a": (rows, 5), "b": (rows, 3)}
    sum((value**2).sum() for value in logits.values()).backward()
    assert all(parameter.grad is not None for parameter in controller.parameters())
    assert not controller.noise.requires_grad


def test_the_controller_couples_its_sites():
    controller = gates.Controller({"a": 5, "b": 3}, generator=seeded())
    before = controller()["b"]
    controller.noise[0] += 1
    assert not torch.allclose(before, controller()["b"])


def test_the_controller_is_the_same_after_its_state_is_loaded():
    one, other = gates.Controller({"a": 5, "b": 3}), gates.Controller({"a": 5, "b": 3})
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(one()[name], other()[name]) for name in "ab")


def test_a_controller_without_sites_is_refused():
    with pytest.raises(SettingError, match="at least one site"):
        gates.Controller({})


def test_gumbel_top_opens_as_many_gates_in_every_row_and_rather_the_larger_ones() -> None:
    logits = torch.stack([torch.linspace(-4, 4, 16), torch.linspace(300, -300, 16)]).expand(3, 2, 16).clone()
    logits.requires_grad_()
    count = torch.tensor([1.0, 7.6, 40.0])
    drawn = torch.stack([gates.gumbel_top(logits, count) for _ in range(200)])
    assert (drawn.detach().sum(-1).mean(0) == torch.tensor([[1.0], [8.0], [16.0]])).all()
    often = drawn.detach().mean(0)
    assert often[1, 0, -4:].mean() > often[1, 0, :4].mean() + 0.5
    assert (often[1, 1] == (torch.arange(16) < 8)).all()
    drawn[..., 0].sum().backward()
    assert logits.grad[1].abs().sum() > 0
