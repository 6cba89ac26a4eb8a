"""PreCropping: widths from the flow through each layer before training (Cai et al., 2022, arXiv:2203.02549)."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thrifty.plan import Plan
from thrifty.prune.evaluate import evaluating
from thrifty.prune.gating import masked
from thrifty.prune.job import PruneJob, example_of, weights_of
from thrifty.prune.run import Run


@dataclass(frozen=True)
class PreCropping:
    """Crop the network at initialisation, then train it.

    The paper shows that of a pruning at initialisation only the share that each layer keeps matters. The shares are
    those of SynFlow (Tanaka et al., 2020): every weight times its gradient in the network of absolute weights on an
    image of ones, summed over what makes a channel. Each of `rounds` scorings drops some, so that no layer empties.
    """

    rounds: int = 20

    def plan(self, job: PruneJob) -> Plan:
        """Crop, then train for all epochs."""
        with Run(job, self) as run:
            if run.keep is None:
                run.cut(self._keep(job))
            run.train()
            return run.plan()

    def _keep(self, job: PruneJob) -> dict[str, Tensor]:
        network = copy.deepcopy(job.model).cpu().double()
        with torch.no_grad():
            for one in network.parameters():
                one.abs_()
        keep = {group.name: torch.ones(group.size) for group in job.groups}
        whole = job.budget.spent(keep)
        for number in range(1, self.rounds + 1):
            limit = whole * (job.budget.limit / whole) ** (number / self.rounds)
            flow = _flow(network, job, keep)
            keep = job.best(flow, limit)
        return keep


def _flow(network: nn.Module, job: PruneJob, keep: dict[str, Tensor]) -> dict[str, Tensor]:
    """The synaptic flow through every part of the network without what is not kept."""
    with masked(network, job.groups, keep), evaluating(network):
        network.zero_grad()
        network(torch.ones_like(example_of(job.images)[:1]).double()).sum().backward()
        scored = copy.deepcopy(network)
        with torch.no_grad():
            for one, source in zip(scored.parameters(), network.parameters(), strict=True):
                one.copy_(source * source.grad if source.grad is not None else torch.zeros_like(source))
    return {name: rows.sum(1) for name, rows in weights_of(scored, job.groups).items()}
