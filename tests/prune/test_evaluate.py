"""Accuracy, times and differences of networks, which are left in the mode they were in."""

import torch
from torch import nn

from thrifty.prune import evaluate


class Constant(nn.Module):
    """Always answers class 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.0, 1.0]).expand(len(x), 2) + (5.0 if self.training else 0.0) * torch.tensor([1.0, 0.0])


def test_accuracy_is_the_share_of_right_answers_in_eval_mode() -> None:
    model = Constant().train()
    batches = [(torch.zeros(3, 1), torch.tensor([1, 1, 0])), (torch.zeros(1, 1), torch.tensor([0]))]
    assert evaluate.accuracy(model, batches) == 0.5
    assert model.training


def test_every_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model.train()
    model[0].eval()
    with evaluate.evaluating(model):
        assert not any(module.training for module in model.modules())
    assert (model.training, model[0].training, model[1].training) == (True, False, True)


def test_a_slower_network_takes_more_time() -> None:
    small, large = nn.Linear(8, 8), nn.Sequential(*(nn.Linear(400, 400) for _ in range(20)))
    wide = nn.Sequential(nn.Linear(8, 400), large)
    times = evaluate.latencies_ms([small, wide], torch.randn(64, 8), rounds=5)
    assert 0 < times[0] < times[1]
    assert evaluate.latency_ms(small, torch.randn(64, 8), rounds=3) > 0


def test_the_largest_difference_is_found() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(one.state_dict())
    inputs = torch.eye(2)
    assert evaluate.largest_difference(one, other, inputs) == 0
    with torch.no_grad():
        other.weight[1, 0] += 0.25
    assert abs(evaluate.largest_difference(one, other, inputs) - 0.25) < 1e-6
