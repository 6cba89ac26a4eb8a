"""DISP-LLM: one learnt mask, no router."""

import pytest

from thrifty.errors import SettingError
from thrifty.moe.evaluate import quality, with_plan
from thrifty.moe.job import MoeJob
from thrifty.moe.methods.disp_llm import DispLlm


def test_there_is_one_mask_and_no_router(job: MoeJob) -> None:
    plan = DispLlm().plan(job)
    assert all(kept.shape[0] == 1 for kept in plan.keep.values())
    assert list(plan.evidence) == ["history"]


def test_training_brings_the_mask_closer_to_the_dense_model(job: MoeJob) -> None:
    plans = {}
    for steps in (2, 120):
        asked = MoeJob.of(job.model, job.corpus, 0.5, steps=steps, batch=4, calibration=8)
        plans[str(steps)] = with_plan(job.model, DispLlm(rate=1e-2).plan(asked))
    found = quality(job.model, job.corpus.first(20), plans)
    assert found["120"]["kl"] < 0.9 * found["2"]["kl"]


def test_a_share_of_the_steps_is_a_share() -> None:
    with pytest.raises(SettingError, match="DispLlm: anneal=2"):
        DispLlm(anneal=2.0)
