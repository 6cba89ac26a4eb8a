"""The settings of a training are checked, and its learning rate and its optimiser are as they say."""

import pytest
import torch
from torch import nn

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.prune.batches import Batches
from thrifty.prune.training import Training, WeightStep, device_of


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": "0"}, "at least 1"),
        ({"cutout": "-1"}, "0, for none"),
        ({"holdout": "1"}, "holdout=1"),
        ({"precision": "float16"}, "float32, bfloat16"),
        ({"form": "fast"}, "eager, graph, compiled"),
        ({"speed": "1"}, "no setting speed"),
    ],
)
def test_a_setting_that_makes_no_training_is_refused(wrong: dict, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Training(**settings.read(Training, wrong))


def test_the_rate_rises_falls_and_grows_with_the_batch() -> None:
    training = Training(epochs=100)
    rates = [training.rate_at(step, 1000, 128) for step in range(1000)]
    assert max(rates) == pytest.approx(0.1, rel=0.02)
    assert rates.index(max(rates)) in (49, 50)
    assert rates[0] < 0.01
    assert rates[-1] < 1e-5
    assert training.rate_at(500, 1000, 512) == pytest.approx(4 * rates[500])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_optimiser_reads_its_rate_from_the_tensor(name) -> None:
    model, rate = nn.Linear(3, 2), torch.tensor(0.0)
    optimizer = Training(optimizer=name, weight_decay=0.0).optimizer_of(model, rate)
    before = model.weight.detach().clone()
    for value, changes in ((0.0, False), (0.1, True)):
        rate.fill_(value)
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        assert torch.equal(model.weight, before) != changes


def test_a_step_counts_its_loss_and_its_right_answers(few_digits) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    training = Training(batch_size=32)
    batches = Batches.of(few_digits, 32, 0, torch.device("cpu"))
    draw = batches.draw(0)[:32]
    inputs, labels = batches.take(draw)
    logits = model(inputs).detach()
    expected = [float(nn.functional.cross_entropy(logits, labels)) * 32, float((logits.argmax(1) == labels).sum()), 32]
    step = WeightStep(model, torch.optim.SGD(model.parameters(), 0.1), batches, training)
    step(draw)
    assert step.sums.tolist() == pytest.approx(expected, rel=1e-5)
    assert not torch.equal(model(inputs).detach(), logits)


def test_devices_are_found_or_refused() -> None:
    assert device_of("cpu").type == "cpu"
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "quantum"):
        with pytest.raises(SettingError, match="use "):
            device_of(name)


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["graph", "compiled", "compiled_graph"])
def test_every_form_of_a_step_trains_alike(few_digits, form) -> None:
    def trained(form: str) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).cuda()
        training = Training(batch_size=32, form=form)
        batches = Batches.of(few_digits, 32, 0, torch.device("cuda"))
        rate = torch.tensor(0.01, device="cuda")
        step = WeightStep(model, training.optimizer_of(model, rate), batches, training)
        for draw in batches.draw(0).split(32):
            step(draw)
        return torch.cat([one.detach().flatten() for one in model.parameters()])

    assert torch.allclose(trained(form), trained("eager"), atol=1e-3)
