"""Heads at different bits are held, and attended on, exactly as each would be alone."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from thrifty.errors import SettingError
from thrifty.kv import store
from thrifty.kv.apply import apply
from thrifty.kv.blocks import Blocks, Codec, HeadShape, encode, restore
from thrifty.kv.by_head import ByHead, for_heads
from thrifty.kv.codecs.ems import Ems
from thrifty.kv.codecs.gear import Gear
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.kivi import Kivi
from thrifty.kv.codecs.plain import Plain
from thrifty.kv.cost import with_bits
from thrifty.kv.job import KvJob
from thrifty.kv.methods.uniform import Uniform
from thrifty.plan import Plan

K_BITS, V_BITS = (4, 2, 4), (2, 8, 2)
INNER: dict[str, Codec] = {
    "hack": Hack(),
    "presets": Hack(fit="unbiased", rotation="all", summation_elimination=False),
    "v1": Hack(layout="v1", rounding="nearest"),
    "kivi": Kivi(residual=32),
    "gear": Gear(),
}
every_inner = pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())


def sample(tokens: int = 200, rows: int = 2) -> tuple[Tensor, Tensor]:
    k, v = torch.randn(2, rows, 3, tokens, 64).bfloat16()
    return k, v


def tensors(blocks: Blocks) -> dict[str, Tensor]:
    held = {}
    for name, side in (("k", blocks.k), ("v", blocks.v)):
        held |= {f"{name}.{part}": tensor for part, tensor in (side.closed.tensors if side.closed else {}).items()}
    return held


@every_inner
def test_each_head_is_restored_and_attended_on_as_it_would_be_alone(inner: Codec) -> None:
    codec = for_heads(inner, K_BITS, V_BITS)
    k, v = sample()
    q = torch.randn(2, 6, 2, 64)
    blocks = encode(codec, k, v)
    found, both = codec.attend(q, blocks, 0.125), restore(codec, blocks)
    for head in range(3):
        own, one = slice(head, head + 1), with_bits(inner, K_BITS[head], V_BITS[head])
        alone = encode(one, k[:, own], v[:, own])
        for x, y in zip(both, restore(one, alone), strict=True):
            assert torch.equal(x[:, own], y)
        queries = slice(2 * head, 2 * head + 2)
        assert torch.allclose(found[:, queries], one.attend(q[:, queries], alone, 0.125), atol=1e-6)


@every_inner
def test_the_bytes_are_those_of_the_heads(inner: Codec) -> None:
    codec = for_heads(inner, K_BITS, V_BITS)
    for tokens in (3, 70, 200):
        blocks = encode(codec, *sample(tokens, rows=1))
        assert codec.bytes_per_token(HeadShape(3, 64), tokens) * tokens == pytest.approx(blocks.nbytes, rel=1e-12)


@every_inner
def test_growing_cropping_and_picking_rows_keep_every_head(inner: Codec) -> None:
    codec = for_heads(inner, K_BITS, V_BITS)
    k, v = sample()
    whole, grown = encode(codec, k, v), None
    for first in range(0, 200, 37):
        grown = encode(codec, k[:, :, first : first + 37], v[:, :, first : first + 37], grown)
    assert grown is not None
    for name, tensor in tensors(whole).items():
        assert torch.equal(tensors(grown)[name], tensor), name
    chosen = torch.tensor([1, 1, 0])
    for x, y in zip(restore(codec, whole.rows(chosen)), restore(codec, whole), strict=True):
        assert torch.equal(x, y[chosen])
    for x, y in zip(restore(codec, whole.crop(101, codec)), restore(codec, whole), strict=True):
        assert torch.allclose(x, y[:, :, :101], atol=2e-2, rtol=1e-2)


def test_equal_heads_are_no_group_of_their_own() -> None:
    assert for_heads(Hack(), [4, 4], [2, 2]) == Hack(k_bits=4, v_bits=2)


@pytest.fixture
def uneven(llama: PreTrainedModel) -> tuple[Plan, KvJob]:
    """A plan whose first layer gives its two heads different bits."""
    job = KvJob.of(llama, Hack())
    keep = Uniform().plan(job).keep | {"layers.0.k": torch.tensor([2, 4]), "layers.0.v": torch.tensor([8, 2])}
    return Plan("mine", keep), job


def test_a_plan_by_head_costs_what_its_cache_holds(uneven: tuple[Plan, KvJob], llama: PreTrainedModel) -> None:
    plan, job = uneven
    cache = apply(plan, job)
    llama.bfloat16()(torch.randint(2, 300, (1, 2048)), past_key_values=cache)
    assert cache.compressed[0].codec == ByHead(Hack(), (2, 4), (8, 2))
    assert cache.nbytes == pytest.approx(job.budget.spent(plan.keep) * 2048)


def test_generating_saving_and_loading_work_by_head(
    uneven: tuple[Plan, KvJob], llama: PreTrainedModel, tmp_path: Any
) -> None:
    plan, job = uneven
    ids, cache = torch.randint(2, 300, (2, 150)), apply(plan, job)
    first = llama.generate(ids, past_key_values=cache, max_new_tokens=3, do_sample=False)
    store.save(cache, llama, tmp_path / "cache")
    loaded = store.load(apply(plan, job), llama, tmp_path / "cache")
    after = [llama.generate(first, past_key_values=one, max_new_tokens=8, do_sample=False) for one in (cache, loaded)]
    assert torch.equal(*after)


@pytest.mark.parametrize(
    ("inner", "k_bits", "says"),
    [
        (Ems(), (2, 4), "Ems cannot have other bits in each head; choose bits by layer"),
        (Plain(), (2, 4), "Plain has no bits"),
        (Hack(), (2, 4, 4), "3 heads of keys and 2 of values"),
    ],
    ids=str,
)
def test_what_cannot_be_split_is_refused(inner: Codec, k_bits: tuple[int, ...], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        ByHead(inner, k_bits, (2, 2))
