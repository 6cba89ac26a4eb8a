"""Healing: train the weights that the experts share, with the masks acting, to predict what the dense model does.

The dense weights are trained and not the exported ones: an expert is a set of channels, so what one token mends is
mended for all experts with that channel, and the export's check (masked equals exported) holds for the healed model as
for any other. Low-rank changes (LoRA, Hu et al., 2021) are peft's, merged into the weights at the end; the masks act on
peft's layers as they act on linears.
"""

import copy
import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from thrifty import settings
from thrifty.errors import ModelError, SettingError
from thrifty.moe.distill import Teacher, divergence, hidden_states
from thrifty.moe.job import MoeJob
from thrifty.moe.masking import masked
from thrifty.moe.precision import match
from thrifty.moe.sites import Site, found
from thrifty.moe.train import Recipe, Team, train
from thrifty.plan import Plan

RATES = {"lora": 1e-3, "full": 5e-5}


@dataclass(frozen=True)
class Heal:
    """How to heal: `lora` trains changes of rank `rank` to every linear of the blocks, `full` the linears themselves;
    embeddings, head and norms stay. `rate` 0 takes the usual one of either."""

    how: Literal["lora", "full"] = "lora"
    steps: int = 200
    rank: int = 16
    rate: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what heals nothing, and `lora` without peft: better now than after the experts are learnt."""
        settings.check(self)
        if self.how == "lora" and importlib.util.find_spec("peft") is None:
            raise ModelError("--heal lora needs peft, which is not here; run: pip install 'thrifty[llm]'")
        for name in ("steps", "rank"):
            if getattr(self, name) < 1:
                raise SettingError(f"Heal: {name}={getattr(self, name)}; use 1 or more")

    def __call__(self, job: MoeJob, plan: Plan) -> Any:
        """A copy of the job's model whose weights are healed for `plan`: apply the plan to it. Deterministic."""
        student = copy.deepcopy(job.model).requires_grad_(False)
        if self.how == "full":
            student = student.float()
        learnt = self._learnt(job, student)
        teacher = Teacher(job.model, job.corpus)
        head, team = student.get_output_embeddings(), Team.here()

        def gradients(step: int) -> dict[str, Tensor]:
            ids, wanted = teacher.read(team.part(job.corpus.places(step, job.batch)))
            apart = divergence(hidden_states(student, ids), wanted.to(student.dtype), head)
            apart.backward()
            return {"kl": apart.detach()}

        with masked(student, plan):
            train(
                learnt,
                gradients,
                Recipe(self.steps, self.rate or RATES[self.how], decay=0.0, clip=1.0),
                checkpoint=None,
                identity="",
                track=job.track,
                team=team,
            )
        if self.how == "lora":
            _merge(student)
        student.requires_grad_(False)
        match(student, job.model, job.model.dtype)
        return student

    def _learnt(self, job: MoeJob, student: Any) -> dict[str, Tensor]:
        linears = {id(linear) for site in found(student) for linear in _linears(site)}
        names = [name for name, module in student.named_modules() if id(module) in linears]
        if self.how == "full":
            return {name: student.get_submodule(name).weight.requires_grad_() for name in names}
        _add_changes(student, names, self.rank, job.seed)
        learnt = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
        for parameter in learnt.values():
            parameter.data = parameter.data.float()  # whatever the model is in
        return learnt


def _add_changes(student: Any, names: list[str], rank: int, seed: int) -> None:
    """Wrap the linears called `names` in peft's LoRA, W + B A: B is zero, so that the first step sees the
    weights as they were."""
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), student)


def _merge(student: Any) -> None:
    """Add the changes to the weights and put the linears back in their places."""
    from peft.tuners.lora import LoraLayer

    for name, layer in [(name, one) for name, one in student.named_modules() if isinstance(one, LoraLayer)]:
        layer.merge()  # type: ignore[attr-defined] -- every layer of peft has it, the class of LoRA's does not say so
        student.set_submodule(name, layer.get_base_layer())
    del student.peft_config


def _linears(site: Site) -> list[nn.Module]:
    attention = site.attention
    every = [site.gate, site.up, site.down, attention.q, attention.k, attention.v, attention.o]
    return [one for one in every if one is not None]
