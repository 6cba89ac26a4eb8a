"""Work that is recorded once: the same numbers as without, whatever its inputs and its random numbers are."""

import pytest
import torch

from thrifty.captured import Captured


def test_without_a_gpu_the_work_is_called_as_it_is() -> None:
    calls = []
    work = Captured(lambda: calls.append(1) or len(calls), torch.device("cpu"))
    assert [work() for _ in range(6)] == [1, 2, 3, 4, 5, 6]


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

    captured = Captured(work, device, generators=[generator], is_recorded=is_recorded)
    for step in range(8):
        x.fill_(float(step))
        with torch.no_grad():
            weight.fill_(1.0 + step)
        generator.manual_seed(step)
        value, gradient = captured()
        noise = torch.empty(64, device=device).exponential_(generator=torch.Generator(device).manual_seed(step))
        assert torch.allclose(value, ((step + noise) * (1.0 + step) ** 2).sum())
        assert gradient is not None
        assert torch.allclose(gradient, (step + noise) * 2 * (1.0 + step))
    assert captured.is_recorded == is_recorded
