"""What ToMoE learns of attention: which rotary pairs of queries and keys a layer keeps, and which channels of its
values each token keeps.

The controller has one more site a layer, whose embedding is the mean E over the experts (arXiv:2501.15316; formulas as
in the released code). Its head gives two kinds of logits, the same for all heads of attention:
- `qk`, one row for all tokens: D GELU(LayerNorm(E)), one logit for each rotary pair;
- `vo`, for each token: D' GELU(LayerNorm(E + R x)), one for each channel of a head, x the input of the attention and R
  learnt for each layer. The mask acts on the token's values and on its input to the output projection.

Noise is drawn once a step for each pair and channel, as it is for the experts. What is charged is the number of pairs,
and the mean over the tokens of the number of channels, that gates are expected to keep; every token of the export has
the same number of channels. Once settled, the masks are those of the export and learn no more.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from thrifty import gates
from thrifty.errors import SettingError
from thrifty.gates import Controller
from thrifty.moe import calibrate, cluster
from thrifty.moe.job import MoeJob
from thrifty.moe.masking import TOKEN_MASK, TokenMask, attention_hooks
from thrifty.moe.sites import Site

GAIN = 0.1
"""R is this times its parameters: a step of Adam moves R x by the sum over all channels of x."""
QUIET = 0.1
"""How strong R x starts beside E."""
Sides = Literal["none", "qk", "vo", "both"]
"""What of attention is masked: nothing, queries and keys, values and outputs, or all."""


def check(sides: Sides, job: MoeJob) -> None:
    """Raise `SettingError` where masks of attention would not count, could not be written, or do not fit the model."""
    if sides == "none":
        return
    if job.scope == "mlp":
        raise SettingError(f"attention={sides}: the budget counts the MLPs alone; count attention too: --of blocks")
    if job.widths == "equal":
        raise SettingError(f"attention={sides}: the standard layout has no thinned attention; use --layout tomoe")
    if sides != "vo" and not all(site.attention.can_drop_pairs for site in job.sites):
        raise SettingError(f"attention={sides}: no rotary pairs can be left out of this model; use attention=vo")


def parts_of(sites: list[Site], sides: Sides) -> list[str]:
    """The parts of a plan that are learnt: those of all layers' queries and keys, then those of values and outputs."""
    chosen = {"none": (), "both": ("qk", "vo")}.get(sides, (sides,))
    return [f"{site.attention_name}.{side}" for side in chosen for site in sites]


def num_logits(site: Site, sides: Sides) -> int:
    """How many logits the controller has for the attention of a layer."""
    head_dim = site.attention.head_dim
    return {"none": 0, "qk": head_dim // 2, "vo": head_dim, "both": head_dim + head_dim // 2}[sides]


class AttentionMasks(nn.Module):
    """The tokens' share R of each layer's network, (features, d); everything else is the controller's."""

    def __init__(self, sites: list[Site], sides: Sides, features: int, generator: torch.Generator) -> None:
        """Start small and random; without values and outputs there is nothing to hold."""
        super().__init__()
        self.sites, self.sides = sites, sides
        self.tokens = nn.ParameterList(
            torch.empty(features, site.width, device=site.up.weight.device).normal_(
                std=site.width**-0.5, generator=generator
            )
            for site in sites
            if sides in ("vo", "both")
        )

    def emitted(
        self, controller: Controller, embedded: Float[Tensor, "sites rows width"]
    ) -> tuple[dict[str, Float[Tensor, "1 pairs"]], dict[str, TokenMask]]:
        """Logits of the pairs, and the networks for the tokens (their counts still 0), by part."""
        rows, networks = {}, {}
        for number, site in enumerate(self.sites):
            place, (norm, weight) = _place(controller, site), _head(controller, site)
            shift, head_dim = embedded[place].mean(0), site.attention.head_dim
            if self.sides != "vo":
                rows[f"{site.attention_name}.qk"] = controller.head(place, shift[None])[:, -(head_dim // 2) :]
            if self.sides != "qk":
                network = TokenMask(0, GAIN * self.tokens[number], norm.weight, norm.bias, shift, weight[:head_dim])
                networks[f"{site.attention_name}.vo"] = network
        return rows, networks

    @torch.no_grad()
    def start(self, job: MoeJob, controller: Controller, share: float, spread: float) -> None:
        """Rank pairs and channels by their energy over the calibration windows and open `share` of their gates, as
        `cluster.start_logits` does: for all tokens alike, up to the small random share of each."""
        embedded = controller.embeddings()
        own = dict(zip([site.name for site in self.sites], self.tokens, strict=False))

        def look(site: Site, x: Tensor, q: Tensor, k: Tensor, mixed: Tensor) -> None:
            energies = []
            if self.sides != "qk":
                energies.append(channel_energy(site, mixed))
                tokens = own[site.name]
                tokens *= QUIET * embedded[_place(controller, site)].mean(0).std() / (GAIN * linear(x, tokens)).std()
            if self.sides != "vo":
                energies.append(pair_energy(site, q, k))
            wanted = torch.cat([cluster.start_logits(one[None], share, spread)[0] for one in energies])
            (norm, weight), shift = _head(controller, site), embedded[_place(controller, site)].mean(0)
            features = controller.activation(norm(shift))
            weight += torch.outer(wanted - weight @ features, features / features.square().sum())

        calibrate.visit_attention(job, look)


def pair_energy(site: Site, q: Float[Tensor, "tokens q"], k: Float[Tensor, "tokens k"]) -> Float[Tensor, " pairs"]:
    """What each rotary pair adds to the scores of attention: the energy of queries times that of keys, over all heads.
    A rotation does not change it."""
    attention = site.attention
    energy = []
    for side in (q, k):
        squares = side.view(len(side), -1, attention.head_dim).square().mean(0)
        energy.append(sum(squares.chunk(2, dim=-1)))
    shared = energy[1].repeat_interleave(attention.heads // attention.kv_heads, 0)
    return (energy[0] * shared).sum(0)


def channel_energy(site: Site, mixed: Float[Tensor, "tokens o"]) -> Float[Tensor, " head_dim"]:
    """What each channel of a head adds to the output of attention: the energy of the mixed values times that of the
    column which reads them, over all heads."""
    columns = site.attention.o.weight.detach().float().square().sum(0)
    return (mixed.square().mean(0) * columns).view(-1, site.attention.head_dim).sum(0)


class TokenGates:
    """How values are masked in one step. `counted` is what the budget charges in the last forward pass: by part, for
    each token and channel, the chance that it is kept, or, once settled, whether it is."""

    def __init__(self, networks: Mapping[str, TokenMask], noise: torch.Generator | None) -> None:
        """With `noise` a mask is drawn, the noise of a channel being the same for all tokens; without, the network's
        own count of channels is kept, and nothing learns."""
        self._networks = networks
        self._noise = None if noise is None else {n: gates.gumbel(one.up[:, 0], noise) for n, one in networks.items()}
        self.counted: dict[str, Float[Tensor, "tokens head_dim"]] = {}

    def masks(self, name: str) -> bool:
        """Whether the part called `name` is masked."""
        return name in self._networks

    def mask(self, name: str, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens head_dim"]:
        """The mask of each token in the part called `name`."""
        if self._noise is None:
            with torch.no_grad():
                mask = self._networks[name](x)
            self.counted[name] = mask.float().flatten(0, -2)
            return mask
        scores = self._networks[name].scores(x)
        self.counted[name] = gates.keep_probability(scores).flatten(0, -2)
        return gates.gumbel_sigmoid(scores, noise=self._noise[name])


def settled(networks: Mapping[str, TokenMask], widths: Mapping[str, int]) -> dict[str, TokenMask]:
    """The networks with the counts that are exported."""
    return {name: replace(network, count=widths[name]) for name, network in networks.items()}


@contextmanager
def acting(sites: list[Site], rows: Mapping[str, Float[Tensor, "_ _"]], tokens: TokenGates) -> Iterator[None]:
    """Within, attention computes with the masks of pairs in `rows`, by part, and with those of the tokens; it is whole
    where there are none. Differentiable in both."""
    with ExitStack() as stack:
        for site in sites:
            pairs, name = rows.get(f"{site.attention_name}.qk"), f"{site.attention_name}.vo"
            row = None if pairs is None else pairs[0].repeat(2)
            mask: Callable[[Tensor], Tensor] | None = partial(tokens.mask, name) if tokens.masks(name) else None
            for handle in attention_hooks(site.attention, row, mask):
                stack.callback(handle.remove)
        yield


@torch.no_grad()
def chances(job: MoeJob, networks: Mapping[str, TokenMask]) -> dict[str, Float[Tensor, "tokens head_dim"]]:
    """The chance that each token of the calibration windows keeps each channel, by part: from what the dense model's
    attention reads, on every process the same."""
    found: dict[str, Tensor] = {}

    def look(site: Site, x: Tensor, q: Tensor, k: Tensor, mixed: Tensor) -> None:
        name = f"{site.attention_name}.vo"
        found[name] = gates.keep_probability(networks[name].scores(x))

    if networks:
        calibrate.visit_attention(job, look)
    return found


def evidence(name: str, network: TokenMask) -> dict[str, Tensor]:
    """The network as a plan holds it."""
    return {f"{name}.{part}": getattr(network, part).detach().float().cpu().clone() for part in TOKEN_MASK}


def _place(controller: Controller, site: Site) -> int:
    return list(controller.sites).index(site.attention_name)


def _head(controller: Controller, site: Site) -> tuple[nn.LayerNorm, Tensor]:
    place = _place(controller, site)
    norm, head = controller.norms[place], controller.heads[place]
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(head, nn.Linear)
    return norm, head.weight
