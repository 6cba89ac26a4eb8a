"""Bits by measured error."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from thrifty import data
from thrifty.errors import DataError, SettingError
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.plain import Plain
from thrifty.kv.job import KvJob
from thrifty.kv.methods import sensitivity
from thrifty.kv.methods.sensitivity import Part, Sensitivity

SMALL = Sensitivity(windows=1, window=256)


@pytest.fixture(autouse=True)
def _text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "text", lambda name: {"python-topics": "The grass is green, isn't it? " * 40}[name])


@pytest.fixture
def job(reader):
    return partial(KvJob.of, reader.model, Hack(), read=reader.encode)


def bits(plan):
    return [int(kept[0]) for kept in plan.keep.values()]


def test_the_plan_fits_the_budget_and_repeats(job):
    one = job(keep="24%")
    plan = SMALL.plan(one)
    assert one.budget.fits(plan.keep)
    assert set(bits(plan)) <= {2, 3, 4, 8}
    assert max(bits(plan)) > 2
    assert plan == SMALL.plan(one)


def test_the_part_whose_codes_disturb_most_gets_the_most_bits(job, monkeypatch):
    monkeypatch.setattr(
        sensitivity, "_errors", lambda job, windows, parts: {p: 1.0 if p[:2] == (0, "k") else 1e-6 for p in parts}
    )
    most, *others = bits(SMALL.plan(job(keep="24%")))
    assert most == 4
    assert max(others) < 4


def test_more_bytes_never_leave_a_part_out_and_all_of_them_give_eight_bits(job):
    assert bits(SMALL.plan(job(keep="90%"))) == [8, 8, 8, 8]


def test_errors_are_those_of_the_layer_alone_and_the_model_is_given_back(job, reader):
    before = reader.model.config._attn_implementation
    windows = torch.tensor([reader.encode("abcdefgh" * 40)])
    parts = SMALL._parts(job(keep="30%"))
    assert [part[:2] for part in parts] == [(0, "k"), (0, "v"), (1, "k"), (1, "v")]
    errors = sensitivity._errors(job(keep="30%"), windows, parts)
    assert list(errors) == parts
    assert all(error > 0 for error in errors.values())
    assert reader.model.config._attn_implementation == before


def test_by_head_each_head_gets_bits_of_its_own(job, monkeypatch):
    worst = Part(1, "v", (1,))
    monkeypatch.setattr(
        sensitivity, "_errors", lambda job, windows, parts: {p: 1.0 if p == worst else 1e-6 for p in parts}
    )
    one = job(keep="24%")
    plan = replace(SMALL, by="head").plan(one)
    assert one.budget.fits(plan.keep)
    assert plan.keep["layers.1.v"][1] == 8
    assert plan.keep["layers.1.v"][0] < 8


def test_a_head_disturbs_less_than_its_layer(job, reader):
    windows, by_head = torch.tensor([reader.encode("abcdefgh" * 40)]), replace(SMALL, by="head")
    layers = sensitivity._errors(job(keep="30%"), windows, SMALL._parts(job()))
    heads = sensitivity._errors(job(keep="30%"), windows, by_head._parts(job()))
    assert len(heads) == 2 * len(layers)
    assert sum(heads.values()) < 2 * sum(layers.values())
    assert max(heads.values()) < max(layers.values())


@pytest.mark.parametrize(
    ("codec", "keep", "expected"),
    [(Hack(), None, "a budget"), (Plain(), "30%", "bits to choose"), (Hack(), "10%", r"2 bits cost \d+")],
)
def test_a_job_without_choice_is_refused(reader, codec, keep, expected):
    with pytest.raises(SettingError, match=expected):
        SMALL.plan(KvJob.of(reader.model, codec, keep, read=reader.encode))


def test_a_text_that_is_too_short_and_a_job_that_cannot_read_are_refused(job, reader):
    with pytest.raises(DataError, match="python-topics has"):
        Sensitivity(windows=9, window=256).plan(job(keep="24%"))
    with pytest.raises(SettingError, match="no tokenizer"):
        SMALL.plan(KvJob.of(reader.model, Hack(), "24%"))
    with pytest.raises(SettingError, match="window=8"):
        Sensitivity(window=8)
