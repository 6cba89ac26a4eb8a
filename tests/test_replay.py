"""What is replayed is what was called: on a CPU the call itself, on a GPU a graph of it, whatever the inputs and the
random numbers are."""

import pytest
import torch
from torch import nn

from thrifty.replay import Replay, uncached_autocast

CPU = torch.device("cpu")


def test_on_a_cpu_every_call_is_a_call() -> None:
    seen = []
    replay = Replay(lambda x, y: seen.append((x, y)) or x + y, CPU)
    assert [float(replay(torch.tensor(float(n)), torch.tensor(1.0))) for n in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    assert len(seen) == 7


def test_within_an_autocast_weights_are_cast_anew_each_time() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.autocast("cpu", torch.bfloat16), uncached_autocast(CPU), torch.no_grad():
        before = layer(torch.ones(1, 2))
        layer.weight.mul_(2)
        assert before.dtype == torch.bfloat16
        assert torch.equal(layer(torch.ones(1, 2)), 2 * before)
    with uncached_autocast(CPU):
        assert layer(torch.ones(1, 2)).dtype == torch.float32


@pytest.mark.gpu
def test_a_replayed_function_sees_new_values_and_what_it_changes_stays() -> None:
    total = torch.zeros(3, device="cuda")

    def add(x: torch.Tensor) -> torch.Tensor:
        total.add_(x)
        return total * 2

    replay = Replay(add, total.device)
    for number in range(1, 11):
        result = replay(torch.full((3,), float(number), device="cuda"))
        assert result.tolist() == [number * (number + 1)] * 3
    replay.reset()
    assert replay(torch.zeros(3, device="cuda")).tolist() == [110] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("is_recorded", [False, True])
def test_inputs_and_seeds_that_change_give_what_they_give_eagerly(is_recorded: bool) -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)  # not the current one where there are several
    x, weight = torch.zeros(64, device=device), torch.ones(64, device=device, requires_grad=True)
    generator = torch.Generator(device)

    def work() -> tuple[torch.Tensor, torch.Tensor | None]:
        weight.grad = None
        noise = torch.empty(64, device=device).exponential_(generator=generator)
        value = ((x + noise) * weight.square()).sum()
        value.backward()
        return value.detach(), weight.grad

    replay = Replay(work, device, generators=[generator], is_recorded=is_recorded)
    for step in range(8):
        x.fill_(float(step))
        with torch.no_grad():
            weight.fill_(1.0 + step)
        generator.manual_seed(step)
        value, gradient = replay()
        noise = torch.empty(64, device=device).exponential_(generator=torch.Generator(device).manual_seed(step))
        assert torch.allclose(value, ((step + noise) * (1.0 + step) ** 2).sum())
        assert gradient is not None
        assert torch.allclose(gradient, (step + noise) * 2 * (1.0 + step))
    assert replay.is_recorded == is_recorded
