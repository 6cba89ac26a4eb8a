"""Plans: printed, saved, compared."""

import pytest
import torch
from safetensors.torch import save_file

from thrifty.errors import DataError
from thrifty.plan import Plan


def plan():
    return Plan("Some(power=2)", {"b": torch.tensor([1.0, 0.0, 1.0]), "a": torch.tensor([4, 2], dtype=torch.int32)})


def test_a_saved_plan_comes_back_equal_and_in_order(tmp_path):
    plan().save(tmp_path / "plan.safetensors")
    loaded = Plan.load(tmp_path / "plan.safetensors")
    assert loaded == plan()
    assert list(loaded.keep) == ["b", "a"]


def test_evidence_is_saved_and_decides_nothing(tmp_path):
    told = Plan(plan().method, plan().keep, {"b.score": torch.tensor([0.5, 0.1, 0.9])})
    told.save(tmp_path / "plan.safetensors")
    assert Plan.load(tmp_path / "plan.safetensors").evidence["b.score"].tolist() == told.evidence["b.score"].tolist()
    assert told == plan()


def test_plans_differ_where_a_part_differs_or_is_absent():
    other = Plan("Some(power=2)", {"b": torch.tensor([1.0, 1.0, 1.0]), "c": torch.tensor([1.0])})
    assert plan().difference(other) == {"b": "2 of 3 -> 3 of 3", "a": "2 x 1, 4 x 1 -> absent", "c": "absent -> 1 of 1"}
    assert plan() != other
    assert not plan().difference(plan())


def test_a_plan_prints_one_line_a_part():
    assert str(plan()).splitlines() == ["plan by Some(power=2)", "  b  2 of 3", "  a  2 x 1, 4 x 1"]


def test_a_file_that_is_no_plan_is_refused_by_name(tmp_path):
    (tmp_path / "text").write_text("no plan")
    save_file({"x": torch.ones(1)}, tmp_path / "other")
    for name in ("text", "other", "absent"):
        with pytest.raises(DataError, match=name):
            Plan.load(tmp_path / name)
