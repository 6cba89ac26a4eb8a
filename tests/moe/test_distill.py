"""The divergence in pieces equals the whole one, value and gradient, and counts every position."""

import pytest
import torch
from torch import nn

from thrifty.moe.distill import Teacher, divergence, hidden_states, is_recordable, unpadded


def whole(student: torch.Tensor, teacher: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    wanted, scores = (head(states).log_softmax(-1) for states in (teacher, student))
    return (wanted.exp() * (wanted - scores)).sum(-1).mean()


@pytest.mark.parametrize("piece", [1, 7, 64])
@pytest.mark.parametrize("has_bias", [True, False])
def test_pieces_give_the_value_and_the_gradient_of_the_whole(piece: int, has_bias: bool) -> None:
    head = nn.Linear(8, 31, bias=has_bias).requires_grad_(False)
    teacher = torch.randn(2, 10, 8)
    one = torch.randn(2, 10, 8, requires_grad=True)
    two = one.detach().clone().requires_grad_()
    got, wanted = divergence(one, teacher, head, piece), whole(two, teacher, head)
    (3 * got).backward()
    (3 * wanted).backward()
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.allclose(one.grad, two.grad, atol=1e-6)


def test_a_student_that_equals_the_teacher_has_no_divergence_and_no_gradient() -> None:
    head = nn.Linear(8, 31)
    states = torch.randn(5, 8, requires_grad=True)
    value = divergence(states, states.detach(), head)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert states.grad.abs().max() < 1e-6


def test_no_position_is_left_out(job) -> None:
    """The released code drops tokens that equal the padding, which may be the end of a text: a token like any other."""
    padding = torch.full((1, 8), job.model.config.pad_token_id)
    states = hidden_states(job.model, padding)
    other = states + torch.randn_like(states)
    head = job.model.get_output_embeddings()
    got = divergence(other, states, head).item()
    assert got == pytest.approx(whole(other, states, head).item(), rel=1e-4)
    assert got > 0


def test_hidden_states_are_what_the_head_reads(job) -> None:
    ids = job.corpus.held_out
    logits = job.model.get_output_embeddings()(hidden_states(job.model, ids))
    assert torch.equal(logits, job.model(ids).logits)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Mistral", "Phi"])
def test_a_pass_over_whole_windows_is_the_same_without_the_search_for_padding(tiny, family: str) -> None:
    model = tiny(family)
    ids = torch.randint(2, 97, (3, 24), generator=torch.Generator().manual_seed(0))
    assert is_recordable(model, 24)
    before = model.config._attn_implementation
    expected = hidden_states(model, ids)
    with unpadded(model):
        assert torch.equal(hidden_states(model, ids), expected)
    assert model.config._attn_implementation == before


def test_a_window_longer_than_the_sliding_one_cannot_be_recorded(tiny) -> None:
    model = tiny("Mistral")
    model.config.sliding_window = 16
    assert is_recordable(model, 16)
    assert not is_recordable(model, 17)


def test_what_is_read_ahead_is_what_is_read_at_the_step(job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.moe.distill.TOGETHER", 3)
    teacher, places = Teacher(job.model, job.corpus), job.corpus.places(2, 5)
    wanted_ids, wanted = teacher.read(places)
    teacher._room = 4  # on a CPU nothing is kept
    teacher.look_ahead(places)
    assert len(teacher._kept) == 4
    for some in (places[:4], places):
        ids, states = teacher.read(some)
        assert torch.equal(ids, wanted_ids[: len(some)])
        assert torch.allclose(states, wanted[: len(some)], atol=1e-5)
