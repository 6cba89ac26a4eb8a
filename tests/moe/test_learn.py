"""Learning: it gets closer to the dense model within the budget, starts where it should, and exports without noise."""

import gc
from dataclasses import replace

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.moe import learn as learning_of
from thrifty.moe.distill import Teacher
from thrifty.moe.evaluate import quality, shuffled, with_plan
from thrifty.moe.job import MoeJob
from thrifty.moe.learn import GATES, Learning, exported, learn
from thrifty.moe.learnt import Learnt
from thrifty.moe.methods.tomoe import Tomoe
from thrifty.moe.text import Corpus
from thrifty.plan import Plan

LEARNING = Learning(
    num_experts=4, start="clustered", logits="controller", rate=1e-2, decay=0.05, distil=2.0, limit=16.0, union=3.0,
    balance=1.0, spread=3.0, first=0.75, anneal=0.3, settle=0.1,
)  # fmt: skip


def test_training_brings_the_experts_closer_to_the_dense_model(job: MoeJob) -> None:
    found = {}
    for steps in (1, 150):
        asked = MoeJob.of(job.model, job.corpus, 0.5, steps=steps, batch=4, calibration=8)
        keep, evidence = learn(asked, replace(LEARNING, anneal=0.0))
        plan = Plan("learnt", keep, evidence)
        contenders = {"plan": with_plan(job.model, plan), "shuffled": with_plan(job.model, shuffled(plan))}
        found[steps] = quality(job.model, job.corpus.texts[0], contenders)
    assert found[150]["plan"]["kl"] < 0.9 * found[1]["plan"]["kl"]
    assert found[150]["shuffled"]["kl"] > 1.2 * found[150]["plan"]["kl"]


@pytest.mark.parametrize("logits", ["controller", "free"])
@pytest.mark.parametrize("start", ["clustered", "centroids", "published"])
def test_the_active_share_reaches_the_budget(job: MoeJob, start, logits) -> None:
    steps = 120 if start == "published" else 60  # every gate is open at first
    asked = MoeJob.of(job.model, job.corpus, 0.5, steps=steps, batch=2, calibration=8)
    _, evidence = learn(asked, replace(LEARNING, start=start, logits=logits, rate=2e-2, anneal=0.0, settle=0.0))
    assert evidence["history"][-5:, 2].mean() == pytest.approx(0.5, abs=0.08)


def test_clustered_experts_start_apart_and_published_ones_alike(job: MoeJob) -> None:
    starts = {}
    for start in ("clustered", "published"):
        learnt = Learnt(job.sites, 4, job.generator())
        if start == "clustered":
            learning_of.start_apart(job, replace(LEARNING, anneal=0.0), learnt)
        keep, _ = exported(job, learnt)
        starts[start] = torch.stack([kept.amin(0).mean() for kept in keep.values()]).mean()
    assert starts["clustered"] < 0.25


def test_once_settled_only_the_routers_learn(job: MoeJob) -> None:
    """Masks that learn without noise get worse: nothing tells what a gate that never opens would do."""
    plans = {}
    for steps in (40, 50):
        asked = MoeJob.of(job.model, job.corpus, 0.5, steps=50, batch=2, calibration=8)
        learnt = Learnt(job.sites, 4, job.generator())
        learning_of.start_apart(asked, LEARNING, learnt)
        learning = replace(LEARNING, settle=0.2)
        teacher = Teacher(job.model, job.corpus)
        learning_of.Step(asked, learning, learnt, teacher)(steps - 1)
        plans[steps] = learnt
    assert all(router.grad.abs().sum() > 0 for router in plans[50].routers)
    assert all(one.grad is None for one in plans[50].emitter.parameters())
    assert any(one.grad is not None for one in plans[40].emitter.parameters())


def test_the_budget_falls_in_a_straight_line_to_what_is_asked(job: MoeJob) -> None:
    asked = MoeJob.of(job.model, job.corpus, 0.5, steps=100)
    shares = [replace(LEARNING, first=0.9, anneal=0.4).share_at(asked, step) for step in range(100)]
    assert shares[0] == pytest.approx(0.9)
    assert shares[20] == pytest.approx(0.7)
    assert shares[40:] == pytest.approx([0.5] * 60)


def test_an_export_has_no_noise(job: MoeJob) -> None:
    """The released code samples the masks once when it exports, and the routes at every inference."""
    learnt = Learnt(job.sites, 4, job.generator())
    with torch.no_grad():
        for parameter in learnt.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    one = exported(job, learnt)
    torch.manual_seed(99)
    two = exported(job, learnt)
    for first, second in zip(one, two, strict=True):
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_all_experts_of_a_layer_have_its_width(job: MoeJob) -> None:
    """The released code charges the widest and exports them unequal, which wastes what the others do not use."""
    keep, _ = learn(job, LEARNING)
    for kept in keep.values():
        assert len(set(kept.sum(-1).tolist())) == 1


def test_noise_of_the_gates_is_the_same_on_every_process_and_other_at_every_step(job: MoeJob) -> None:
    one, two = (torch.rand(5, generator=job.generator(GATES + step)) for step in (0, 1))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("changes", [{"num_experts": 0}, {"num_experts": 129}, {"settle": 1.5}, {"anneal": -0.1}])
def test_what_cannot_be_trained_is_refused(changes) -> None:
    with pytest.raises(SettingError, match=next(iter(changes))):
        Tomoe(**changes)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("scope", "widths", "attention"), [("mlp", "layer", "none"), ("mlp", "equal", "none"), ("blocks", "layer", "both")]
)
def test_recorded_steps_learn_what_eager_ones_learn(
    tiny, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, scope, widths, attention
) -> None:
    """Same seeds, same noise, same windows: plans agree but for gates that tie in another order of sums."""
    found = []
    for is_recorded in (False, True):
        monkeypatch.setattr(learning_of, "is_recordable", lambda model, window, value=is_recorded: value)
        model = tiny().to("cuda")
        job = MoeJob.of(model, corpus, 0.5, scope, widths, steps=40, batch=2)
        found.append(learn(job, replace(LEARNING, settle=0.3, attention=attention)))
    (keep, evidence), (kept, recorded) = found
    assert torch.allclose(evidence["history"], recorded["history"], rtol=0.02, atol=0.02)
    for name in keep:
        assert (keep[name] != kept[name]).float().mean() < 0.05


@pytest.mark.parametrize("step", [0, 9])
def test_a_step_waits_for_no_value(job: MoeJob, no_waiting, step: int) -> None:
    """Neither while masks are drawn nor once they are settled: a CUDA graph can hold either step."""
    asked = MoeJob.of(job.model, job.corpus, 0.5, steps=10, batch=2, calibration=8)
    learnt = Learnt(job.sites, 4, job.generator())
    taken = learning_of.Step(asked, replace(LEARNING, settle=0.3), learnt, Teacher(job.model, job.corpus))
    taken(step)
    with no_waiting:
        taken._gradients(step == 9)


def test_nothing_of_the_steps_outlives_the_learning(job: MoeJob) -> None:
    """A recorded step holds gigabytes of a GPU, which a cycle of references would keep until the next collection."""
    asked = MoeJob.of(job.model, job.corpus, 0.5, steps=3, batch=2, calibration=8)
    gc.collect()
    gc.disable()
    try:
        learn(asked, LEARNING)
        assert not any(isinstance(one, learning_of.Step) for one in gc.get_objects())
    finally:
        gc.enable()


@pytest.mark.parametrize("widths", ["layer", "equal"])
def test_a_budget_that_the_narrowest_experts_exceed_is_refused_before_any_step(job: MoeJob, widths) -> None:
    asked = replace(MoeJob.of(job.model, job.corpus, 0.1, widths=widths), track=lambda *_: pytest.fail("it trains"))
    with pytest.raises(SettingError, match="16 of 96 channels"):
        learning_of.learn(asked, LEARNING)
