"""Exact attention in float32, and the stacking of query heads on key heads."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from thrifty.kv import dense


@pytest.mark.parametrize(("q_heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("queries", "tokens"), [(1, 1), (1, 37), (5, 5), (4, 37)])
def test_attention_equals_that_of_pytorch(q_heads: int, kv_heads: int, queries: int, tokens: int) -> None:
    q = torch.randn(2, q_heads, queries, 32)
    k, v = torch.randn(2, kv_heads, tokens, 32), torch.randn(2, kv_heads, tokens, 32)
    mask = torch.ones(queries, tokens, dtype=torch.bool).tril(tokens - queries)
    right = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    assert torch.allclose(dense.attend(q, k, v, 0.3), right, atol=1e-5)


def test_sixteen_bits_are_widened_and_the_answer_has_the_dtype_of_the_query() -> None:
    q, k, v = (torch.randn(1, 2, 3, 16, dtype=torch.bfloat16) for _ in range(3))
    out = dense.attend(q, k, v, 0.25)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, dense.attend(q.float(), k.float(), v.float(), 0.25).bfloat16())
    assert dense.scores(q.float(), k).dtype == torch.float32
    assert dense.mix(torch.ones(1, 2, 3, 3), v).dtype == torch.float32


def test_unstacking_is_the_inverse_of_stacking() -> None:
    q = torch.randn(2, 6, 3, 16)
    stacked = dense.stack_queries(q, 2)
    assert stacked.shape == (2, 2, 9, 16)
    assert torch.equal(stacked[:, 1, :3], q[:, 3])  # head 1 of the keys serves heads 3, 4 and 5 of the queries
    assert torch.equal(dense.unstack_queries(stacked, q), q)


def test_no_query_sees_a_later_token() -> None:
    weights = dense.causal_softmax(torch.randn(1, 1, 2 * 4, 10), queries=4)
    for head in range(2):
        for query in range(4):
            row = weights[0, 0, head * 4 + query]
            assert (row[: 7 + query] > 0).all()
            assert (row[7 + query :] == 0).all()
            assert float(row.sum()) == pytest.approx(1)
    assert (dense.causal_softmax(torch.randn(1, 1, 2, 10), queries=1) > 0).all()


def test_logits_are_not_changed() -> None:
    logits = torch.randn(1, 1, 3, 5)
    copy = logits.clone()
    dense.causal_softmax(logits, 3)
    assert torch.equal(logits, copy)


def test_sixteen_bits_are_the_models_own_where_it_has_them() -> None:
    assert dense.sixteen_bits("auto", torch.float16) == torch.float16
    assert dense.sixteen_bits("auto", torch.float32) == torch.bfloat16
    assert dense.sixteen_bits("float16", torch.bfloat16) == torch.float16
