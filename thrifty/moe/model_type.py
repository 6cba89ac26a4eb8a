"""The `tomoe` layout: the dense architecture with its MLPs as experts of any widths and its attention thinned.

One class for each family, made from transformers' own (`tomoe_llama` from Llama, and so on): embeddings, norms, cache,
generation and loading are those of the family. `register` makes them known to `AutoConfig` and `AutoModelForCausalLM`;
the folder holds no code. `config.tomoe` has one entry a layer:

    {"experts": 8, "stored": 1404, "gate": true, "bias": false, "out_bias": false, "routed": true,
     "pairs": 24, "values": 40, "inner": 128}

with `experts` 0 where the MLP stays dense, `pairs` and `values` null where the attention stays whole; and
`config.tomoe_source` the layer that routes all, or null.
"""

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.errors import ModelError
from thrifty.moe.experts import PackedMlp, Shape
from thrifty.moe.masking import TOKEN_MASK, bias_of, experts_of, pairs_of, router_of, source_of, token_mask_of
from thrifty.moe.packing import Packing
from thrifty.moe.precision import match
from thrifty.moe.sites import Site, found, read
from thrifty.moe.thin_attention import MaskedOutput, MaskedValues, ThinAttention
from thrifty.plan import Plan

FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "phi": "Phi"}
PREFIX = "tomoe_"


def register() -> None:
    """Make `AutoConfig` and `AutoModelForCausalLM` know the layout; a second call changes nothing."""
    import transformers

    for kind in FAMILIES:
        config_class, model_class = classes(kind)
        transformers.AutoConfig.register(PREFIX + kind, config_class, exist_ok=True)
        transformers.AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)


@functools.cache
def classes(kind: str) -> tuple[type, type]:
    """The classes of configuration and model for models of this type. Raises `ModelError` for an unknown one."""
    import transformers

    if kind not in FAMILIES:
        raise ModelError(f"the tomoe layout does not know models of type {kind}; it knows {', '.join(FAMILIES)}")
    name = FAMILIES[kind]
    inner_config = getattr(transformers, f"{name}Config")
    inner_model = getattr(transformers, f"{name}ForCausalLM")
    config_class = type(f"Tomoe{name}Config", (inner_config,), {"model_type": PREFIX + kind, "__module__": __name__})

    def build(self: Any, config: Any) -> None:
        inner_model.__init__(self, config)
        rebuild(self, config)
        self.post_init()

    members = {"__init__": build, "config_class": config_class, "config": None, "__module__": __name__}
    members["_keep_in_fp32_modules_strict"] = {"router", "token_mask"}
    return config_class, type(f"Tomoe{name}ForCausalLM", (inner_model,), members)


def rebuild(model: nn.Module, config: Any) -> None:
    """Put the modules that `config.tomoe` describes into a dense model; their weights are to be loaded."""
    mlps: dict[int, PackedMlp] = {}
    for site, entry in zip(read(model), config.tomoe, strict=True):
        if entry["experts"]:
            shape = Shape(*(entry[name] for name in ("experts", "stored", "gate", "bias", "out_bias", "routed")))
            mlps[site.index] = PackedMlp(shape, site.width, site.activation)
            site.layer.mlp = mlps[site.index]
        if entry["values"]:
            values = MaskedValues(site.attention, entry["values"], entry["inner"])
            site.attention.module.v_proj = values
            out = MaskedOutput(site.attention, values)
            setattr(site.attention.module, "o_proj" if hasattr(site.attention.module, "o_proj") else "dense", out)
        if entry["pairs"]:
            site.layer.self_attn = ThinAttention(site.attention, config, entry["pairs"])
    if config.tomoe_source is not None:
        for index, mlp in mlps.items():
            if index != config.tomoe_source and mlp.shape.num_experts > 1:
                mlp.follow(mlps[config.tomoe_source])


def build(plan: Plan, model: Any) -> Any:
    """The model that `plan` asks for, with the weights of the dense `model`. Raises `ModelError` where its family is
    not known."""
    from transformers.initialization import no_init_weights

    sites = found(model)
    config_class, model_class = classes(model.config.model_type)
    fields = model.config.to_dict()
    fields = {name: value for name, value in fields.items() if name not in ("model_type", "architectures")}
    config = config_class(**fields, tomoe=[_entry(plan, site) for site in sites], tomoe_source=source_of(plan))
    config._attn_implementation = model.config._attn_implementation
    with no_init_weights():
        made = model_class(config)
    match(made, model, sites[0].up.weight.dtype)
    state = dict(model.state_dict())
    for site in sites:
        state = _replaced(state, f"model.layers.{site.index}.", _state(plan, site))
    for name, parameter in made.named_parameters():
        if ".router" in name or ".token_mask" in name:
            parameter.data = parameter.data.float()
    made.tie_weights()
    made.load_state_dict(state)
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.to(sites[0].up.weight.device).eval()


def _entry(plan: Plan, site: Site) -> dict[str, Any]:
    pairs, mask = pairs_of(plan, site), token_mask_of(plan, site)
    entry: dict[str, Any] = {"experts": 0, "pairs": None if pairs is None else int(pairs.sum())}
    entry |= {"values": mask.count if mask else None, "inner": len(mask.shift) if mask else None}
    if site.name in plan.keep:
        masks = experts_of(plan, site)
        entry |= {"experts": len(masks), "stored": int(masks.any(0).sum()), "gate": site.gate is not None}
        entry |= {"bias": site.up.bias is not None, "routed": router_of(plan, site) is not None}
        entry["out_bias"] = site.down.bias is not None or bias_of(plan, site) is not None
    return entry


def _replaced(state: dict[str, Tensor], prefix: str, new: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the entries of the modules in `new` (up to their first point) exchanged."""
    gone = tuple(f"{prefix}{name}." for name in {_module(name) for name in new})
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(gone)}
    return kept | {prefix + name: tensor for name, tensor in new.items()}


def _module(name: str) -> str:
    return "mlp" if name.startswith("mlp.") else ".".join(name.split(".")[:2])


def _state(plan: Plan, site: Site) -> dict[str, Tensor]:
    """The weights of one layer as the layout stores them."""
    state: dict[str, Tensor] = {}
    if site.name in plan.keep:
        state |= {f"mlp.{name}": tensor for name, tensor in mlp_state(plan, site).items()}
    attention, out = site.attention, "o_proj" if hasattr(site.attention.module, "o_proj") else "dense"
    mask, pairs = token_mask_of(plan, site), pairs_of(plan, site)
    if mask is not None:
        state |= {f"self_attn.v_proj.token_mask.{part}": getattr(mask, part) for part in TOKEN_MASK}
        for name, side in (("v_proj", attention.v), (out, attention.o)):
            state |= {f"self_attn.{name}.inner.{key}": value for key, value in side.state_dict().items()}
    if pairs is not None:
        rows = pairs.repeat(2)
        for name, side in (("q_proj", attention.q), ("k_proj", attention.k)):
            kept = rows.repeat(side.out_features // attention.head_dim).to(side.weight.device)
            state |= {f"self_attn.{name}.{key}": value[kept] for key, value in side.state_dict().items()}
        state["self_attn.pairs.kept"] = pairs.nonzero().flatten()
    return state


def mlp_state(plan: Plan, site: Site) -> dict[str, Tensor]:
    """The weights of one MLP as `PackedMlp` stores them."""
    packing = Packing.of(experts_of(plan, site))
    order = packing.order.to(site.up.weight.device)
    state = {"up": site.up.weight[order], "down": site.down.weight[:, order].T, "members": packing.members.byte()}
    if site.gate is not None:
        state["gate"] = site.gate.weight[order]
    if site.up.bias is not None:
        state["up_bias"] = site.up.bias[order]
    if site.gate is not None and site.gate.bias is not None:
        state["gate_bias"] = site.gate.bias[order]
    out = [bias for bias in (site.down.bias, bias_of(plan, site)) if bias is not None]
    if out:
        state["out_bias"] = torch.stack([bias.detach().to(site.up.weight) for bias in out]).sum(0)
    router = router_of(plan, site)
    if router is not None:
        state["router"] = router
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}
