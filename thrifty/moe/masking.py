"""The dense model with a plan's masks applied token by token: the reference that every export is checked against.

MLP: token x uses expert argmax(router x), whose mask multiplies the input of the down projection; the routing weight is
exactly 1, and `bias`, where a plan has one, is added to the output. With `router.source` = s (pre-gating, Read-ME) the
router of layer s, applied to that layer's MLP input, chooses the expert of every layer.

Attention: `qk` zeroes rotary pairs of queries and keys (the scale stays that of the whole head). `vo` gives each token
a mask of the k largest of `up GELU(LayerNorm(down x + shift))`, x the input of the attention; the mask multiplies the
token's values and its input to the output projection, the same for all heads.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear

from thrifty.errors import SettingError
from thrifty.moe.sites import Attention, Site, found
from thrifty.plan import Plan

SOURCE = "router.source"
TOKEN_MASK = ("down", "norm_weight", "norm_bias", "shift", "up")
"""The tensors of a `TokenMask`: a plan has them as evidence under the name of the part."""


def experts_of(plan: Plan, site: Site) -> Bool[Tensor, "experts channels"]:
    """Which channels of the layer's MLP each expert has. Raises `SettingError` where the plan is for another model."""
    kept = plan.keep.get(site.name)
    if kept is None or kept.ndim != 2 or kept.shape[1] != site.channels:
        shape = "nothing" if kept is None else f"a mask of {tuple(kept.shape)}"
        raise SettingError(f"the plan holds {shape} for {site.name}; the model needs (experts, {site.channels})")
    if not ((kept == 0) | (kept == 1)).all():
        raise SettingError(f"{site.name}: a mask holds 0 and 1 only")
    if not kept.any(1).all():
        raise SettingError(f"{site.name}: an expert of the plan has no channel at all")
    return kept.bool()


def router_of(plan: Plan, site: Site) -> Float[Tensor, "experts d"] | None:
    """The layer's router in float32; None where one expert serves all tokens, or another layer's router does.

    Raises `SettingError` where several experts have no router or one of another shape.
    """
    num_experts = experts_of(plan, site).shape[0]
    if num_experts == 1 or source_of(plan) not in (None, site.index):
        return None
    router = plan.evidence.get(f"{site.name}.router")
    if router is None or tuple(router.shape) != (num_experts, site.width):
        shape = "none" if router is None else f"one of {tuple(router.shape)}"
        wanted = (num_experts, site.width)
        raise SettingError(f"{site.name}: {num_experts} experts need a router of {wanted}, the plan holds {shape}")
    return router.float()


def source_of(plan: Plan) -> int | None:
    """The layer whose router chooses for all layers; None where each has its own."""
    source = plan.evidence.get(SOURCE)
    return None if source is None else int(source)


def bias_of(plan: Plan, site: Site) -> Float[Tensor, " d"] | None:
    """What the plan adds to the output of the layer's MLP."""
    return plan.evidence.get(f"{site.name}.bias")


@dataclass(frozen=True)
class TokenMask:
    """The small network that gives each token the `count` channels of a head which its values keep."""

    count: int
    down: Float[Tensor, "inner d"]
    norm_weight: Float[Tensor, " inner"]
    norm_bias: Float[Tensor, " inner"]
    shift: Float[Tensor, " inner"]
    up: Float[Tensor, "head_dim inner"]

    def features(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens inner"]:
        """What the scores of each token are a linear function of, in float32."""
        inner = linear(x.float(), self.down) + self.shift
        return gelu(layer_norm(inner, inner.shape[-1:], self.norm_weight, self.norm_bias))

    def scores(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens head_dim"]:
        """How much each token wants each channel of a head, in float32."""
        return linear(self.features(x), self.up)

    def __call__(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens head_dim"]:
        """Return the mask of each token, 0 or 1, in the type of `x`."""
        scores = self.scores(x)
        best = scores.topk(self.count, dim=-1).indices
        return torch.zeros_like(scores).scatter_(-1, best, 1.0).to(x.dtype)


def token_mask_of(plan: Plan, site: Site) -> TokenMask | None:
    """The layer's mask of values and outputs; None where the plan keeps them whole. Raises `SettingError` where it is
    not complete."""
    name = f"{site.attention_name}.vo"
    kept = plan.keep.get(name)
    if kept is None or bool(kept.all()):
        return None
    missing = [part for part in TOKEN_MASK if f"{name}.{part}" not in plan.evidence]
    if missing or kept.numel() != site.attention.head_dim or not kept.any():
        what = f"lacks {', '.join(missing)}" if missing else f"keeps {int(kept.sum())} of {kept.numel()} channels"
        raise SettingError(f"{name}: the plan {what}; heads have {site.attention.head_dim} channels")
    return TokenMask(int(kept.sum()), *(plan.evidence[f"{name}.{part}"].float() for part in TOKEN_MASK))


def pairs_of(plan: Plan, site: Site) -> Bool[Tensor, " pairs"] | None:
    """Which rotary pairs of queries and keys the layer keeps; None where all. Raises `SettingError` where the plan
    does not fit the heads, or pairs cannot be left out of them (Phi, Qwen3)."""
    kept = plan.keep.get(f"{site.attention_name}.qk")
    if kept is None or bool(kept.all()):
        return None
    attention = site.attention
    if not attention.can_drop_pairs:
        why = "only part of each head is rotated" if attention.q_norm is None else "a norm reads the whole head"
        raise SettingError(f"{site.attention_name}.qk: {why}; leave queries and keys whole")
    if kept.numel() != attention.head_dim // 2 or not kept.any():
        asked, room = f"{int(kept.sum())} of {kept.numel()}", attention.head_dim // 2
        raise SettingError(f"{site.attention_name}.qk: the plan keeps {asked} pairs; heads have {room}")
    return kept.flatten().bool()


def to_device(mask: TokenMask, device: torch.device) -> TokenMask:
    """The same network on another device."""
    return TokenMask(mask.count, *(getattr(mask, part).to(device) for part in TOKEN_MASK))


def chosen(router: Float[Tensor, "experts d"], x: Float[Tensor, "*tokens d"]) -> Int[Tensor, "*tokens"]:
    """The expert of each token: the largest of `router x` in float32, of equal ones the first."""
    return linear(x.float(), router).argmax(-1)


@contextmanager
def masked(model: nn.Module, plan: Plan) -> Iterator[None]:
    """Within, `model` computes with the masks of `plan`; parts that the plan does not name are whole.

    Raises `SettingError` where the plan does not fit the model.
    """
    sites = found(model)
    check(plan, sites)
    shared: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for site in sites:
            device = site.up.weight.device
            pairs, token_mask = pairs_of(plan, site), token_mask_of(plan, site)
            row = None if pairs is None else pairs.repeat(2).to(device)
            mask = None if token_mask is None else to_device(token_mask, device)
            for handle in [*_mlp_hooks(plan, site, shared, device), *attention_hooks(site.attention, row, mask)]:
                stack.callback(handle.remove)
        yield


def check(plan: Plan, sites: list[Site]) -> None:
    """Raise `SettingError` where the plan does not fit the model, whole."""
    known = {site.name for site in sites}
    known |= {f"{site.attention_name}.{side}" for site in sites for side in ("qk", "vo")}
    unknown = [name for name in plan.keep if name not in known]
    if unknown:
        raise SettingError(f"the plan decides on {unknown[0]}, which the model of {len(sites)} layers does not have")
    counts = {site.index: experts_of(plan, site).shape[0] for site in sites if site.name in plan.keep}
    source = source_of(plan)
    if source is not None:
        routed = {index: count for index, count in counts.items() if count > 1}
        if source not in routed or min(routed) < source or len(set(routed.values())) > 1:
            raise SettingError(f"router.source {source}: it must be the first of the layers with experts, all as many")
    for site in sites:
        if site.name in plan.keep:
            router_of(plan, site)
        pairs_of(plan, site)
        token_mask_of(plan, site)


def _mlp_hooks(plan: Plan, site: Site, shared: dict[str, Tensor], device: torch.device) -> Iterator[Any]:
    if site.name not in plan.keep:
        return
    masks = experts_of(plan, site).to(device, site.up.weight.dtype)
    router, bias = router_of(plan, site), bias_of(plan, site)
    source = source_of(plan)
    key = site.name if source is None else "all"
    if router is not None:
        router = router.to(device)

        def route(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            shared[key] = chosen(router, inputs[0])

        yield site.mlp.register_forward_pre_hook(route)

    def mask(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        rows = masks[0] if len(masks) == 1 else masks[shared[key]]
        return (inputs[0] * rows,)

    yield site.down.register_forward_pre_hook(mask)
    if bias is not None:
        added = bias.to(device, site.up.weight.dtype)

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + added

        yield site.mlp.register_forward_hook(add)


def attention_hooks(
    attention: Attention, row: Shaped[Tensor, " head_dim"] | None, mask: Callable[[Tensor], Tensor] | None
) -> Iterator[Any]:
    """Set hooks by which every head of queries and keys is multiplied by `row`, and values and the input of the output
    projection by the `mask` [*tokens, head_dim] that is made of the attention's input; yield what removes them."""
    if row is not None:
        for side in (attention.q, attention.k):
            yield side.register_forward_hook(_times(lambda: row, attention.head_dim))
    if mask is None:
        return
    state: dict[str, Tensor] = {}

    def read(module: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        x = inputs[0] if inputs else keywords["hidden_states"]
        state["mask"] = mask(x)[..., None, :]

    yield attention.module.register_forward_pre_hook(read, with_kwargs=True)
    times = _times(lambda: state["mask"], attention.head_dim)
    yield attention.v.register_forward_hook(times)
    yield attention.o.register_forward_pre_hook(lambda module, inputs: (times(module, (), inputs[0]),))


def _times(mask: Callable[[], Tensor], head_dim: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that multiplies every head of an output by a mask of its channels."""

    def multiply(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        heads = output.view(*output.shape[:-1], -1, head_dim)
        return (heads * mask().to(output.dtype)).view(output.shape)

    return multiply
