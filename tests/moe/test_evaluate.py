"""Evaluation: exact where it can be known, and controls that control."""

import math

import pytest
import torch

from thrifty.moe import evaluate
from thrifty.moe.evaluate import as_it_is, oracle, quality, shuffled, with_plan
from thrifty.moe.job import MoeJob


def test_the_dense_model_against_itself_changes_nothing(job: MoeJob) -> None:
    found = quality(job.model, job.corpus.held_out, {"dense": as_it_is(job.model)})["dense"]
    assert found["ppl_ratio"] == 1
    assert found["kl"] == 0
    assert found["top1"] == 1
    assert found["predictions"] == 4 * 31


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_perplexity_is_that_of_the_model_whatever_the_batch(job: MoeJob, random, batch: int) -> None:
    plan = random(job.model)
    windows = job.corpus.held_out
    found = quality(job.model, windows, {"plan": with_plan(job.model, plan)}, batch=batch)["plan"]
    with torch.no_grad(), with_plan(job.model, plan)() as model:
        loss = model(windows, labels=windows).loss
    assert found["ppl"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_the_order_of_contenders_does_not_matter(job: MoeJob, random) -> None:
    one, two = with_plan(job.model, random(job.model)), oracle(job.model, 0.5)
    first = quality(job.model, job.corpus.held_out, {"one": one, "two": two})
    second = quality(job.model, job.corpus.held_out, {"two": two, "one": one})
    assert first["one"] == second["one"]
    assert first["two"] == second["two"]


def test_the_oracle_is_closer_than_random_experts_and_whole_it_is_the_dense_model(job: MoeJob, random) -> None:
    contenders = {"oracle": oracle(job.model, 0.5), "random": with_plan(job.model, random(job.model))}
    contenders["whole"] = oracle(job.model, 1.0)
    found = quality(job.model, job.corpus.held_out, contenders)
    assert found["oracle"]["kl"] < 0.7 * found["random"]["kl"]
    assert found["whole"]["kl"] == pytest.approx(0, abs=1e-6)


def test_shuffling_sends_every_token_to_another_expert(job: MoeJob, random) -> None:
    plan = random(job.model)
    name = "layers.0.mlp.router"
    x = torch.randn(50, plan.evidence[name].shape[1])
    before = (x @ plan.evidence[name].T).argmax(-1)
    after = (x @ shuffled(plan).evidence[name].T).argmax(-1)
    assert (before != after).all()


def test_load_counts_every_token_once(job: MoeJob, random) -> None:
    plan = random(job.model)
    for batch in (1, 4):
        loads = evaluate.load(job.model, plan, job.corpus.held_out, batch)
        assert len(loads) == 3
        for shares in loads.values():
            assert shares.shape == (4,)
            assert shares.sum() == pytest.approx(1)


def test_overlap_of_experts(job: MoeJob, random) -> None:
    plan = random(job.model, num_experts=2, widths=48, common=16)
    first = plan.keep["layers.0.mlp"]
    both = (first[0] * first[1]).sum()
    facts = evaluate.overlap(plan, job.sites)["layers.0.mlp"]
    assert facts["width"] == 48
    assert facts["intersection"] == pytest.approx(float(both) / 96)
    assert facts["union"] == pytest.approx((96 - float(both)) / 96)
    assert facts["jaccard"] == pytest.approx(float(both / (96 - both)))


def test_health_names_dead_experts(job: MoeJob, random) -> None:
    plan = random(job.model)
    for site in job.sites:
        plan.evidence[f"{site.name}.router"][1:] = 0
        plan.evidence[f"{site.name}.router"][1] = plan.evidence[f"{site.name}.router"][0] * -1
    found = evaluate.health(job.sites, plan, evaluate.load(job.model, plan, job.corpus.held_out))
    assert found["dead_experts"] == pytest.approx(0.5)
    assert found["widths"] == [48, 48, 48]
