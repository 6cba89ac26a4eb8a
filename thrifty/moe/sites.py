"""Where the MLP and the attention of each layer of a dense causal language model are.

A part of a plan is named after its layer: `layers.3.mlp`, `layers.3.attention.qk`, `layers.3.attention.vo`. Layers are
read by their structure (Llama, SmolLM, Mistral, Qwen2, Qwen3: gate, up and down; Phi: fc1 and fc2, no gate), so a model
with the same layers under another name works too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from thrifty.errors import ModelError

if TYPE_CHECKING:
    Linear = nn.Linear
else:  # while a model is healed also peft's layer around a linear, which has the linear's attributes
    Linear = nn.Module

GATED = ("gate_proj", "up_proj", "down_proj")
PLAIN = ("fc1", "fc2")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Attention:
    """The attention of one layer: its linears, and its heads of `head_dim` channels.

    `rotary_dim` channels of a head are rotated, channel i with channel i + rotary_dim / 2. `q_norm` and `k_norm`
    normalise each head before the rotation (Qwen3), or are None.
    """

    module: nn.Module
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    q_norm: nn.Module | None
    k_norm: nn.Module | None

    @property
    def can_drop_pairs(self) -> bool:
        """Whether rotary pairs of queries and keys can be left out: every channel is rotated (not so in Phi), and no
        norm reads the whole head before (as in Qwen3, where the projections would have to stay whole)."""
        return self.rotary_dim == self.head_dim and self.q_norm is None


@dataclass(frozen=True)
class Site:
    """One decoder layer: `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` where `gate` is None."""

    index: int
    layer: nn.Module
    mlp: nn.Module
    gate: Linear | None
    up: Linear
    down: Linear
    activation: Callable[[Tensor], Tensor]
    attention: Attention

    @property
    def name(self) -> str:
        """The name of the MLP in a plan."""
        return f"layers.{self.index}.mlp"

    @property
    def attention_name(self) -> str:
        """The name of the attention in a plan, to which `.qk` and `.vo` are added."""
        return f"layers.{self.index}.attention"

    @property
    def width(self) -> int:
        """Channels of the residual stream: d."""
        return self.up.in_features

    @property
    def channels(self) -> int:
        """Channels of the MLP: d_ff."""
        return self.up.out_features


def found(model: nn.Module) -> list[Site]:
    """Return the layers of `model`, in order.

    Raises `ModelError` for an encoder, a model that is a mixture of experts already, and a structure that is not known.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if config is not None:
        _check_is_dense_decoder(config, kind)
    return read(model)


def read(model: nn.Module) -> list[Site]:
    """As `found`, of a model whose layers are dense still, whatever its configuration says they will be."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    layers = _layers(model, kind)
    sites = [_site(index, layer, config, kind) for index, layer in enumerate(layers)]
    widths = {site.width for site in sites}
    if len(widths) > 1:
        raise ModelError(f"{kind}: layers take {sorted(widths)} channels; only one width of all layers is supported")
    return sites


def _check_is_dense_decoder(config: Any, kind: str) -> None:
    for name in _EXPERTS:
        count = getattr(config, name, None)
        if isinstance(count, int) and count > 1:
            raise ModelError(f"{kind} is a mixture of {count} experts already; give a dense model")
    if getattr(config, "tomoe", None) is not None:
        raise ModelError(f"{kind} is a mixture of experts already (the tomoe layout); give a dense model")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{kind} has an encoder; give a causal language model such as Llama, Mistral, Qwen or Phi")


def _layers(model: nn.Module, kind: str) -> nn.ModuleList:
    for path in ("model.layers", "layers"):
        try:
            layers = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList) and len(layers):
            return layers
    raise ModelError(
        f"{kind}: no decoder layers under model.layers; known are Llama, SmolLM, Mistral, Qwen2, Qwen3 and Phi"
    )


def _site(index: int, layer: nn.Module, config: Any, kind: str) -> Site:
    place = f"{kind}, layer {index}"
    mlp, attention = getattr(layer, "mlp", None), getattr(layer, "self_attn", None)
    if not isinstance(mlp, nn.Module) or not isinstance(attention, nn.Module):
        raise ModelError(f"{place}: found {_children(layer)}, looked for mlp and self_attn")
    if hasattr(mlp, "experts"):
        raise ModelError(f"{place} is a mixture of experts already; give a dense model")
    if _has_linears(mlp, GATED):
        gate, up, down = (getattr(mlp, name) for name in GATED)
    elif _has_linears(mlp, PLAIN):
        gate, (up, down) = None, (getattr(mlp, name) for name in PLAIN)
    else:
        wanted = " or ".join(", ".join(names) for names in (GATED, PLAIN))
        raise ModelError(f"{place}: its MLP has {_children(mlp)}, looked for the linears {wanted}")
    activation = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
    if activation is None:
        raise ModelError(f"{place}: its MLP has no act_fn and no activation_fn")
    return Site(index, layer, mlp, gate, up, down, activation, _attention(attention, config, place))


def _attention(module: nn.Module, config: Any, place: str) -> Attention:
    out = "o_proj" if hasattr(module, "o_proj") else "dense"
    names = ("q_proj", "k_proj", "v_proj", out)
    if not _has_linears(module, names):
        wanted = ", ".join(("q_proj", "k_proj", "v_proj", "o_proj or dense"))
        raise ModelError(f"{place}: its attention has {_children(module)}, looked for the linears {wanted}")
    q, k, v, o = (getattr(module, name) for name in names)
    head_dim = int(getattr(module, "head_dim", 0)) or q.out_features // config.num_attention_heads
    norms = [getattr(module, f"{side}_norm", None) or getattr(module, f"{side}_layernorm", None) for side in "qk"]
    return Attention(
        module, q, k, v, o,
        heads=q.out_features // head_dim,
        kv_heads=k.out_features // head_dim,
        head_dim=head_dim,
        rotary_dim=int(getattr(module, "rotary_ndims", head_dim)),
        q_norm=norms[0],
        k_norm=norms[1],
    )  # fmt: skip


def _has_linears(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether all are linears, or peft's wrappers of linears."""
    parts = [getattr(module, name, None) for name in names]
    return all(isinstance(getattr(part, "base_layer", part), nn.Linear) for part in parts)


def _children(module: nn.Module) -> str:
    return ", ".join(name for name, _ in module.named_children()) or "nothing"
