"""Healing: the copy predicts better, the model that was given stays as it was, and the export equals the masks."""

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.moe.apply import apply
from thrifty.moe.evaluate import quality, with_plan
from thrifty.moe.heal import Heal
from thrifty.moe.job import MoeJob


@pytest.mark.parametrize("how", ["lora", "full"])
def test_healing_brings_the_experts_closer_to_the_dense_model(how: str, job: MoeJob, random) -> None:
    plan = random(job.model)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    healed = Heal(how, steps=30, rate=2e-3 if how == "full" else 5e-3)(job, plan)
    assert all(torch.equal(value, before[name]) for name, value in job.model.state_dict().items())
    assert healed.state_dict().keys() == before.keys()
    contenders = {"before": with_plan(job.model, plan), "after": with_plan(healed, plan)}
    found = quality(job.model, job.corpus.texts[0][:4], contenders)
    assert found["after"]["kl"] < 0.8 * found["before"]["kl"]


def test_a_healed_model_is_exported_as_any_other(job: MoeJob, random, tokens: torch.Tensor) -> None:
    plan = random(job.model)
    healed = Heal(steps=2)(job, plan)
    assert not torch.equal(apply(plan, healed)(tokens).logits, apply(plan, job.model)(tokens).logits)


def test_healing_repeats_with_the_seed(job: MoeJob, random) -> None:
    plan = random(job.model)
    one, two = (Heal(steps=2)(job, plan).state_dict() for _ in range(2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_healing_of_no_step_is_refused() -> None:
    with pytest.raises(SettingError, match="steps=0"):
        Heal(steps=0)
