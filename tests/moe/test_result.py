"""A result tells what is active, how good it is, and how the experts are used."""

import pytest
import torch

from thrifty.moe import result
from thrifty.moe.apply import apply
from thrifty.moe.job import MoeJob
from thrifty.moe.methods.random import Random


def test_what_is_active_is_counted_in_every_scope_and_routers_in_the_whole(job: MoeJob, random) -> None:
    facts = result.active(job, random(job.model))
    dense, mlp = job.sizes.weights("model"), job.sizes.weights("mlp")
    assert facts["active_ratio_mlp"] == pytest.approx(0.5)
    assert facts["params_dense"] == dense
    assert facts["params_active"] == dense - mlp // 2 + 3 * 4 * 48


def test_masks_and_the_exported_model_give_one_result(job: MoeJob, random) -> None:
    plan = random(job.model)
    windows = job.corpus.held_out
    masked = result.of(job, Random(), plan, windows)
    exported = result.of(job, Random(), plan, windows, apply(plan, job.model))
    assert exported["ppl"] == pytest.approx(masked["ppl"], rel=1e-4)
    assert exported["kl"] == pytest.approx(masked["kl"], rel=1e-3)
    assert exported["params_total"] > exported["params_active"]
    assert masked["method"] == "random"


def test_without_routers_there_is_nothing_to_shuffle(job: MoeJob, random) -> None:
    row = result.of(job, Random(), random(job.model, num_experts=1), job.corpus.held_out)
    assert row["ppl_ratio_shuffled"] is None
    assert row["layers"]["most_loaded"] == [None] * 3


def test_what_attention_keeps_is_told_and_its_networks_are_counted(job: MoeJob, random) -> None:
    plan = random(job.model)
    plain = result.active(job, plan)["params_active"]
    plan.keep["layers.1.attention.qk"] = torch.tensor([1, 0, 1, 1, 0, 1.0])
    assert result.layers(job.sites, plan, {})["pairs"] == [None, pytest.approx(4 / 6), None]
    assert result.layers(job.sites, plan, {})["values"] == [None] * 3
    assert result.active(job, plan)["params_active"] == plain - 2 * 2 * 48 * 6
    plan.evidence["layers.0.attention.vo.down"] = torch.randn(8, 48)
    assert result.active(job, plan)["params_active"] == plain - 2 * 2 * 48 * 6 + 8 * 48


def test_layers_are_told_one_by_one(job: MoeJob, random) -> None:
    row = result.of(job, Random(), random(job.model, widths=[32, 48, 64]), job.corpus.held_out)
    assert row["layers"]["width"] == pytest.approx([32 / 96, 48 / 96, 64 / 96])
    assert all(low <= high for low, high in zip(row["layers"]["intersection"], row["layers"]["union"], strict=True))
