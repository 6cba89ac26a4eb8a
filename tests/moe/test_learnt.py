"""How learnt experts act: noise per expert and never per token, masks once, and what is settled is what is exported."""

import pytest
import torch
from torch.nn.functional import linear

from thrifty.moe.job import MoeJob
from thrifty.moe.learnt import Learnt, acting, top
from thrifty.moe.masking import masked
from thrifty.plan import Plan


@pytest.fixture
def learnt(job: MoeJob) -> Learnt:
    return Learnt(job.sites, 4, job.generator())


def masks_of(job: MoeJob, num_experts: int = 4) -> dict[str, torch.Tensor]:
    return {site.name: top(torch.randn(num_experts, site.channels), 48) for site in job.sites}


def test_tokens_of_one_expert_have_one_mask(job: MoeJob, learnt: Learnt) -> None:
    """Noise for each token would train experts that no exported model has."""
    masks, routers = masks_of(job), dict(zip(learnt.names, learnt.routers, strict=True))
    last, rows = job.sites[-1], {}

    def look(module, inputs) -> None:
        rows["masked"] = inputs[0]

    with acting(job.sites, masks, routers, noise=job.generator(3)) as seen:
        handle = last.down.register_forward_pre_hook(look)
        job.model(job.corpus.held_out)
        handle.remove()
    kept = (rows["masked"].flatten(0, 1) != 0).float()
    assert seen.router_logits[last.name].shape[-1] == 4
    matches = (kept[:, None] == masks[last.name]).all(-1)
    assert (matches.sum(-1) == 1).all()
    assert len(matches.float().argmax(-1).unique()) > 1


def test_without_noise_it_computes_what_the_masks_of_the_plan_compute(job: MoeJob, learnt: Learnt) -> None:
    masks, routers = masks_of(job), dict(zip(learnt.names, learnt.routers, strict=True))
    ids = job.corpus.held_out
    with acting(job.sites, masks, routers):
        acted = job.model(ids).logits
    plan = Plan("test", masks, {f"{name}.router": router.detach() for name, router in routers.items()})
    with masked(job.model, plan):
        assert torch.allclose(job.model(ids).logits, acted, atol=1e-5)


def test_a_mask_acts_once(job: MoeJob) -> None:
    """Masking both factors of the product gives the same value and twice the gradient."""
    site = job.sites[0]
    mask = torch.ones(1, site.channels, requires_grad=True)
    x = torch.randn(1, 3, site.width)
    with acting([site], {site.name: mask}, {}):
        site.mlp(x).sum().backward()
    h = site.activation(site.gate(x)) * site.up(x)
    wanted = (h.sum((0, 1)) * site.down.weight.sum(0)).detach()
    assert torch.allclose(mask.grad[0], wanted, atol=1e-5)


def test_routers_and_masks_get_gradients_through_the_choice(job: MoeJob, learnt: Learnt) -> None:
    masks = {name: mask.requires_grad_() for name, mask in masks_of(job).items()}
    routers = dict(zip(learnt.names, learnt.routers, strict=True))
    with acting(job.sites, masks, routers, noise=job.generator(1)):
        job.model(job.corpus.held_out).logits.square().mean().backward()
    assert all(router.grad.abs().sum() > 0 for router in routers.values())
    assert all(mask.grad.abs().sum() > 0 for mask in masks.values())


def test_no_hook_stays(job: MoeJob, learnt: Learnt) -> None:
    with pytest.raises(ZeroDivisionError), acting(job.sites, masks_of(job), {}):
        raise ZeroDivisionError
    assert not any(module._forward_pre_hooks for module in job.model.modules())


def test_of_equal_logits_the_earlier_channel_is_kept() -> None:
    assert top(torch.zeros(2, 5), 2).tolist() == [[1, 1, 0, 0, 0]] * 2


def test_widths_are_settled_once(learnt: Learnt) -> None:
    assert learnt.settle(lambda: [16, 32, 48]) == [16, 32, 48]
    assert learnt.settle(lambda: [0, 0, 0]) == [16, 32, 48]
    assert learnt.widths.tolist() == [16, 32, 48]


@pytest.mark.parametrize("is_free", [True, False])
def test_the_start_follows_from_the_seed_alone(job: MoeJob, is_free: bool) -> None:
    one = Learnt(job.sites, 4, job.generator(), is_free).state_dict()
    torch.randn(5)
    two = Learnt(job.sites, 4, job.generator(), is_free).state_dict()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_the_experts_of_a_layer_are_as_many_rows_of_logits(job: MoeJob, learnt: Learnt) -> None:
    for site in job.sites:
        assert learnt.logits()[site.name].shape == (4, site.channels)
        assert linear(torch.randn(2, site.width), learnt.router(site.name)).shape == (2, 4)
