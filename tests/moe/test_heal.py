"""Healing: the copy predicts better, the model that was given stays as it was, and the export equals the masks."""

import pytest
import torch

from thrifty.errors import ModelError, SettingError
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


@pytest.mark.parametrize("family", ["Phi", "Qwen3"])
def test_every_family_is_healed_and_is_itself_again_afterwards(family: str, tiny, corpus, random) -> None:
    job = MoeJob.of(tiny(family), corpus, 0.5, steps=6, batch=2, calibration=8)
    healed = Heal(steps=2)(job, random(job.model))
    assert [type(module) for module in healed.modules()] == [type(module) for module in job.model.modules()]
    before = job.model.state_dict()
    changed = {name for name, value in healed.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) == len(job.sites) * (6 if family == "Phi" else 7)
    assert not [name for name in changed if "embed" in name or "head" in name or "norm" in name]


def test_changes_are_learnt_in_float32_whatever_the_model_is_in(job: MoeJob) -> None:
    import copy

    student = copy.deepcopy(job.model).requires_grad_(False).bfloat16()
    learnt = Heal(rank=4)._learnt(job, student)
    assert len(learnt) == 2 * 7 * len(job.sites)
    assert all(tensor.dtype == torch.float32 for tensor in learnt.values())
    student(torch.tensor([[5, 6, 7]]))


def test_masks_act_on_what_the_changes_read(job: MoeJob, random) -> None:
    """The change of a down projection reads masked channels, as the exported expert will."""
    import copy

    from thrifty.moe.heal import _merge
    from thrifty.moe.masking import masked

    plan, student = random(job.model), copy.deepcopy(job.model).requires_grad_(False)
    ids = job.corpus.texts[0][:2]
    for number, tensor in enumerate(Heal(rank=4)._learnt(job, student).values()):
        tensor.data = 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
    with torch.no_grad():
        with masked(student, plan):
            apart = student(ids).logits
        _merge(student)
        with masked(student, plan):
            together = student(ids).logits
        with masked(job.model, plan):
            before = job.model(ids).logits
    assert torch.allclose(apart, together, atol=1e-3)
    assert not torch.allclose(apart, before, atol=0.1)


def test_low_rank_healing_without_its_library_is_refused_before_anything_is_learnt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs peft.*pip install"):
        Heal("lora")
    Heal("full")
