"""What ToMoE learns: logits for every expert and channel, a router for every MLP, and how they act on the model.

Noise is drawn once a step for each expert and channel (S, 0 or 1) and the mask of a token is g S, g the token's one-hot
choice of an expert: the pseudo-MoE form of arXiv:2501.15316, appendix B.3. Drawing noise for each token would train
experts that no exported model has.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from thrifty import gates
from thrifty.gates import Controller
from thrifty.moe import attention_masks, cost
from thrifty.moe.attention_masks import AttentionMasks, Sides
from thrifty.moe.masking import TokenMask
from thrifty.moe.sites import Site

EMBEDDING = 32
HIDDEN = 64


GAIN = 25.0
"""A step of Adam moves a logit of the controller by about 50 learning rates (it sums over its 128 features); a free
logit moves by this many."""


class Table(nn.Module):
    """One free logit for every expert and channel: what a controller is compared with."""

    def __init__(self, sites: Mapping[str, int], rows: int) -> None:
        """Start from zeros, at which every gate is open."""
        super().__init__()
        self.sites = dict(sites)
        self.rows = nn.ParameterList(nn.Parameter(torch.zeros(rows, size)) for size in sites.values())

    def forward(self) -> dict[str, Float[Tensor, "rows _"]]:
        """Return the logits of every site, by name: (rows, size)."""
        return {name: GAIN * row for name, row in zip(self.sites, self.rows, strict=True)}

    def set(self, wanted: Mapping[str, Float[Tensor, "rows _"]]) -> None:
        """Make these the logits."""
        for name, row in zip(self.sites, self.rows, strict=True):
            row.data.copy_(wanted[name] / GAIN)


class Learnt(nn.Module):
    """Logits of all experts (from a controller, or free), the routers, and the masks of attention; in float32, on the
    device of the model.

    `parts` names what is learnt: the MLPs (`names`), then what attention has. `widths` holds the width of each part
    once they are settled, 0 before; `weights` is the share of each in the weights of all.
    """

    widths: Tensor

    def __init__(
        self,
        sites: list[Site],
        num_experts: int,
        generator: torch.Generator,
        is_free: bool = False,
        attention: Sides = "none",
    ) -> None:
        """Build for `sites`. The controller has the paper's sizes; routers start small and random."""
        super().__init__()
        sizes = _sizes(sites, attention)
        device = sites[0].up.weight.device
        self.names = [site.name for site in sites]
        self.parts = [*self.names, *attention_masks.parts_of(sites, attention)]
        self.num_experts = num_experts
        seed = generator.initial_seed()
        with torch.random.fork_rng(devices=[]):  # modules draw their first weights from torch's one generator
            torch.manual_seed(seed)
            self.emitter = Table(sizes, num_experts) if is_free else _controller(sizes, num_experts, seed)
        self.emitter.to(device)
        count = num_experts if num_experts > 1 else 0
        self.routers = nn.ParameterList(
            torch.empty(count, site.width, device=device).normal_(std=site.width**-0.5, generator=generator)
            for site in sites
        )
        self.attention = AttentionMasks(sites, attention, 2 * HIDDEN, generator)
        self.register_buffer("widths", torch.zeros(len(self.parts), dtype=torch.long, device=device))
        known = {name: part for site in sites for name, part in cost.parts_of(site).items()}
        weights = torch.tensor([float(known[name].weights) for name in self.parts], device=device)
        self.weights = weights / weights.sum()
        self._widths: list[int] = []

    def emitted(self) -> tuple[dict[str, Float[Tensor, "_ _"]], dict[str, TokenMask]]:
        """By part: the logits, one row for each expert of an MLP and one for the pairs of an attention; and the
        networks that choose channels of values for each token."""
        if self.attention.sides == "none":
            return self.emitter(), {}
        assert isinstance(self.emitter, Controller)
        embedded = self.emitter.embeddings()
        places = {name: number for number, name in enumerate(self.emitter.sites)}
        experts = {name: self.emitter.head(places[name], embedded[places[name]]) for name in self.names}
        pairs, networks = self.attention.emitted(self.emitter, embedded)
        return experts | pairs, networks

    def logits(self) -> dict[str, Float[Tensor, "_ _"]]:
        """The logits of `emitted` alone."""
        return self.emitted()[0]

    def settle(self, fitted: Callable[[], list[int]]) -> list[int]:
        """The settled widths, which `fitted` gives at the first call of all, also of an earlier, interrupted run."""
        if not self._widths:
            if not self.widths.any():
                self.widths.copy_(torch.tensor(fitted()))
            self._widths = self.widths.tolist()  # read once: reading waits for the device
        return self._widths

    def router(self, name: str) -> Float[Tensor, "experts d"]:
        """The router of one layer."""
        return self.routers[self.names.index(name)]


def _controller(sizes: dict[str, int], num_experts: int, seed: int) -> Controller:
    return Controller(
        sizes,
        rows=num_experts,
        input_width=EMBEDDING,
        hidden=HIDDEN,
        start="normal",
        activation="gelu",
        shared_norm=False,
        generator=torch.Generator().manual_seed(seed),
    )


def _sizes(sites: list[Site], attention: Sides) -> dict[str, int]:
    """How many logits the controller has for each of its sites, in the order of the network."""
    sizes = {}
    for site in sites:
        if attention != "none":
            sizes[site.attention_name] = attention_masks.num_logits(site, attention)
        sizes[site.name] = site.channels
    return sizes


@dataclass
class Seen:
    """The router logits [tokens, experts] of the last forward pass, by layer."""

    router_logits: dict[str, Tensor] = field(default_factory=dict)


def top(logits: Float[Tensor, "experts channels"], width: int) -> Float[Tensor, "experts channels"]:
    """1 for the `width` largest logits of every expert, else 0; of equal ones the earlier."""
    order = logits.argsort(dim=-1, descending=True, stable=True)[..., :width]
    return torch.zeros_like(logits).scatter_(-1, order, 1.0)


@contextmanager
def acting(
    sites: list[Site],
    masks: Mapping[str, Float[Tensor, "_ _"]],
    routers: Mapping[str, Float[Tensor, "_ _"]],
    noise: torch.Generator | None = None,
    temperature: float = gates.TEMPERATURE,
) -> Iterator[Seen]:
    """Within, every MLP computes with the mask of the expert that its router chooses, differentiable in both.

    With `noise` the choice is sampled (straight-through Gumbel softmax); without, it is the largest logit. Masks act
    once, on the input of the down projection: the released code multiplies twice, which doubles their gradient.
    """
    seen = Seen()
    chosen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for site in sites:
            mask = masks[site.name].to(site.up.weight.dtype)

            def route(module: nn.Module, inputs: tuple[Tensor, ...], name: str = site.name) -> None:
                logits = linear(inputs[0].float(), routers[name])
                seen.router_logits[name] = logits
                chosen[name] = gates.gumbel_softmax(
                    logits, temperature=temperature, sampled=noise is not None, generator=noise
                )

            def hide(
                module: nn.Module, inputs: tuple[Tensor, ...], name: str = site.name, mask: Tensor = mask
            ) -> tuple[Tensor]:
                rows = mask[0] if len(mask) == 1 else chosen.pop(name).to(mask.dtype) @ mask
                return (inputs[0] * rows,)

            if len(mask) > 1:
                stack.callback(site.mlp.register_forward_pre_hook(route).remove)
            stack.callback(site.down.register_forward_pre_hook(hide).remove)
        yield seen
