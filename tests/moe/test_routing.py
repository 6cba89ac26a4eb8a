"""A router fitted to labels finds what is linear in the input, also where one label is rare."""

import torch

from thrifty.moe.routing import linear_router


def test_labels_that_are_linear_in_the_input_are_found() -> None:
    truth = torch.randn(3, 8)
    x = torch.randn(2000, 8)
    labels = (x @ truth.T).argmax(-1)
    router = linear_router(x, labels, 3)
    assert ((x @ router.T).argmax(-1) == labels).float().mean() > 0.9


def test_a_rare_expert_is_not_forgotten() -> None:
    labels = (torch.arange(2000) % 40 == 0).long()
    x = torch.randn(2000, 8) + 2 * torch.eye(8)[labels]
    found = (x @ linear_router(x, labels, 2).T).argmax(-1)
    assert found[labels == 1].float().mean() > 0.7


def test_a_label_without_tokens_does_no_harm() -> None:
    router = linear_router(torch.randn(50, 4), torch.zeros(50, dtype=torch.long), 3)
    assert router.isfinite().all()
