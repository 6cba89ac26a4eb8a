"""Differentiable yes or no, and the controller network that emits the logits: shared by prune (ATO) and moe (ToMoE).

A gate is open when `logit + offset + G > 0`, where G is one standard Gumbel variable. With the offset of 3 that both
papers use, a logit of 0 opens the gate almost surely: training starts from the whole network. Everything here computes
in float32, also under autocast: `exp(exp(x))` and `log(log(u))` do not survive half precision.

Sources: ATO (Wu et al., CVPR 2024, arXiv:2403.14729) and ToMoE (Gao et al., 2025, arXiv:2501.15316), whose gates are
the straight-through form of Jang et al. (2017) and Maddison et al. (2017).
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.errors import SettingError

OFFSET = 3.0
TEMPERATURE = 0.4
MEDIAN = -math.log(math.log(2))
"""The median of a standard Gumbel variable: where `logit + offset + MEDIAN` is above 0, the gate is open more often
than not."""


def gumbel(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise in float32, of the shape and on the device of `like`; always finite."""
    exponential = torch.empty(like.shape, dtype=torch.float32, device=like.device).exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(torch.float32).tiny).log()


def straight_through(soft: Tensor) -> Tensor:
    """0 or 1 in the forward pass (1 from 0.5 on), the gradient of `soft` in the backward pass."""
    return (soft >= 0.5).to(soft.dtype) - soft.detach() + soft


def gumbel_sigmoid(
    logits: Tensor,
    *,
    temperature: float = TEMPERATURE,
    offset: float = OFFSET,
    hard: bool = True,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Sampled gates in float32, shaped as `logits`: 0 or 1 with a straight-through gradient, or soft in (0, 1).

    `noise` is what `gumbel` has drawn before, for gates that share it: the last axes of `logits`.
    """
    drawn = gumbel(logits, generator) if noise is None else noise
    soft = torch.sigmoid((logits.float() + drawn + offset) / temperature)
    return straight_through(soft) if hard else soft


def gumbel_softmax(
    logits: Float[Tensor, "*rows choices"],
    *,
    temperature: float = TEMPERATURE,
    sampled: bool = True,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*rows choices"]:
    """One choice a row as a one-hot vector with a straight-through gradient; without noise where not `sampled`."""
    noisy = logits.float() + (gumbel(logits, generator) if sampled else 0.0)
    soft = (noisy / temperature).softmax(-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard - soft.detach() + soft


def keep_probability(logits: Tensor, offset: float = OFFSET) -> Tensor:
    """How probable it is that `gumbel_sigmoid` opens each gate: `1 - exp(-exp(logit + offset))`."""
    return -torch.expm1(-torch.exp(logits.float() + offset))


def logits_for(probability: Tensor, offset: float = OFFSET) -> Tensor:
    """The logits at which `keep_probability` gives `probability` (kept within 1e-6 of 0 and of 1)."""
    return torch.log(-torch.log1p(-probability.double().clamp(1e-6, 1 - 1e-6))).float() - offset


def likely_open(logits: Tensor, offset: float = OFFSET) -> Tensor:
    """The decision without noise, bool: which gates are open with a probability above one half."""
    return logits.float() + offset + MEDIAN > 0


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None  # type: ignore[attr-defined]


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x` itself, whose gradient is multiplied by `factor`."""
    result = _ScaledGradient.apply(x, factor)
    assert isinstance(result, Tensor)
    return result


class Controller(nn.Module):
    """A network that emits logits for every site of another network: fixed noise, a bidirectional GRU along the sites,
    one linear head a site.

    The GRU sees the sites as a sequence, so that the decision at one depends on the others. Its input is frozen; what
    is learnt are the GRU, the normalisation and the heads. `rows` experts (ToMoE) run through it as a batch and give
    `rows` sets of logits for each site; ATO has one.
    """

    noise: Tensor

    def __init__(
        self,
        sites: Mapping[str, int],
        *,
        rows: int = 1,
        input_width: int = 64,
        hidden: int = 128,
        start: Literal["orthogonal", "normal"] = "orthogonal",
        activation: Literal["relu", "gelu"] = "relu",
        shared_norm: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        """Build for `sites`: the number of logits of each, by name, in the order of the network.

        Raises `SettingError` where there is no site.
        """
        super().__init__()
        if not sites:
            raise SettingError("a controller needs at least one site to decide on; the network offers none")
        self.sites = dict(sites)
        self.rows = rows
        noise = torch.empty(len(sites), rows, input_width)
        if start == "orthogonal":
            for row in range(rows):
                nn.init.orthogonal_(noise[:, row], generator=generator)
        else:
            noise.normal_(generator=generator)
        self.register_buffer("noise", noise)
        self.recurrent = nn.GRU(input_width, hidden, bidirectional=True)
        norms = 1 if shared_norm else len(sites)
        self.norms = nn.ModuleList(nn.LayerNorm(2 * hidden) for _ in range(norms))
        self.activation = nn.ReLU() if activation == "relu" else nn.GELU()
        self.heads = nn.ModuleList(nn.Linear(2 * hidden, size, bias=False) for size in sites.values())

    def embeddings(self) -> Float[Tensor, "sites rows width"]:
        """What the GRU makes of each site, before normalisation and head; float32."""
        with torch.autocast(self.noise.device.type, enabled=False):
            embedded, _ = self.recurrent(self.noise)
        return embedded

    def head(self, site: int, embedding: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows size"]:
        """The logits of the site with this number for an embedding (with a token's share added, in ToMoE)."""
        norm = self.norms[site if len(self.norms) > 1 else 0]
        with torch.autocast(self.noise.device.type, enabled=False):
            return self.heads[site](self.activation(norm(embedding.float())))

    def forward(self) -> dict[str, Float[Tensor, "rows _"]]:
        """Return the logits of every site, by name: (rows, size)."""
        embedded = self.embeddings()
        return {name: self.head(number, embedded[number]) for number, name in enumerate(self.sites)}
