"""Masks of attention: one budget with the MLPs, gradients for all that learns, noise once a step, an exact export."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from thrifty import gates
from thrifty.errors import SettingError
from thrifty.moe import apply as outputs
from thrifty.moe import attention_masks, calibrate, learn, train
from thrifty.moe.attention_masks import TokenGates, channel_energy, pair_energy
from thrifty.moe.distill import Teacher
from thrifty.moe.evaluate import quality, with_plan
from thrifty.moe.job import MoeJob
from thrifty.moe.learn import Learning, Step, exported, settled_widths
from thrifty.moe.learnt import Learnt
from thrifty.moe.masking import token_mask_of
from thrifty.moe.methods.tomoe import Tomoe
from thrifty.plan import Plan

LEARNING = Learning(
    num_experts=4, start="clustered", logits="controller", rate=1e-2, decay=0.05, distil=2.0, limit=16.0, union=3.0,
    balance=1.0, spread=3.0, first=0.75, anneal=0.3, settle=0.5, attention="both",
)  # fmt: skip


@pytest.fixture(scope="module")
def blocks(job: MoeJob) -> MoeJob:
    """A job that counts attention too."""
    return MoeJob.of(job.model, job.corpus, 0.5, "blocks", steps=6, batch=2, calibration=8)


@pytest.fixture(scope="module")
def plan(blocks: MoeJob) -> Plan:
    """What is learnt in six steps, of which three are settled."""
    return Plan("learnt", *learn.learn(blocks, LEARNING))


def started(job: MoeJob, learning: Learning = LEARNING) -> Learnt:
    learnt = Learnt(job.sites, learning.num_experts, job.generator(), attention=learning.attention)
    learn.start_apart(job, learning, learnt)
    return learnt


@pytest.mark.parametrize("attention", ["qk", "vo", "both"])
@pytest.mark.parametrize("active", [0.4, 0.5, 0.8])
def test_mlps_and_attention_meet_one_budget_within_a_hundredth_or_a_step(
    blocks: MoeJob, active: float, attention
) -> None:
    asked = MoeJob.of(blocks.model, blocks.corpus, active, "blocks", steps=2, batch=1, calibration=8)
    planned = Tomoe(num_experts=4, attention=attention).plan(asked)
    assert asked.budget.fits(planned.keep)
    ratio = float(asked.sizes.active_ratio({n: k.sum(-1).max() for n, k in planned.keep.items()}, "blocks"))
    parts = {name: asked.sizes.parts[name] for name in planned.keep}
    room = [one.multiple * one.unit_weights for n, one in parts.items() if planned.keep[n].sum(-1).max() < one.size]
    assert active - ratio < max(0.01, min(room) / asked.sizes.weights("blocks"))  # a tiny MLP has few steps of 16
    sides = {name.split(".")[-1] for name in planned.keep}
    assert sides == {"mlp"} | ({"qk", "vo"} if attention == "both" else {attention})


def test_training_counts_as_the_cost_does(blocks: MoeJob, plan: Plan) -> None:
    """History's active share once settled, of the MLPs and attention together, is that of the plan."""
    widths = {name: kept.sum(-1).max() for name, kept in plan.keep.items()}
    assert float(plan.evidence["history"][-1, 2]) == pytest.approx(float(blocks.sizes.active_ratio(widths, "blocks")))


def test_pairs_are_kept_in_fours_or_all(plan: Plan) -> None:
    for name, kept in plan.keep.items():
        if name.endswith(".qk"):
            assert kept.sum() in (4, 6)


def test_everything_that_is_learnt_of_attention_gets_a_gradient(blocks: MoeJob) -> None:
    learnt = started(blocks)
    Step(blocks, LEARNING, learnt, Teacher(blocks.model, blocks.corpus))(0)
    places = list(learnt.emitter.sites)
    for site in blocks.sites:
        place = places.index(site.attention_name)
        head = learnt.emitter.heads[place].weight.grad
        values, pairs = head[:12], head[12:]
        assert pairs.shape == (6, 128)
        for gradient in (
            values,
            pairs,
            learnt.emitter.norms[place].weight.grad,
            learnt.attention.tokens[site.index].grad,
        ):
            assert gradient.abs().sum() > 0


def test_the_budget_alone_reaches_pairs_and_channels(blocks: MoeJob) -> None:
    """Above the budget every gate is pushed towards closing."""
    learning = replace(LEARNING, distil=0.0, union=0.0, balance=0.0)
    tight = MoeJob.of(blocks.model, blocks.corpus, 0.4, "blocks", steps=6, batch=2, calibration=8)
    learnt = started(tight)
    before, networks = learnt.emitted()
    x = torch.randn(20, 48)
    open_before = sum(gates.keep_probability(one.scores(x)).mean().item() for one in networks.values())
    step = Step(tight, replace(learning, anneal=0.0), learnt, Teacher(tight.model, tight.corpus))
    step(0)
    with torch.no_grad():
        for parameter in learnt.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad.sign()
    after, networks = learnt.emitted()
    open_after = sum(gates.keep_probability(one.scores(x)).mean().item() for one in networks.values())
    assert open_after < open_before
    for name, one in before.items():
        if name.endswith(".qk"):
            assert gates.keep_probability(after[name]).sum() < gates.keep_probability(one).sum()


def test_once_settled_nothing_of_attention_learns(blocks: MoeJob) -> None:
    learnt = started(blocks)
    Step(blocks, LEARNING, learnt, Teacher(blocks.model, blocks.corpus))(5)
    assert all(one.grad is None for one in learnt.emitter.parameters())
    assert all(one.grad is None for one in learnt.attention.parameters())
    assert all(router.grad.abs().sum() > 0 for router in learnt.routers)


def test_settled_training_computes_what_the_plan_computes(blocks: MoeJob) -> None:
    """The released code masks values by the key's token in training, and in the result also outputs by the query's."""
    one = replace(blocks, batch=40)  # all windows in one step
    learnt = started(one)
    facts = Step(one, LEARNING, learnt, Teacher(one.model, one.corpus))(5)
    planned = Plan("x", *exported(one, learnt))
    assert sum(not bool(kept.all()) for name, kept in planned.keep.items() if name.endswith("vo")) == 3
    found = quality(one.model, one.corpus.texts[0], {"plan": with_plan(one.model, planned)})
    position = found["plan"]["kl"]  # of all but the last position of each window
    assert float(facts["kl"]) == pytest.approx(position, rel=0.05)


def test_noise_is_the_same_for_all_tokens(blocks: MoeJob) -> None:
    _, networks = started(blocks).emitted()
    (name, network), x = next(iter(networks.items())), torch.randn(1, 48).repeat(64, 1)
    networks = {n: replace(one, down=one.down.detach()) for n, one in networks.items()}
    drawn = TokenGates(networks, blocks.generator(5))
    mask = drawn.mask(name, x)
    assert torch.equal(mask, mask[:1].expand_as(mask))
    assert torch.equal(mask, drawn.mask(name, x))
    other = TokenGates(networks, blocks.generator(6))
    assert any(not torch.equal(drawn.mask(n, x), other.mask(n, x)) for n in networks)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert network.up.shape == (12, 128)


@pytest.mark.parametrize("attention", ["qk", "vo", "both"])
@pytest.mark.parametrize("num_experts", [1, 4])
def test_the_export_equals_the_learnt_masks(
    blocks: MoeJob, num_experts: int, attention, tmp_path: Path, tokens
) -> None:
    method = Tomoe(num_experts=num_experts, attention=attention)
    planned = method.plan(replace(blocks, steps=3))
    made, difference = outputs.applied(planned, blocks.model, "tomoe")
    assert difference.is_small
    assert difference.positions > 100
    planned.save(tmp_path / "plan")
    assert Plan.load(tmp_path / "plan") == planned
    outputs.save(made, tmp_path / "out")
    with torch.inference_mode():
        assert torch.equal(outputs.load(tmp_path / "out")(tokens).logits, made(tokens).logits)


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Phi", "Mistral"])
def test_values_are_masked_in_every_family(family: str, tiny, blocks: MoeJob) -> None:
    asked = MoeJob.of(tiny(family), blocks.corpus, 0.6, "blocks", steps=2, batch=1, calibration=8)
    planned = Tomoe(num_experts=4, attention="vo").plan(asked)
    assert any(not kept.all() for name, kept in planned.keep.items() if name.endswith("vo"))
    assert outputs.compare(planned, asked.model, outputs.build(planned, asked.model, "tomoe")).is_small


def test_the_result_is_deterministic_in_every_mode(blocks: MoeJob, plan: Plan, tokens) -> None:
    """The released code draws noise in routers and in the mask of values whenever the model is used."""
    made = outputs.apply(plan, blocks.model, "tomoe")
    with torch.inference_mode():
        one = made(tokens).logits
        torch.manual_seed(99)
        assert torch.equal(one, made(tokens).logits)
        assert torch.equal(one, made.train()(tokens).logits)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_scale_is_that_of_the_whole_head_however_attention_is_computed(
    implementation: str, blocks: MoeJob, plan: Plan
) -> None:
    """The released code scales by the root of the pruned head, unless attention is eager."""
    made = outputs.build(plan, blocks.model, "tomoe")
    made.set_attn_implementation(implementation)
    assert outputs.compare(plan, blocks.model, made).is_small


def test_an_interrupted_training_goes_on_bit_for_bit(blocks: MoeJob, tmp_path: Path, monkeypatch) -> None:
    recipe, store = train.Recipe, train._store
    monkeypatch.setattr(learn, "Recipe", lambda *values: recipe(*values, every=4))
    whole = learn.learn(blocks, LEARNING)

    def stop(*values: object) -> None:
        store(*values)
        raise KeyboardInterrupt

    asked = replace(blocks, checkpoint=tmp_path / "state")
    monkeypatch.setattr(train, "_store", stop)
    with pytest.raises(KeyboardInterrupt):
        learn.learn(asked, LEARNING)  # after four steps, the last of them settled
    monkeypatch.setattr(train, "_store", store)
    for one, two in zip(whole, learn.learn(asked, LEARNING), strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_widths_are_settled_once_and_for_every_part(blocks: MoeJob) -> None:
    learnt = started(blocks)
    widths = settled_widths(blocks, learnt)
    assert list(widths) == learnt.parts
    with torch.no_grad():
        for parameter in learnt.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert settled_widths(blocks, learnt) == widths


def test_the_start_ranks_pairs_and_channels_by_their_energy(blocks: MoeJob) -> None:
    learnt, energies = started(blocks), {}

    def look(site, x, q, k, mixed) -> None:
        energies[f"{site.attention_name}.qk"] = pair_energy(site, q, k)
        energies[f"{site.attention_name}.vo"] = channel_energy(site, mixed)

    calibrate.visit_attention(blocks, look)
    logits, networks = learnt.emitted()
    for site in blocks.sites:
        qk, vo = (f"{site.attention_name}.{side}" for side in ("qk", "vo"))
        assert torch.equal(logits[qk][0].argsort(), energies[qk].argsort())
        scores = networks[vo].scores(torch.zeros(1, 48))[0]
        assert torch.equal(scores.argsort(), energies[vo].argsort())
        assert gates.keep_probability(logits[qk]).mean().item() == pytest.approx(0.75, abs=0.02)
        assert gates.keep_probability(scores).mean().item() == pytest.approx(0.75, abs=0.02)


def test_the_published_start_has_every_gate_of_attention_open(blocks: MoeJob) -> None:
    learnt = Learnt(blocks.sites, 8, blocks.generator(), attention="both")
    logits, networks = learnt.emitted()
    for one in logits.values():
        assert gates.keep_probability(one).min() > 0.99
    for network in networks.values():
        assert gates.keep_probability(network.scores(torch.randn(30, 48))).min() > 0.9


def test_the_energy_of_a_pair_is_that_of_its_share_of_the_scores(blocks: MoeJob) -> None:
    """Mean squares of (q_i k_i + q_j k_j) over random rotations are half the products of the pair's energies."""
    site, tokens = blocks.sites[0], 200
    q, k = torch.randn(tokens, 48), torch.randn(tokens, 24)
    found = pair_energy(site, q, k)
    wanted = torch.zeros(6)
    for head in range(4):
        for pair in range(6):
            one = q[:, [12 * head + pair, 12 * head + pair + 6]].square().sum(1).mean()
            two = k[:, [12 * (head // 2) + pair, 12 * (head // 2) + pair + 6]].square().sum(1).mean()
            wanted[pair] += one * two
    assert torch.allclose(found, wanted, rtol=1e-5)


def test_without_attention_nothing_changes(job: MoeJob) -> None:
    plain, named = (Learnt(job.sites, 4, job.generator(), attention="none") for _ in range(2))
    assert list(plain.emitter.sites) == [site.name for site in job.sites]
    assert not list(plain.attention.parameters())
    assert plain.emitted()[1] == {}
    assert plain.parts == plain.names == named.parts


@pytest.mark.parametrize(
    ("changes", "family", "attention", "reason"),
    [
        ({"scope": "mlp"}, "Llama", "both", "--of blocks"),
        ({"widths": "equal"}, "Llama", "qk", "--layout tomoe"),
        ({}, "Qwen3", "both", "attention=vo"),
        ({}, "Phi", "qk", "attention=vo"),
    ],
)
def test_masks_that_would_not_count_or_fit_are_refused(
    changes, family, attention, reason, tiny, blocks: MoeJob
) -> None:
    asked = MoeJob.of(tiny(family), blocks.corpus, 0.8, "blocks", steps=1, batch=1)
    with pytest.raises(SettingError, match=reason):
        Tomoe(attention=attention).plan(replace(asked, **changes))


def test_free_logits_have_no_network_for_the_tokens() -> None:
    with pytest.raises(SettingError, match="logits=controller"):
        Tomoe(attention="vo", logits="free")


def test_the_network_of_a_plan_is_complete(blocks: MoeJob, plan: Plan) -> None:
    for site in blocks.sites:
        mask = token_mask_of(plan, site)
        kept = plan.keep[f"{site.attention_name}.vo"]
        assert (mask is None) == bool(kept.all())
        assert mask is None or (mask(torch.randn(9, 48)).sum(-1) == kept.sum()).all()


def test_tokens_are_counted_by_the_mean_of_what_they_keep(blocks: MoeJob) -> None:
    _, networks = started(blocks).emitted()
    found = attention_masks.chances(blocks, networks)
    tokens = blocks.calibration_windows().numel()
    assert all(one.shape == (tokens, 12) for one in found.values())
    assert len(found) == 3
