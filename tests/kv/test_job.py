"""Jobs: a model, a codec, a budget."""

import pytest
from transformers import BertConfig, BertLMHeadModel

from thrifty.errors import ModelError, SettingError
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.job import KvJob


def test_a_job_reads_the_shape_of_the_model_and_the_share_of_its_cache(llama):
    job = KvJob.of(llama, Hack(), keep="25%")
    assert (job.num_layers, job.shape.kv_heads, job.shape.head_dim) == (2, 2, 64)
    assert job.budget.limit == 0.25 * 2 * 2 * 2 * 64 * 2
    assert job.has_limit


def test_a_budget_of_more_than_the_whole_is_refused(llama):
    with pytest.raises(SettingError, match="150%"):
        KvJob.of(llama, Hack(), keep="150%")


def test_an_encoder_is_refused_as_such_whatever_its_heads(tiny):
    with pytest.raises(ModelError, match="BertLMHeadModel attends to later tokens, as encoders do; give a causal"):
        KvJob.of(BertLMHeadModel(BertConfig(hidden_size=48, num_attention_heads=4, num_hidden_layers=1)), Hack())


def test_heads_that_the_codec_cannot_hold_are_refused_before_anything_runs(tiny):
    with pytest.raises(SettingError, match="heads of 24 channels"):
        KvJob.of(tiny(head_dim=24), Hack())
