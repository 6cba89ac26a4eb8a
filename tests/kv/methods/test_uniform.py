"""The same bits everywhere."""

import pytest

from thrifty.errors import SettingError
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.plain import Plain
from thrifty.kv.job import KvJob
from thrifty.kv.methods.uniform import Uniform


def bits(plan, layer):
    return int(plan.keep[f"layers.{layer}.k"][0]), int(plan.keep[f"layers.{layer}.v"][0])


def test_without_a_limit_the_codec_decides(llama):
    plan = Uniform().plan(KvJob.of(llama, Hack(k_bits=4, v_bits=3)))
    assert bits(plan, 0) == bits(plan, 1) == (4, 3)
    assert bits(Uniform().plan(KvJob.of(llama, Plain())), 0) == (16, 16)


@pytest.mark.parametrize(("keep", "expected"), [("90%", (8, 8)), ("36%", (4, 4)), ("27%", (4, 2)), ("20%", (2, 2))])
def test_the_most_bits_that_fit_are_chosen(llama, keep, expected):
    job = KvJob.of(llama, Hack(), keep=keep)
    plan = Uniform().plan(job)
    assert job.budget.fits(plan.keep)
    assert bits(plan, 0) == expected


def test_a_budget_below_two_bits_is_refused_with_what_two_bits_cost(llama):
    with pytest.raises(SettingError, match=r"2 bits cost \d+"):
        Uniform().plan(KvJob.of(llama, Hack(), keep="10%"))


def test_skipped_layers_stay_in_sixteen_bits_counted_from_either_end(llama):
    for skipped in ((1,), (-1,)):
        plan = Uniform(skip_layers=skipped).plan(KvJob.of(llama, Hack()))
        assert (bits(plan, 0), bits(plan, 1)) == ((2, 2), (16, 16))


def test_a_layer_that_does_not_exist_is_refused(llama):
    with pytest.raises(SettingError, match="layers 0 to 1"):
        Uniform(skip_layers=(2,)).plan(KvJob.of(llama, Hack()))
