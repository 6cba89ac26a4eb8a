"""The `standard` layout: a plan as a stock mixture of experts, for every loader that knows Mixtral or Qwen's MoE.

Exact, since these classes divide the routing weights of the chosen experts by their sum: with one expert chosen its
weight is 1. One width serves all layers and experts: a plan with others is refused. With one expert for all tokens
nothing is routed, and the result is the dense architecture with a smaller MLP.

| dense                  | standard     |
| ---------------------- | ------------ |
| Llama, SmolLM, Mistral | Mixtral      |
| Qwen2                  | Qwen2-MoE, its shared expert with no channels |
| Qwen3                  | Qwen3-MoE    |
"""

import copy
from typing import Any

import torch
from torch import Tensor

from thrifty.errors import ModelError, SettingError
from thrifty.moe.cost import MULTIPLE
from thrifty.moe.masking import bias_of, experts_of, router_of, source_of
from thrifty.moe.precision import match
from thrifty.moe.sites import Site, found
from thrifty.plan import Plan

FAMILIES = {"llama": "Mixtral", "mistral": "Mixtral", "qwen2": "Qwen2Moe", "qwen3": "Qwen3Moe"}
_NOT_CARRIED = ("model_type", "architectures", "intermediate_size", "transformers_version", "dtype", "mlp_bias")


def check(plan: Plan, model: Any) -> tuple[int, int]:
    """The (experts, width) of a plan that this layout can hold.

    Raises `SettingError` for what it cannot: unequal widths, no multiple of 16, pruned attention, a bias, pre-gating;
    the tomoe layout holds all of these. Raises what `check_model` raises.
    """
    check_model(model)
    sites = found(model)
    whole = [name for name, kept in plan.keep.items() if name.endswith((".qk", ".vo")) and not bool(kept.all())]
    if whole:
        raise SettingError(f"{whole[0]}: stock classes have no thinned attention; use --layout tomoe")
    if source_of(plan) is not None:
        raise SettingError("stock classes route in every layer, the plan does once for all; use --layout tomoe")
    if any(bias_of(plan, site) is not None for site in sites):
        raise SettingError("stock classes have no bias after the MLP, which this plan adds; use --layout tomoe")
    return _shape(plan, sites)


def check_model(model: Any) -> None:
    """Raise `ModelError` where no stock class fits the model, whatever the plan."""
    sites, kind = found(model), model.config.model_type
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ModelError(f"no stock mixture of experts fits {kind} (known: {known}); use --layout tomoe")
    if any(side.bias is not None for site in sites for side in (site.up, site.down)):
        raise ModelError("the MLPs have biases, which stock classes lack; use --layout tomoe")
    if kind in ("llama", "mistral") and sites[0].attention.q.bias is not None:
        raise ModelError("the attention has biases, which Mixtral lacks; use --layout tomoe")
    if kind == "qwen3" and "sliding_attention" in (getattr(model.config, "layer_types", None) or ()):
        raise ModelError("Qwen3-MoE has one window for all layers, this model one for some; use --layout tomoe")


def _shape(plan: Plan, sites: list[Site]) -> tuple[int, int]:
    masks = [experts_of(plan, site) for site in sites]
    shapes = {(len(mask), int(width)) for mask in masks for width in mask.sum(1)}
    if len(shapes) > 1:
        widths = sorted({width for _, width in shapes})
        raise SettingError(
            f"the standard layout has one width for all layers and experts; this plan has {widths[0]} to {widths[-1]}. "
            "Use --layout tomoe, or a method with uniform widths"
        )
    ((count, width),) = shapes
    if width % MULTIPLE:
        raise SettingError(f"the standard layout needs widths that are multiples of {MULTIPLE}; this plan has {width}")
    return count, width


def build(plan: Plan, model: Any) -> Any:
    """The stock model that `plan` asks for, with the weights of the dense `model`. Raises what `check` raises."""
    import transformers
    from transformers.initialization import no_init_weights

    count, width = check(plan, model)
    sites = found(model)
    kind, dtype = model.config.model_type, sites[0].up.weight.dtype
    name = FAMILIES[kind] if count > 1 else type(model).__name__.removesuffix("ForCausalLM")
    config = _config(getattr(transformers, f"{name}Config"), model.config, count, width)
    with no_init_weights():
        made = getattr(transformers, f"{name}ForCausalLM")(config)
    match(made, model, dtype)
    state = {key: tensor for key, tensor in model.state_dict().items() if ".mlp." not in key}
    for site in sites:
        prefix = f"model.layers.{site.index}.mlp."
        own = _routed(plan, site, dtype) if count > 1 else _single(plan, site)
        state |= {prefix + key: tensor for key, tensor in own.items()}
    state |= {key: torch.zeros_like(value) for key, value in made.state_dict().items() if ".mlp.shared_expert" in key}
    made.tie_weights()
    made.load_state_dict(state)
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.to(sites[0].up.weight.device).eval()


def _config(kind: type, dense: Any, count: int, width: int) -> Any:
    fields = {name: value for name, value in dense.to_dict().items() if name not in _NOT_CARRIED}
    if count == 1:
        mlp_bias = {"mlp_bias": False} if hasattr(dense, "mlp_bias") else {}
        return kind(**fields, **mlp_bias, intermediate_size=width)
    fields |= {"num_experts_per_tok": 1, "norm_topk_prob": True, "num_experts": count, "moe_intermediate_size": width}
    if kind.__name__ == "MixtralConfig":
        fields = {name: value for name, value in fields.items() if not name.startswith(("num_experts", "norm", "moe"))}
        fields |= {"num_local_experts": count, "num_experts_per_tok": 1}
        fields.pop("attention_bias", None)
    if kind.__name__ == "Qwen2MoeConfig":
        fields |= {"qkv_bias": True, "shared_expert_intermediate_size": 0}
    if kind.__name__ != "Qwen3MoeConfig":
        fields.pop("pretraining_tp", None)
    return kind(**fields, intermediate_size=width)


def _routed(plan: Plan, site: Site, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of one layer in the three-dimensional form of transformers 5."""
    router = router_of(plan, site)
    assert router is not None
    assert site.gate is not None
    index = [mask.nonzero().flatten().to(site.up.weight.device) for mask in experts_of(plan, site)]
    gate_up = [torch.cat((site.gate.weight[rows], site.up.weight[rows])) for rows in index]
    return {
        "gate.weight": router.to(dtype),
        "experts.gate_up_proj": torch.stack(gate_up).detach(),
        "experts.down_proj": torch.stack([site.down.weight[:, rows] for rows in index]).detach(),
    }


def _single(plan: Plan, site: Site) -> dict[str, Tensor]:
    rows = experts_of(plan, site)[0].nonzero().flatten().to(site.up.weight.device)
    state = {"up_proj.weight": site.up.weight[rows], "down_proj.weight": site.down.weight[:, rows].contiguous()}
    if site.gate is not None:
        state["gate_proj.weight"] = site.gate.weight[rows]
    return {name: tensor.detach() for name, tensor in state.items()}
