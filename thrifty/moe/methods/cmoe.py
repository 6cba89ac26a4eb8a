"""CMoE: carve experts out of an MLP by which channels fire together, without training (Pei et al., 2025)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from thrifty.errors import SettingError
from thrifty.moe import calibrate
from thrifty.moe.job import MoeJob
from thrifty.moe.learnt import top
from thrifty.moe.routing import linear_router
from thrifty.moe.sites import Site
from thrifty.plan import Plan


@dataclass(frozen=True)
class Cmoe:
    """A shared expert and one of several routed ones (arXiv:2502.04416, its setting S + A1 of E).

    A channel is marked at a token where it is among the `marks` largest |h_j|, h from inputs and weights of unit
    length. The channels marked most often are shared by all experts; the others form groups of one size by balanced
    k-means over their marks (linear assignment). In thrifty an expert is the shared channels with one group. The
    paper routes by the activation of each group's medoid; here the router is linear, fitted to the group with most
    energy at each token. `tokens` calibration tokens are used for the marks.
    """

    num_experts: int = 8
    marks: int = 10
    tokens: int = 2048
    rounds: int = 5

    def __post_init__(self) -> None:
        """Refuse settings that carve nothing."""
        if self.num_experts < 2 or self.marks < 1 or self.tokens < 1:
            raise SettingError(f"{self!r}: use 2 experts or more, and 1 mark and token or more")

    def plan(self, job: MoeJob) -> Plan:
        """Experts and routers of every MLP; `num_experts` counts the shared slices, as in the paper."""
        widths = job.sizes.uniform_width(job.active, job.scope)
        keep: dict[str, Tensor] = {}
        evidence: dict[str, Tensor] = {}

        def look(site: Site, x: Tensor, h: Tensor) -> None:
            keep[site.name], evidence[f"{site.name}.router"] = self._carved(site, x, h, widths[site.name])

        calibrate.visit(job, look)
        return Plan(repr(self), keep, evidence)

    def _carved(self, site: Site, x: Tensor, h: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Experts and router of one MLP."""
        marked = _marks(site, x[: self.tokens], min(self.marks, site.channels))
        often = marked.sum(0)
        shared_slices = max(0, round(width / site.channels * self.num_experts) - 1)
        groups = max(2, self.num_experts - shared_slices)
        size = -(-(site.channels - width) // (groups - 1))  # so that the groups together hold what is not shared
        shared = top(often[None].float(), max(0, width - size))[0].bool()
        rest = (~shared).nonzero().flatten()
        labels = _balanced_groups(marked[:, rest].T.float(), groups, size, self.rounds)
        experts = shared.float().repeat(groups, 1)
        experts[labels, rest] = 1
        # a group with a place left over takes the channels that are marked most of those it does not have
        experts = top(2 * experts + often / (often.max() + 1), width)
        energy = (h * calibrate.column_norms(site)).square() * (~shared)
        router = linear_router(x, (energy @ experts.T).argmax(-1), groups)
        return experts.cpu(), router.cpu()


def _marks(site: Site, x: Float[Tensor, "tokens d"], count: int) -> Float[Tensor, "tokens channels"]:
    """1 where a channel is among the `count` largest of its token, computed from inputs and weights of unit length."""
    unit = normalize(x, dim=-1)
    rows = [normalize(one.weight.detach().float(), dim=-1) for one in (site.gate, site.up) if one is not None]
    h = site.activation(unit @ rows[0].T)
    h = h * (unit @ rows[1].T) if len(rows) > 1 else h
    return torch.zeros_like(h).scatter_(-1, h.abs().topk(count, dim=-1).indices, 1.0)


def _balanced_groups(
    points: Float[Tensor, "channels tokens"], num_groups: int, size: int, rounds: int
) -> Int[Tensor, " channels"]:
    """K-means in which no group has more than `size` points: each round is a linear assignment to `size` places a
    group. The first centres are the points marked most often."""
    from scipy.optimize import linear_sum_assignment

    centres = points[points.sum(-1).argsort(descending=True, stable=True)[:num_groups]]
    labels = torch.zeros(len(points), dtype=torch.long, device=points.device)
    for _ in range(rounds):
        distance = torch.cdist(points, centres).cpu().repeat_interleave(size, dim=1)
        channels, places = linear_sum_assignment(distance.numpy())
        new = torch.zeros_like(labels)
        new[torch.as_tensor(channels, device=labels.device)] = torch.as_tensor(places // size, device=labels.device)
        if torch.equal(new, labels):
            break
        labels = new
        means = [points[labels == group].mean(0) for group in range(num_groups)]
        centres = torch.stack([torch.where(m.isnan(), old, m) for m, old in zip(means, centres, strict=True)])
    return labels
