"""The laws of every codec in the folder thrifty/kv/codecs, with its defaults and with the settings listed here."""

import dataclasses
import importlib
import json
import pkgutil
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.kv import codecs
from thrifty.kv.blocks import Blocks, Codec, Coded, HeadShape, Side, encode, next_closing, restore
from thrifty.kv.cache import CompressedLayer
from thrifty.kv.codecs.ems import Ems
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.kivi import Kivi
from thrifty.kv.codecs.plain import Plain
from thrifty.kv.rotation import rotate

VARIANTS: dict[str, list[Any]] = {
    "Ems": [
        Ems("finest"),
        Ems("hack:layout=v1,rounding=nearest", k_bits=4, unit=256, kept=192),
        Ems("hack:partition=32,qp_bits=exact,sinks=3", k_bits=3, unit=64, kept=32),
        Ems("kivi:group=64,residual=64"),
    ],
    "Hack": [
        Hack(k_bits=4, v_bits=2),
        Hack(k_bits=3, v_bits=8, qp_bits="exact", partition=32, sinks=0),
        Hack(k_bits=2, v_bits=4, qp_bits="exact", sinks=7),
        Hack(k_bits=8, v_bits=3, partition=128, summation_elimination=False),
        Hack(rounding="stochastic", partition=32, qp_bits="exact", seed=3),
        Hack(fit="unbiased"),
        Hack(k_bits=3, fit="unbiased", rotation="all", summation_elimination=False),
        Hack(v_bits=4, rotation="values", qp_bits="exact"),
        Hack(layout="v1", rounding="nearest", fit="unbiased", rotation="all", weights="published"),
        Hack(layout="v1"),
        Hack(layout="v1", qp_bits="exact"),
        Hack(layout="v1", k_bits=4, v_bits=3, rounding="nearest", partition=32, sinks=4),
        Hack(layout="v1", k_bits=3, v_bits=8, partition=128, sinks=7, summation_elimination=False),
        Hack(layout="v1", k_bits=8, v_bits=2, qp_bits="exact", partition=32, dtype="float16"),
    ],
    "Kivi": [
        Kivi(k_bits=4, v_bits=4, residual=32),
        Kivi(k_bits=3, v_bits=2, group=64, residual=64),
        Kivi(k_bits=8, v_bits=3, group=128, dtype="float16"),
    ],
    "Plain": [Plain(dtype="bfloat16")],
}
CLASSES = {
    name: getattr(importlib.import_module(f"{codecs.__name__}.{module.name}"), name)
    for module in pkgutil.iter_modules(codecs.__path__)
    for name in ["".join(word.capitalize() for word in module.name.split("_"))]
}
CODECS = [codec for name, kind in CLASSES.items() for codec in (kind(), *VARIANTS.get(name, []))]
SHORT = [codec for codec in CODECS if max(codec.closed(140)) > 0 or isinstance(codec, Plain)]
HEAD_SIZES = (64, 80, 96, 128, 256)
LENGTHS = (1, 2, 3, 4, 5, 6, 31, 32, 33, *range(63, 71), *range(127, 134), 160, 161, 300)


def shown(codec: Any) -> str:
    changed = [f for f in dataclasses.fields(codec) if getattr(codec, f.name) != f.default]
    return "-".join([type(codec).__name__, *(f"{f.name}={getattr(codec, f.name)}" for f in changed)])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    stochastic = [codec for codec in CODECS if getattr(codec, "rounding", "") == "stochastic"]
    for name, some in {"codec": CODECS, "short_codec": SHORT, "stochastic_codec": stochastic}.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, some, ids=shown)


def inmost(codec: Any) -> Any:
    """The codec that makes the codes."""
    return codec.codec if isinstance(codec, Ems) else codec


def keys_and_values(
    tokens: int, head_dim: int = 64, heads: int = 2, rows: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Keys with large channels, as real ones have, and values."""
    channels = 0.5 + torch.rand(head_dim)
    k = torch.randn(rows, heads, tokens, head_dim) * channels + torch.randn(head_dim)
    return k.to(dtype), torch.randn(rows, heads, tokens, head_dim).to(dtype)


def pieces(total: int, seed: int) -> Iterator[slice]:
    """Cut `total` tokens at random places."""
    pick = random.Random(seed)
    first = 0
    while first < total:
        size = min(pick.choice([1, 1, 2, 3, 7, 40, 70]), total - first)
        yield slice(first, first + size)
        first += size


def in_pieces(codec: Codec, k: Tensor, v: Tensor, cuts: Iterator[slice]) -> Blocks:
    blocks = None
    for cut in cuts:
        blocks = encode(codec, k[:, :, cut], v[:, :, cut], blocks)
    assert blocks is not None
    return blocks


def named_tensors(blocks: Blocks) -> dict[str, Tensor]:
    found = {}
    for name, side in (("k", blocks.k), ("v", blocks.v)):
        found |= {f"{name}.sinks": side.sinks, f"{name}.open": side.open}
        found |= {f"{name}.{part}": tensor for part, tensor in (side.closed.tensors if side.closed else {}).items()}
    return found


def assert_same_bits(one: Blocks, other: Blocks) -> None:
    left, right = named_tensors(one), named_tensors(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def exact_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention in float64, written apart from the product."""
    shared = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(shared, 1) for x in (k, v))
    logits = torch.einsum("rhqd,rhtd->rhqt", q.double(), k) * scale
    queries, tokens = logits.shape[2:]
    hidden = torch.ones(queries, tokens, dtype=torch.bool).triu(tokens - queries + 1)
    return torch.einsum("rhqt,rhtd->rhqd", logits.masked_fill(hidden, -torch.inf).softmax(-1), v)


def relative_error(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right.double()).norm() / right.double().norm())


def is_refused(codec: Any, head_dim: int) -> bool:
    try:
        codec.check(head_dim)
    except SettingError:
        return True
    return False


def skip_refused(codec: Any, head_dim: int) -> None:
    if is_refused(codec, head_dim):
        pytest.skip(f"refuses heads of {head_dim}")


@pytest.mark.parametrize("head_dim", HEAD_SIZES)
def test_attend_equals_exact_attention_on_what_is_restored(codec: Codec, head_dim: int) -> None:
    skip_refused(codec, head_dim)
    limit = 1e-5 if getattr(inmost(codec), "qp_bits", "exact") == "exact" else 5e-2
    for tokens, queries, q_heads, kv_heads in (
        (300, 1, 4, 2),
        (300, 3, 3, 1),
        (137, 2, 2, 2),
        (5, 5, 4, 2),
        (1, 1, 3, 1),
    ):
        k, v = keys_and_values(tokens, head_dim, kv_heads, rows=2)
        q = torch.randn(2, q_heads, queries, head_dim)
        blocks = encode(codec, k, v)
        out = codec.attend(q, blocks, head_dim**-0.5)
        assert out.shape == q.shape
        assert out.dtype == q.dtype
        right = exact_attention(q, *restore(codec, blocks), head_dim**-0.5)
        assert relative_error(out, right) < limit, (tokens, queries, q_heads, kv_heads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attend_answers_in_the_dtype_of_the_query(codec: Codec, dtype: torch.dtype) -> None:
    k, v = keys_and_values(200, dtype=dtype)
    q = torch.randn(1, 4, 1, 64, dtype=dtype)
    blocks = encode(codec, k, v)
    out = codec.attend(q, blocks, 0.125)
    assert out.dtype == dtype
    assert relative_error(out, exact_attention(q, *restore(codec, blocks), 0.125)) < 5e-2


def test_a_head_that_cannot_be_coded_is_refused_by_its_size(codec: Codec) -> None:
    for head_dim in (*HEAD_SIZES, 20, 100):
        k, v = keys_and_values(260, head_dim)
        if is_refused(codec, head_dim):
            with pytest.raises(SettingError, match=rf"^{type(codec).__name__}: .*\b{head_dim}\b"):
                codec.check(head_dim)
        else:
            assert encode(codec, k, v).num_tokens == 260


def scale_and_low(side: Side, bits: int, read: Any) -> tuple[Tensor, Tensor]:
    """The scale and the low of every value, found by reading codes that are all 0 and all the highest."""
    assert side.closed is not None
    none, full = (
        read(Coded(side.closed.unit, side.closed.tensors | {"codes": torch.full_like(side.closed["codes"], byte)}))
        for byte in (0, 255)
    )
    return (full - none) / (2**bits - 1), none


def in_coded_channels(codec: Any, side: str, read: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """`read`, in the channels that the scales belong to."""
    turned = {"none": "", "values": "v", "all": "kv"}[getattr(inmost(codec), "rotation", "none")]
    return (lambda held: rotate(read(held))) if side in turned else read


def given(codec: Any, closed: Coded, x: Tensor) -> Tensor:
    """What was coded in place of each token: the average of the tokens that are merged with it."""
    if not isinstance(codec, Ems):
        return x
    owner = codec.owner(closed)
    alike = (owner.unsqueeze(-1) == owner.unsqueeze(-2)).double()
    blocks = x.double().unflatten(2, (-1, codec.unit))
    return (alike @ blocks / alike.sum(-1, keepdim=True)).flatten(2, 3).to(codec.dense_dtype(x.dtype)).float()


def test_restored_values_stay_within_the_stated_bound(codec: Codec) -> None:
    k, v = keys_and_values(300, rows=2)
    blocks = encode(codec, k, v)
    dtype = codec.dense_dtype(torch.float32)
    half_ulp = torch.finfo(dtype).eps / 2
    steps = 1.0 if getattr(codec, "rounding", "nearest") == "stochastic" else 0.5
    for name, side, x, restore_side in (("k", blocks.k, k, codec.restore_k), ("v", blocks.v, v, codec.restore_v)):
        read = in_coded_channels(codec, name, restore_side)
        stored = x.to(dtype).float()
        restored = side.restore(restore_side)
        assert restored.shape == x.shape
        if side.closed is None:
            assert torch.equal(restored, stored)
            continue
        bits = getattr(codec, f"{name}_bits")
        scale, low = scale_and_low(side, bits, read)
        reach = scale * (2**bits - 1)
        sinks, closed, _ = side.lengths
        coded = slice(sinks, sinks + closed)
        meant = given(codec, side.closed, stored[:, :, coded])
        wanted = in_coded_channels(codec, name, lambda x: x)(meant)
        error = (read(side.closed) - wanted).abs()
        bound = steps * scale + half_ulp * 1.02 * (low.abs() + reach) + 1e-5
        assert error.mean() > 0
        if not side.closed.tensors.keys() <= {"codes", "scale", "low", "sums", "kept", "owners"}:
            # What is kept beside the codes lowers the squared error of a block, not each error.
            assert error.square().mean() <= bound.square().mean()
        elif getattr(inmost(codec), "fit", "range") == "range":
            assert (error <= bound).all()
        else:
            changed = {"inner": f"{codec.inner}:fit=range"} if isinstance(codec, Ems) else {"fit": "range"}
            usual = dataclasses.replace(codec, **changed)
            other = dict(zip("kv", restore(usual, encode(usual, k, v)), strict=True))[name]
            assert error.square().mean() < 1.01 * (other[:, :, coded] - meant).square().mean()
        # The scale may not be wider than the whole head: a bound that is large enough for anything says nothing.
        spread = wanted.amax((2, 3)) - wanted.amin((2, 3))
        assert (reach <= spread[..., None, None] * 1.01).all()
        untouched = torch.cat([restored[:, :, :sinks], restored[:, :, sinks + closed :]], 2)
        assert torch.equal(untouched, torch.cat([stored[:, :, :sinks], stored[:, :, sinks + closed :]], 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_appending_one_by_one_equals_encoding_at_once(codec: Codec, dtype: torch.dtype) -> None:
    for tokens in (3, 70, 165):
        k, v = keys_and_values(tokens, rows=2, dtype=dtype)
        one_by_one = in_pieces(codec, k, v, (slice(t, t + 1) for t in range(tokens)))
        assert_same_bits(one_by_one, encode(codec, k, v))


@pytest.mark.parametrize("seed", range(3))
def test_any_chunking_equals_encoding_at_once(codec: Codec, seed: int) -> None:
    k, v = keys_and_values(333, dtype=torch.float16)
    assert_same_bits(in_pieces(codec, k, v, pieces(333, seed)), encode(codec, k, v))


def test_a_row_is_coded_as_it_would_be_alone(codec: Codec) -> None:
    k, v = keys_and_values(300, rows=3)
    together = encode(codec, k, v)
    for row in range(3):
        assert_same_bits(encode(codec, k[row : row + 1], v[row : row + 1]), together.rows(torch.tensor([row])))


@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_blocks_hold_the_bytes_that_bytes_per_token_says(codec: Codec, head_dim: int) -> None:
    skip_refused(codec, head_dim)
    for dtype in (torch.bfloat16, torch.float32):
        k, v = keys_and_values(max(LENGTHS), head_dim, heads=3, dtype=dtype)
        shape = HeadShape(kv_heads=3, head_dim=head_dim, element_bytes=dtype.itemsize)
        for tokens in LENGTHS:
            blocks = encode(codec, k[:, :, :tokens], v[:, :, :tokens])
            assert blocks.num_tokens == tokens
            assert blocks.nbytes == sum(tensor.nbytes for tensor in named_tensors(blocks).values())
            assert codec.bytes_per_token(shape, tokens) * tokens == pytest.approx(blocks.nbytes, rel=1e-12), tokens


def test_closed_never_decreases_and_leaves_the_newest_token_open_unless_it_closes_at_once(codec: Codec) -> None:
    before = (0, 0)
    for tokens in range(400):
        due = codec.closed(tokens)
        assert all(0 <= old <= held <= max(0, tokens - codec.num_sinks) for old, held in zip(before, due, strict=True))
        before = due
    for side in range(2):
        closes_at_once = {codec.closed(t)[side] == t - codec.num_sinks for t in range(codec.num_sinks + 1, 400)}
        assert len(closes_at_once) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sinks_and_open_block_are_the_very_bits_that_came(codec: Codec, dtype: torch.dtype) -> None:
    if codec.dense_dtype(dtype) != dtype:
        pytest.skip("asked to store another dtype")
    for tokens in (2, 66, 300):
        k, v = keys_and_values(tokens, dtype=dtype)
        blocks = encode(codec, k, v)
        for side, x in ((blocks.k, k), (blocks.v, v)):
            sinks, closed, opened = side.lengths
            assert sinks == min(codec.num_sinks, tokens)
            assert side.sinks.dtype == side.open.dtype == dtype
            assert torch.equal(side.sinks, x[:, :, :sinks])
            assert torch.equal(side.open, x[:, :, tokens - opened :])
            assert sinks + closed + opened == tokens


def through_layer(codec: Codec, q: Tensor, k: Tensor, v: Tensor, cuts: Iterator[slice]) -> Tensor:
    layer = CompressedLayer(codec, prefill="coded")
    outs = []
    for cut in cuts:
        layer.update(k[:, :, cut], v[:, :, cut])
        outs.append(layer.attend(q[:, :, cut], k[:, :, cut], v[:, :, cut], None, 0.125))
    return torch.cat(outs, 2)


def test_a_coded_prefill_equals_token_by_token(short_codec: Codec) -> None:
    codec, tokens = short_codec, 145
    k, v = keys_and_values(tokens)
    q = torch.randn(1, 4, tokens, 64)
    one_by_one = through_layer(codec, q, k, v, (slice(t, t + 1) for t in range(tokens)))
    for cuts in ([slice(0, tokens)], pieces(tokens, 1), pieces(tokens, 2)):
        assert relative_error(through_layer(codec, q, k, v, iter(cuts)), one_by_one) < 1e-4


def test_no_query_sees_codes_of_a_token_that_is_still_open_for_it(codec: Codec) -> None:
    def seen(tokens: int, held_at: int) -> list[int]:
        """Codes (of keys, of values) among the first `tokens` tokens of a row that has grown to `held_at`."""
        return [min(side, max(0, tokens - codec.num_sinks)) for side in codec.closed(held_at)]

    for length in (*range(10), *range(30, 40), *range(60, 75), *range(125, 140), *range(180, 200)):
        for end in (length + 1, length + 2, length + 40, length + 150):
            stop = next_closing(codec, length, end)
            assert length < stop <= end
            assert all(seen(tokens, stop) == seen(tokens, tokens) for tokens in range(length + 1, stop + 1))
            if stop < end:
                assert any(seen(t, stop + 1) != seen(t, t) for t in range(length + 1, stop + 1)), "could have gone on"


def test_settings_survive_being_shown_and_read(codec: Any) -> None:
    values = json.loads(json.dumps(settings.shown(codec)))
    assert type(codec)(**values) == codec
    assert type(codec)(**settings.read(type(codec), {name: str(value) for name, value in values.items()})) == codec
    assert hash(codec) == hash(type(codec)(**values))
    assert isinstance(codec, Codec)


def test_nothing_that_is_given_is_changed(codec: Codec) -> None:
    k, v = keys_and_values(300)
    q = torch.randn(1, 4, 3, 64)
    blocks = encode(codec, k, v)
    given = [q, k, v, *named_tensors(blocks).values()]
    before = [tensor.clone() for tensor in given]
    encode(codec, *keys_and_values(150), blocks)
    codec.attend(q, blocks, 0.125)
    restore(codec, blocks)
    blocks.crop(100, codec)
    blocks.rows(torch.tensor([0, 0])).append(k.repeat(2, 1, 1, 1), v.repeat(2, 1, 1, 1), codec)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, before, strict=True))


def test_codes_repeat_with_their_seed_and_only_with_it(codec: Any) -> None:
    k, v = keys_and_values(300)
    once = encode(codec, k, v)
    torch.manual_seed(7)
    assert_same_bits(once, encode(codec, k, v))
    if getattr(codec, "rounding", "nearest") == "stochastic":
        other = encode(dataclasses.replace(codec, seed=codec.seed + 10), k, v)
        assert not torch.equal(once.k.closed["codes"], other.k.closed["codes"])
        assert not torch.equal(once.v.closed["codes"], other.v.closed["codes"])


def test_stochastic_rounding_is_unbiased(stochastic_codec: Any) -> None:
    codec, (k, v) = stochastic_codec, keys_and_values(140, heads=1)
    errors: dict[str, list[Tensor]] = {"k": [], "v": []}
    for seed in range(0, 128, 2):
        one = dataclasses.replace(codec, seed=seed)
        for name, x, found in zip("kv", (k, v), restore(one, encode(one, k, v)), strict=True):
            closed = one.closed(140)["kv".index(name)]
            errors[name].append((found - x.to(one.dense_dtype(x.dtype)).float())[:, :, one.num_sinks :][:, :, :closed])
    for found in errors.values():
        single = torch.stack(found).square().mean().sqrt()
        # 64 independent errors average to an eighth; nearest rounding would stay where it was.
        assert torch.stack(found).mean(0).square().mean().sqrt() < single / 8 * 1.3
