"""Learn experts and routers by distillation from the dense model, whose weights stay frozen: what ToMoE does, and, with
one expert and no router, DISP-LLM."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from thrifty import gates
from thrifty.errors import SettingError
from thrifty.gates import Controller
from thrifty.moe import attention_masks, calibrate, cluster
from thrifty.moe.attention_masks import Sides, TokenGates
from thrifty.moe.balance import balance_loss, expected_width, log_ratio, together, union, union_loss
from thrifty.moe.distill import Teacher, divergence, hidden_states, is_recordable, unpadded
from thrifty.moe.job import MoeJob
from thrifty.moe.learnt import Learnt, Table, acting, top
from thrifty.moe.sites import Site
from thrifty.moe.spread import spread
from thrifty.moe.train import Recipe, Team, train
from thrifty.replay import Replay

START, GATES, ROUTES = 1, 1_000, 500_000_000
"""Purposes of random numbers; the step, and for routes the process too, are added."""
AHEAD = 16
"""So many steps ahead the teacher reads."""
FACTS = ("step", "kl", "active", "union")


@dataclass(frozen=True)
class Learning:
    """How to learn; `thrifty.moe.methods.tomoe.Tomoe` says what each setting means."""

    num_experts: int
    start: Literal["clustered", "centroids", "published"]
    logits: Literal["controller", "free"]
    rate: float
    decay: float
    distil: float
    limit: float
    union: float
    balance: float
    spread: float
    first: float
    anneal: float
    settle: float
    attention: Sides = "none"
    attention_first: float = 0.9

    def check(self, name: str) -> None:
        """Raise `SettingError`, in the words of the method called `name`, for what cannot be trained."""
        if not 1 <= self.num_experts <= 128:
            raise SettingError(f"{name}: num_experts={self.num_experts}; use 1 to 128")
        for setting, of in (("anneal", "the steps"), ("settle", "the steps"), ("attention_first", "attention")):
            if not 0 <= getattr(self, setting) <= 1:
                raise SettingError(f"{name}: {setting}={getattr(self, setting)}; use a share of {of}, 0 to 1")
        if self.attention != "none" and self.logits == "free":
            raise SettingError(f"{name}: attention={self.attention} needs the controller; leave logits=controller")

    def share(self, job: MoeJob) -> float:
        """The share of what is learnt (the MLPs, and what of attention is masked) that may be active."""
        return job.share_of([site.name for site in job.sites] + attention_masks.parts_of(job.sites, self.attention))

    def share_at(self, job: MoeJob, step: int) -> float:
        """The share of what is learnt that is to be active at a step; it falls in a straight line from `first`."""
        falling = self.anneal * job.steps
        left = max(0.0, 1 - step / falling) if falling else 0.0
        share = self.share(job)
        return share + left * max(0.0, self.first - share)

    def first_shares(self, job: MoeJob) -> tuple[float, float]:
        """The shares of the MLPs and of what of attention is masked that are open at the start: of attention at least
        `attention_first`, for which the MLPs pay; the same of both where that would leave them less than a third."""
        share, thinned = self.share_at(job, 0), attention_masks.parts_of(job.sites, self.attention)
        mlp = job.sizes.weights("mlp")
        attention = sum(job.sizes.parts[name].weights for name in thinned)
        first = max(share, self.attention_first)
        left = (share * (mlp + attention) - first * attention) / mlp
        return (left, first) if left > share / 3 else (share, share)

    def first_settled(self, job: MoeJob) -> int:
        """The step from which on the masks are the exported ones, and only the routers learn."""
        return job.steps - round(self.settle * job.steps)


def learn(job: MoeJob, learning: Learning) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What to keep of each MLP and attention, and the evidence: routers, the networks of the tokens' masks, and the
    history of the training (step, KL divergence, active share of what is learnt, union). Goes on from `job.checkpoint`
    where that is there."""
    attention_masks.check(learning.attention, job)
    thinned = attention_masks.parts_of(job.sites, learning.attention)
    job.sizes.uniform_width(job.active, job.scope, thinned)  # refuses a budget that the narrowest experts exceed
    job = spread(job, Team.here())
    is_free = learning.logits == "free"
    learnt = Learnt(job.sites, learning.num_experts, job.generator(START), is_free, learning.attention)
    if learning.start != "published":
        start_apart(job, learning, learnt)
    teacher = Teacher(job.model, job.corpus)
    with frozen(job.model), closing(Step(job, learning, learnt, teacher)) as step:
        history = train(
            {**dict(learnt.named_parameters()), "widths": learnt.widths},
            step,
            Recipe(job.steps, learning.rate, learning.decay),
            checkpoint=job.checkpoint,
            identity=f"{learning!r} {job.active} {job.scope} {job.widths} {job.steps}x{job.batch} {job.seed}",
            track=job.track,
            team=Team.here(),
        )
    keep, evidence = exported(job, learnt)
    rows = [[row[fact] for fact in FACTS] for row in history]
    return keep, evidence | {"history": torch.tensor(rows, dtype=torch.float32)}


def start_apart(job: MoeJob, learning: Learning, learnt: Learnt) -> None:
    """Give the experts clusters of the MLP's inputs, their channels by what each cluster needs, and the routers the
    clusters' places; the gates start `learning.first` open, or by the budget where nothing is annealed, and those of
    attention more."""
    wanted: dict[str, Tensor] = {}
    generator = job.generator(START)
    share, of_attention = learning.first_shares(job)

    def look(site: Site, x: Tensor, h: Tensor) -> None:
        norms = calibrate.column_norms(site)
        width = max(1, round(learning.share(job) * site.channels))
        groups = cluster.groups(x, h, norms, learning.num_experts, width, generator, learning.start == "clustered")
        wanted[site.name] = cluster.start_logits(groups.energy, share, learning.spread)
        if learning.num_experts > 1:
            learnt.router(site.name).data.copy_(groups.router)

    calibrate.visit(job, look)
    if isinstance(learnt.emitter, Controller):
        cluster.solve_heads(learnt.emitter, wanted)
        if learning.attention != "none":
            learnt.attention.start(job, learnt.emitter, of_attention, learning.spread)
    elif isinstance(learnt.emitter, Table):
        learnt.emitter.set(wanted)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within, no parameter of `model` asks for a gradient; afterwards those do that did."""
    needed = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, was_needed in zip(model.parameters(), needed, strict=True):
            parameter.requires_grad_(was_needed)


class Step:
    """One step of learning: the gradients of what is learnt. Before and after settling it is recorded on a GPU, each
    once; whatever differs from step to step is in tensors and in generators."""

    def __init__(self, job: MoeJob, learning: Learning, learnt: Learnt, teacher: Teacher) -> None:
        self.job, self.learning, self.learnt, self.teacher = job, learning, learnt, teacher
        device = job.model.device
        self.drawn, self.routed = torch.Generator(device), torch.Generator(device)
        self.share = torch.zeros((), device=device)
        self.looked_until = 0
        ids, self.wanted = teacher.read(Team.here().part(job.corpus.places(0, job.batch)))
        self.ids = ids.clone()
        self.can_record, generators = is_recordable(job.model, job.corpus.window), (self.drawn, self.routed)
        pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self.stages = [
            Replay(
                partial(self._gradients, settled),
                device,
                generators=generators,
                is_recorded=self.can_record,
                pool=pool,
            )
            for settled in (False, True)
        ]

    def close(self) -> None:
        """Give back what was recorded, gigabytes on a GPU: it refers to this object, so it would stay for a while."""
        self.stages.clear()

    def __call__(self, step: int) -> dict[str, Tensor]:
        """Leave the gradients in the learnt parameters; return the facts of the step."""
        job, team = self.job, Team.here()
        if step >= self.looked_until:
            self.looked_until = min(job.steps, step + AHEAD)
            coming = range(step, self.looked_until)
            self.teacher.look_ahead([one for at in coming for one in team.part(job.corpus.places(at, job.batch))])
        ids, wanted = self.teacher.read(team.part(job.corpus.places(step, job.batch)))
        self.ids.copy_(ids)
        self.wanted.copy_(wanted)
        self.share.fill_(self.learning.share_at(job, step))
        self.drawn.manual_seed(job.seed_of(GATES + step))
        self.routed.manual_seed(job.seed_of(ROUTES + step * team.size + team.rank))
        facts, gradients = self.stages[step >= self.learning.first_settled(job)]()
        for parameter, gradient in zip(self.learnt.parameters(), gradients, strict=True):
            parameter.grad = gradient
        return {name: value.clone() for name, value in facts.items()}

    def _gradients(self, is_settled: bool) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        for parameter in self.learnt.parameters():
            parameter.grad = None
        with unpadded(self.job.model) if self.can_record else nullcontext():
            total, facts = self._loss(is_settled)
        total.backward()
        return facts, [parameter.grad for parameter in self.learnt.parameters()]

    def _drawn_masks(self, logits: Tensor) -> Tensor:
        """Masks with as many channels as the export will have: all experts of a layer the same number."""
        width = expected_width(gates.keep_probability(logits))
        return gates.gumbel_top(logits, width, generator=self.drawn)

    def _loss(self, is_settled: bool) -> tuple[Tensor, dict[str, Tensor]]:
        job, learning, learnt = self.job, self.learning, self.learnt
        logits, networks = learnt.emitted()
        if is_settled:
            widths = settled_widths(job, learnt)
            masks = {name: top(one.detach(), widths[name]) for name, one in logits.items()}
            counted, tokens = masks, TokenGates(attention_masks.settled(networks, widths), None)
        else:
            counted = together(gates.keep_probability, logits)
            masks = together(self._drawn_masks, logits)
            tokens = TokenGates(networks, self.drawn)
        routers = dict(zip(learnt.names, learnt.routers, strict=True))
        noise = None if is_settled else self.routed
        with acting(job.sites, masks, routers, noise) as seen, attention_masks.acting(job.sites, masks, tokens):
            student = hidden_states(job.model, self.ids)
        apart = divergence(student, self.wanted, job.model.get_output_embeddings())
        shares = together(lambda one: expected_width(one) / one.shape[-1], counted | tokens.counted)
        shares = torch.stack(list(shares.values()))
        unions = torch.stack(list(together(union, {name: masks[name] for name in learnt.names}).values()))
        active = (shares * learnt.weights).sum()
        total = learning.distil * apart
        if not is_settled:
            over = log_ratio(shares if job.widths == "equal" else active, self.share)
            total = total + learning.limit * over.mean()
        if learning.num_experts > 1:
            total = total + learning.union * union_loss(unions)
            total = total + learning.balance * balance_loss(list(seen.router_logits.values()))
        return total, {"kl": apart.detach(), "active": active.detach(), "union": unions.mean().detach()}


@torch.no_grad()
def settled_widths(job: MoeJob, learnt: Learnt) -> dict[str, int]:
    """The width of each part: once, at the first call of all, what it is expected to have, fitted to the budget."""

    def fitted() -> list[int]:
        logits, networks = learnt.emitted()
        chance = {name: gates.keep_probability(one) for name, one in logits.items()}
        chance |= attention_masks.chances(job, networks)
        return list(job.fitted({name: float(expected_width(one)) for name, one in chance.items()}).values())

    return dict(zip(learnt.parts, learnt.settle(fitted), strict=True))


@torch.no_grad()
def exported(job: MoeJob, learnt: Learnt) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The masks and routers without noise: all experts of a layer have its width, the largest logits of each are its
    channels, and a token's expert is the largest router logit; pairs of attention alike, and for every token the
    network that chooses its channels."""
    widths = settled_widths(job, learnt)
    logits, networks = learnt.emitted()
    keep = {name: top(one, widths[name]).cpu() for name, one in logits.items()}
    evidence = {}
    if learnt.num_experts > 1:
        evidence = {f"{name}.router": learnt.router(name).detach().float().cpu().clone() for name in learnt.names}
    for name, network in networks.items():
        head_dim = len(network.up)
        keep[name] = (torch.arange(head_dim) < widths[name]).float()
        if widths[name] < head_dim:
            evidence |= attention_masks.evidence(name, network)
    return {name: one[0] if name.endswith(".qk") else one for name, one in keep.items()}, evidence
