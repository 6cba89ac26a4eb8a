"""What is particular to EMS: who is kept, who joins whom, what a merged token is restored as, and how it counts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from thrifty.errors import SettingError
from thrifty.kv import dense
from thrifty.kv.blocks import Blocks, PairCodec, encode, restore
from thrifty.kv.codecs.ems import Ems
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.cost import has_bits, with_bits

CODEC = Ems("hack:partition=32,sinks=0,qp_bits=exact", k_bits=8, v_bits=8, unit=64, kept=32)


def coded(codec: Any, tokens: int = 65, heads: int = 2) -> tuple[Tensor, Tensor, Blocks]:
    """Keys and values in 16 bits, and the blocks that hold them."""
    k, v = (torch.randn(1, heads, tokens, 64).bfloat16() for _ in range(2))
    return k, v, encode(codec, k, v)


def test_every_kept_token_stands_for_itself_and_all_tokens_are_counted() -> None:
    _, _, blocks = coded(CODEC, 129)
    owner = CODEC.owner(blocks.k.closed)
    counts = torch.nn.functional.one_hot(owner, 32).sum(-2)
    assert counts.shape == (1, 2, 2, 32)
    assert (counts >= 1).all()
    assert (counts.sum(-1) == 64).all()
    assert torch.equal(owner, CODEC.owner(blocks.v.closed))


def test_the_tokens_least_like_the_mean_key_are_kept_and_the_others_join_the_most_similar() -> None:
    k, _, _ = coded(CODEC)
    unit = k[0, 0, :64].double()
    kept, owner = CODEC._choose(unit)
    direction = torch.nn.functional.normalize(unit, dim=-1).mean(0)
    likeness = cosine_similarity(unit, direction[None], dim=-1)
    assert likeness[kept].max() <= likeness[~kept].min()
    nearest = cosine_similarity(unit[:, None], unit[kept][None], dim=-1).argmax(-1)
    assert torch.equal(owner, nearest)


def test_an_evicted_token_is_restored_as_the_average_of_those_it_was_merged_with() -> None:
    k, v, blocks = coded(CODEC)
    owner = CODEC.owner(blocks.k.closed)[0, :, 0]
    for x, found in zip((k, v), restore(CODEC, blocks), strict=True):
        for head in range(2):
            for one in range(32):
                members = owner[head] == one
                average = x[0, head, :64][members].float().mean(0)
                assert torch.allclose(found[0, head, :64][members], average.expand(members.sum(), -1), atol=3e-2)


def test_a_merged_unit_keeps_its_mean_key_and_mean_value() -> None:
    k, v, blocks = coded(CODEC)
    for x, found in zip((k, v), restore(CODEC, blocks), strict=True):
        assert torch.allclose(found[:, :, :64].mean(2), x[:, :, :64].float().mean(2), atol=1e-2)


def test_counts_make_attention_that_on_all_tokens_and_not_that_on_the_kept_ones() -> None:
    _, _, blocks = coded(CODEC, 70)
    q = torch.randn(1, 2, 1, 64)
    right = dense.attend(q, *restore(CODEC, blocks), 0.5)
    assert torch.allclose(CODEC.attend(q, blocks, 0.5), right, atol=1e-5)
    inner = Blocks(*(replace(x, closed=CODEC._inner(x.closed)) for x in (blocks.k, blocks.v) if x.closed))
    assert not torch.allclose(CODEC.codec.attend(q, inner, 0.5), right, atol=1e-2)


def test_attention_never_restores_what_the_inner_codec_can_attend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Ems("hack:partition=32", unit=64, kept=32)
    _, _, blocks = coded(codec, 70)
    for name in ("restore_k", "restore_v"):
        monkeypatch.setattr(Hack, name, lambda *_: pytest.fail("codes were restored"))
    assert codec.attend(torch.randn(1, 2, 1, 64), blocks, 0.125).isfinite().all()


def test_what_repeats_is_merged_without_loss() -> None:
    directions = torch.linalg.qr(torch.randn(64, 64))[0][:8]
    which = torch.cat([torch.zeros(40, dtype=torch.long), torch.arange(24) % 7 + 1])  # 40 tokens alike, 24 rare ones
    tail = torch.randn(1, 1, 6, 64)
    k = torch.cat([directions[which][None, None] * 3, tail], 2).bfloat16()
    v = torch.cat([torch.randn(8, 64)[which][None, None], tail], 2).bfloat16()
    q = torch.randn(1, 1, 1, 64)
    assert torch.allclose(CODEC.attend(q, encode(CODEC, k, v), 0.125), dense.attend(q, k, v, 0.125), atol=2e-2)


def test_a_cut_unit_gives_back_its_first_tokens() -> None:
    _, _, blocks = coded(CODEC, 70)
    whole = restore(CODEC, blocks)[0]
    cropped = blocks.crop(41, CODEC)
    assert torch.allclose(restore(CODEC, cropped)[0], whole[:, :, :41], atol=1e-2, rtol=1e-2)
    assert cropped.k.lengths == (0, 0, 41)


def test_bits_are_those_of_the_inner_codec_unless_given() -> None:
    assert (Ems("balanced").k_bits, Ems("balanced").v_bits) == (4, 2)
    assert (Ems("balanced", v_bits=8).codec.k_bits, Ems("balanced", v_bits=8).codec.v_bits) == (4, 8)
    assert has_bits(Ems())
    assert with_bits(Ems("smallest"), 8, 3) == Ems("smallest", k_bits=8, v_bits=3)


def test_merging_takes_the_tokens_and_the_choice_costs_a_byte_a_token_and_head() -> None:
    lengths = (4 + 128 * 40 + 1, 4 + 128 * 41 + 1)
    k = torch.randn(1, 1, lengths[1], 64).bfloat16()

    def held(codec: Any) -> int:
        first, last = (encode(codec, k[:, :, :length], k[:, :, :length]).nbytes for length in lengths)
        return last - first

    assert held(Ems("finest")) == held(Ems("finest").codec) / 2 + 128


def test_keys_and_values_are_coded_together_only() -> None:
    assert isinstance(Ems(), PairCodec)
    assert not isinstance(Hack(), PairCodec)
    for encode_one in (Ems().encode_k, Ems().encode_v):
        with pytest.raises(SettingError, match="keys and values together"):
            encode_one(torch.randn(1, 1, 128, 64), 0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"inner": "plain"}, "inner=plain cannot code 64 tokens"),
        ({"inner": "kivi"}, "inner=kivi cannot code 64 tokens"),
        ({"inner": "hack:partition=128"}, "for kept a multiple of its block"),
        ({"kept": 128}, "kept=128 of 128 tokens; use a multiple of 8 below 128"),
        ({"kept": 33}, "kept=33"),
        ({"inner": "hck"}, "did you mean hack"),
        ({"inner": "hack:bits=4"}, "Hack has no setting bits"),
    ],
    ids=str,
)
def test_what_cannot_be_wrapped_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Ems(**wrong)
