"""ToMoE: a controller learns experts and routers by distillation; the weights stay frozen (Gao et al., 2025)."""

from dataclasses import asdict, dataclass
from typing import Literal

from thrifty import settings
from thrifty.moe.job import MoeJob
from thrifty.moe.learn import Learning, learn
from thrifty.plan import Plan


@dataclass(frozen=True)
class Tomoe:
    """Learn which channels each token needs: arXiv:2501.15316, with the weights of its losses.

    The loss is `distil` x the KL divergence from the dense model + `limit` x the log ratio of active parameters to the
    budget + `union` x the log ratio of the experts' union to all channels + `balance` x the Switch loss. The gates'
    noise is drawn once a step for each expert, never for each token.

    Where ours differs from the released code, it is because experts that start alike stay alike for long:
    - `start="clustered"`: experts and routers start from groups of tokens that need the same channels (`centroids`:
      from clusters of the MLP's inputs alone; `published`: every gate open and all experts alike); `spread` is the
      standard deviation of the first logits;
    - the budget falls from `first` to what is asked in the first `anneal` of the steps;
    - masks are drawn as the largest logits with noise, in every expert of a layer as many as the export will have:
      gates that open one by one let the experts that most tokens choose be wider than the mean, which is what is paid;
    - in the last `settle` of the steps the masks are those of the export, without noise, and only the routers learn.
      (Masks that learn without noise get worse: straight-through gradients need gates that open and close.)
    - `logits="free"` learns a number for every expert and channel in place of the controller.

    `attention` also masks rotary pairs of queries and keys (`qk`), channels of each token's values and outputs (`vo`),
    or both, within the one budget: it needs a budget that counts attention (`--of blocks`) and `--layout tomoe`. Its
    gates start `attention_first` open, those of the MLPs the less: attention can spare less than they can.
    """

    num_experts: int = 8
    start: Literal["clustered", "centroids", "published"] = "clustered"
    logits: Literal["controller", "free"] = "controller"
    rate: float = 2e-3
    decay: float = 0.05
    distil: float = 2.0
    limit: float = 16.0
    union: float = 3.0
    balance: float = 1.0
    spread: float = 3.0
    first: float = 0.75
    anneal: float = 0.3
    settle: float = 0.1
    attention: Literal["none", "qk", "vo", "both"] = "none"
    attention_first: float = 0.9

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        settings.check(self)
        Learning(**asdict(self)).check("Tomoe")

    def plan(self, job: MoeJob) -> Plan:
        """Experts and routers of every MLP, and what attention keeps."""
        keep, evidence = learn(job, Learning(**asdict(self)))
        return Plan(repr(self), keep, evidence)
