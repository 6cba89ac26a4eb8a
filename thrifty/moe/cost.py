"""What a plan's parts cost: parameters that act on a token, and the differentiable share of them.

Three scopes, and every report names its own:
- `mlp`: the linears of the MLPs only;
- `blocks`: those and the linears of the attention (the paper's count; no embeddings, norms, biases, head or routers);
- `model`: everything, with embeddings, head, norms, biases and routers.

The width of an MLP is that of its widest expert, as in the paper: what is charged is what a token may need at most.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from thrifty.budget import Budget, Keep
from thrifty.errors import SettingError
from thrifty.moe.sites import Site, found

Scope = Literal["mlp", "blocks", "model"]
SCOPES: tuple[Scope, ...] = ("mlp", "blocks", "model")
MULTIPLE = 16
"""Widths of experts are multiples of this, so that rows are aligned for every kernel."""
PAIRS = 4
"""Rotary pairs are kept in fours: kernels of attention take heads whose channels are a multiple of 8."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Part:
    """One thing a plan decides on: `size` units of `unit_weights` weights each. `scope` is `mlp` or `blocks`; where
    widths are fitted to a budget they are all units, or a `multiple`."""

    size: int
    unit_weights: int
    scope: Scope
    multiple: int = 1

    @property
    def least(self) -> int:
        """The fewest units that may be kept."""
        return round_width(0, self.size, self.multiple)

    @property
    def weights(self) -> int:
        """All weights of the part."""
        return self.size * self.unit_weights


@dataclass(frozen=True)
class Sizes:
    """The parts of a dense model in numbers; `rest` is what no plan decides on (embeddings, head, norms, biases)."""

    parts: dict[str, Part]
    num_layers: int
    width: int
    embedding: int
    head: int
    is_tied: bool
    rest: int
    element_bytes: int

    @staticmethod
    def of(model: nn.Module) -> "Sizes":
        """Count `model`. Raises `ModelError` where its structure is not known."""
        sites = found(model)
        parts = {name: part for site in sites for name, part in parts_of(site).items()}
        total = sum(parameter.numel() for parameter in model.parameters())  # tied weights are one parameter
        embedding = _weights(getattr(model, "get_input_embeddings", lambda: None)())
        head_module = getattr(model, "get_output_embeddings", lambda: None)()
        is_tied = head_module is not None and head_module.weight is model.get_input_embeddings().weight  # type: ignore[operator]
        return Sizes(
            parts,
            num_layers=len(sites),
            width=sites[0].width,
            embedding=embedding,
            head=_weights(head_module),
            is_tied=is_tied,
            rest=total - sum(part.weights for part in parts.values()),
            element_bytes=sites[0].up.weight.element_size(),
        )

    def weights(self, scope: Scope) -> int:
        """The weights of the dense model in `scope`."""
        own = sum(part.weights for part in self.parts.values() if scope != "mlp" or part.scope == "mlp")
        return own + (self.rest if scope == "model" else 0)

    def active(self, widths: Mapping[str, Tensor | float | int], scope: Scope = "mlp", routers: int = 0) -> Tensor:
        """Weights that act on one token, differentiable; `widths` are units kept by part, those not named are whole.
        `routers` weights are added in scope `model`."""
        unknown = [name for name in widths if name not in self.parts]
        if unknown:
            raise SettingError(f"{unknown[0]} is no part of this model; it has {len(self.parts)}, such as layers.0.mlp")
        total: Tensor = torch.tensor(float(self.rest + routers if scope == "model" else 0.0))
        for name, part in self.parts.items():
            if scope == "mlp" and part.scope != "mlp":
                continue
            kept = widths.get(name, part.size)
            total = total + part.unit_weights * (kept.float().cpu() if isinstance(kept, Tensor) else float(kept))
        return total

    def active_ratio(self, widths: Mapping[str, Tensor | float | int], scope: Scope = "mlp") -> Tensor:
        """`active` as a share of the dense model in the same scope: a scalar to put into a loss."""
        return self.active(widths, scope) / self.weights(scope)

    def cost(self, scope: Scope = "mlp") -> Callable[[Keep], Tensor]:
        """The cost of a keep for `Budget`: active weights in `scope`."""
        return lambda keep: self.active(widths_of(keep), scope)

    def budget(self, ratio: float | int, scope: Scope = "mlp") -> Budget:
        """At most `ratio` of the weights in `scope` active. Raises `SettingError` unless 0 < ratio < 1."""
        check_ratio(ratio)
        return Budget(self.cost(scope), ratio * self.weights(scope), "active parameters")

    def uniform_width(self, ratio: float | int, scope: Scope = "mlp", thinned: Collection[str] = ()) -> dict[str, int]:
        """Widths of the MLPs and of the parts of attention that are `thinned`, one share of each in their multiples,
        that meet `ratio` in `scope` from below. Parts whose share is less than their first multiple have that one, and
        the others pay for it.

        Raises `SettingError` where everything else, or that with the first multiple of all, costs more than `ratio`.
        """
        room = self.room(ratio, scope, thinned)
        parts = free = {name: part for name, part in self.parts.items() if part.scope == "mlp" or name in thinned}
        widths: dict[str, int] = {}
        while True:
            share = room / sum(part.weights for part in free.values())
            short = {name: part.least for name, part in free.items() if share * part.size + _ROUNDING < part.least}
            if not short:
                break
            if len(short) == len(free):
                raise SettingError(f"active {ratio:g} of the {scope}: {self._needed(scope, parts)}")
            room -= sum(parts[name].unit_weights * width for name, width in short.items())
            widths |= short
            free = {name: part for name, part in free.items() if name not in short}
        rest = {name: round_width(share * part.size, part.size, part.multiple) for name, part in free.items()}
        return {name: (widths | rest)[name] for name in parts}

    def room(self, ratio: float | int, scope: Scope = "mlp", thinned: Collection[str] = ()) -> float:
        """Weights of the MLPs and of the parts that are `thinned` that may be active. Raises `SettingError` where
        everything else alone costs more than `ratio`."""
        check_ratio(ratio)
        own = sum(part.weights for name, part in self.parts.items() if part.scope == "mlp" or name in thinned)
        counted = self.weights(scope)
        room = ratio * counted - (counted - own)
        if room <= 0:
            raise SettingError(
                f"active {ratio:g} of the {scope}: what stays whole is {1 - own / counted:.0%} already; ask for more"
            )
        return room

    def _needed(self, scope: Scope, parts: Mapping[str, Part]) -> str:
        """What the narrowest experts need, in words."""
        least = float(self.active_ratio({name: part.least for name, part in parts.items()}, scope))
        narrow = min((part for part in parts.values() if part.scope == "mlp"), key=lambda part: part.size)
        said = f"experts have at least {narrow.least} of {narrow.size} channels = {least:.0%}"
        more = math.ceil(100 * least - _ROUNDING) / 100
        return f"{said}; ask for {more:g} or more" if more < 1 else f"{said}; these MLPs are too narrow for experts"


def check_ratio(ratio: float | int) -> None:
    """Raise `SettingError` unless 0 < ratio < 1."""
    if not 0 < ratio < 1:
        raise SettingError(f"active {ratio:g} is no share of the parameters; use a number between 0 and 1, such as 0.5")


def round_width(width: float | int, size: int, multiple: int = MULTIPLE) -> int:
    """The multiple of `multiple` below `width`, at least that and at most `size`."""
    return min(max(int(width + _ROUNDING) // multiple * multiple, multiple), size)


def widths_of(keep: Keep) -> dict[str, Tensor]:
    """Units of each part that are kept: of an MLP with experts, (experts, channels), those of the widest expert."""
    return {name: kept.float().sum(-1).max() if kept.ndim == 2 else kept.float().sum() for name, kept in keep.items()}


def parts_of(site: Site) -> dict[str, Part]:
    """The parts of one layer: its MLP's channels, rotary pairs of queries and keys, channels of values and outputs."""
    attention, d = site.attention, site.width
    heads, kv_heads, head_dim = attention.heads, attention.kv_heads, attention.head_dim
    mlp = Part(site.channels, (2 if site.gate is None else 3) * d, "mlp", MULTIPLE)
    pairs = head_dim // 2
    qk = Part(pairs, 2 * d * (heads + kv_heads), "blocks", PAIRS)
    vo = Part(head_dim, d * (heads + kv_heads), "blocks")
    return {site.name: mlp, f"{site.attention_name}.qk": qk, f"{site.attention_name}.vo": vo}


def _weights(module: nn.Module | None) -> int:
    weight = getattr(module, "weight", None)
    return 0 if weight is None else int(weight.numel())
