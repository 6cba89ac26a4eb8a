"""A plan becomes a cache."""

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.kv.apply import apply
from thrifty.kv.by_head import ByHead
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.plain import Plain
from thrifty.kv.job import KvJob
from thrifty.kv.methods.uniform import Uniform
from thrifty.plan import Plan


def test_each_layer_gets_the_bits_of_the_plan(llama):
    job = KvJob.of(llama, Hack(partition=32))
    plan = Uniform(skip_layers=(0,)).plan(job)
    keep = {**plan.keep, "layers.1.v": torch.tensor([8, 8])}
    cache = apply(Plan("mine", keep), job)
    assert [layer.codec for layer in cache.compressed] == [Hack(partition=32, k_bits=2, v_bits=8)]
    assert len(cache.layers) == 2


def test_a_skipped_layer_attends_exactly_and_its_bytes_are_counted(llama):
    job = KvJob.of(llama, Hack())
    everything = apply(Uniform(skip_layers=(0, 1)).plan(job), job)
    ids = torch.randint(1, 300, (1, 150))
    with torch.inference_mode():
        assert torch.allclose(llama(ids, past_key_values=everything).logits, llama(ids).logits, atol=1e-5)
    assert everything.nbytes == 2 * 2 * 150 * 2 * 64 * 4


def test_a_codec_without_bits_holds_every_layer(llama):
    job = KvJob.of(llama, Plain(dtype="float16"))
    assert [layer.codec for layer in apply(Uniform().plan(job), job).compressed] == [Plain(dtype="float16")] * 2


def test_a_plan_for_another_model_is_refused(llama, tiny):
    job = KvJob.of(llama, Hack())
    for other in (tiny(num_hidden_layers=1), tiny(num_key_value_heads=1)):
        with pytest.raises(SettingError, match=r"layers\.\d\.k"):
            apply(Uniform().plan(KvJob.of(other, Hack())), job)


def test_a_plan_for_a_model_of_more_layers_is_refused(llama, tiny):
    plan = Uniform().plan(KvJob.of(tiny(num_hidden_layers=3), Hack()))
    with pytest.raises(
        SettingError, match=r"names layers\.2\.k, which this model of 2 layers does not have; use a plan"
    ):
        apply(plan, KvJob.of(llama, Hack()))


def test_unequal_heads_in_a_layer_are_held_by_head(llama):
    job = KvJob.of(llama, Hack())
    keep = {**Uniform().plan(job).keep, "layers.1.k": torch.tensor([2, 4])}
    codecs = [layer.codec for layer in apply(Plan("mine", keep), job).compressed]
    assert codecs == [Hack(), ByHead(Hack(), (2, 4), (2, 2))]


def test_only_some_heads_in_sixteen_bits_are_refused_by_name(llama):
    job = KvJob.of(llama, Hack())
    keep = {**Uniform().plan(job).keep, "layers.1.k": torch.tensor([2, 16])}
    with pytest.raises(SettingError, match=r"layers\.1: all heads of a layer stay in 16 bits, or none"):
        apply(Plan("mine", keep), job)
