"""DISP-LLM: the same controller with static gates, one mask for all tokens (Gao et al., 2024)."""

from dataclasses import dataclass
from typing import Literal

from thrifty import settings
from thrifty.moe.job import MoeJob
from thrifty.moe.learn import Learning, learn
from thrifty.plan import Plan


@dataclass(frozen=True)
class DispLlm:
    """Learn one mask of each MLP's channels: NeurIPS 2024 (arXiv:2410.11988), restricted to the MLPs' channels.

    ToMoE with one expert and no router, trained by the same distillation for as many steps: what the experts of ToMoE
    buy is the difference. The paper's start has all gates open; `clustered` starts from what all tokens need.
    """

    start: Literal["clustered", "published"] = "published"
    rate: float = 5e-3
    decay: float = 0.05
    limit: float = 16.0
    first: float = 0.75
    anneal: float = 0.3

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        settings.check(self)
        self._learning().check("DispLlm")

    def plan(self, job: MoeJob) -> Plan:
        """One mask for each MLP."""
        keep, evidence = learn(job, self._learning())
        return Plan(repr(self), keep, evidence)

    def _learning(self) -> Learning:
        return Learning(
            num_experts=1,
            start=self.start,
            logits="controller",
            rate=self.rate,
            decay=self.decay,
            distil=2.0,
            limit=self.limit,
            union=0.0,
            balance=0.0,
            spread=3.0,
            first=self.first,
            anneal=self.anneal,
            settle=0.0,
        )
