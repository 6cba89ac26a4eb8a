"""The attention function that transformers calls; it attends on codes where the keys came from a compressed cache.

The keys that a `CompressedLayer` returns carry the layer itself, so nothing is global and two models in one process
cannot disturb each other; no other function can read them. Without such keys the function is PyTorch's scaled dot
product attention.
"""

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from thrifty.errors import ModelError

if TYPE_CHECKING:
    from thrifty.kv.cache import CompressedLayer

NAME = "thrifty"
_REAL = "_thrifty_real"


class NewKeys:
    """New keys on their way from `layer` to `attend`, which alone knows of the tokens that `layer` holds already.

    Another attention function would see `new` and nothing before. So this is no tensor: reading an attribute, taking a
    part, or giving it to a function of PyTorch is a `ModelError`.
    """

    def __init__(self, new: Tensor, layer: "CompressedLayer") -> None:
        self.new, self.layer = new, layer

    def __getattr__(self, name: str) -> NoReturn:
        """`k.shape`, `k.transpose(...)`: refused."""
        _refuse_other_attention()

    def __getitem__(self, index: Any) -> NoReturn:
        """`k[:, :, None]`: refused."""
        _refuse_other_attention()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        """`torch.matmul(q, k)`: refused."""
        _refuse_other_attention()


def prepare(model: PreTrainedModel) -> None:
    """Let `model` attend through thrifty. Raises `ModelError` where its code does not allow that."""
    check(model)
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if model.config._attn_implementation != NAME:
        if not model._can_set_attn_implementation():
            raise ModelError(f"{type(model).__name__} does not let its attention be exchanged; use another model")
        model.set_attn_implementation(NAME)


def check(model: PreTrainedModel) -> None:
    """Raise `ModelError` where the attention of `model` is none that a compressed cache supports."""
    if model.config.is_encoder_decoder:
        raise ModelError(f"{type(model).__name__} is an encoder-decoder; give a causal language model")
    is_causal = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    if is_causal and not any(is_causal):
        raise ModelError(
            f"{type(model).__name__} attends to later tokens, as encoders do; give a causal language model"
        )
    if not (model._supports_sdpa and model._supports_attention_backend):
        raise ModelError(
            f"{type(model).__name__} needs an attention of its own (soft caps, learned sinks or the like); "
            "a compressed cache supports plain scaled dot product attention"
        )


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor | NewKeys,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [rows, q_heads, new, d] to (output [rows, new, q_heads, d], None)."""
    if not isinstance(key, NewKeys):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    _refuse_unsupported(module, query, value, dropout, kwargs)
    layer = key.layer
    real = real_tokens(attention_mask, layer, query.shape[2])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mixed = layer.attend(query, key.new, value, real, scale)
    return mixed.transpose(1, 2).contiguous(), None


def real_tokens(mask: Tensor | None, layer: "CompressedLayer", new: int) -> Bool[Tensor, "rows new"] | None:
    """Which of the new tokens are no padding, from transformers' mask [rows, 1, new, positions]; None if all are.

    Raises `ModelError` for a mask that is not causal with padding, or that hides tokens already stored.
    """
    if mask is None:
        return None
    known = getattr(mask, _REAL, None)
    if known is None:
        known = _padding_of(mask)
        setattr(mask, _REAL, known)
    past = known[:, : known.shape[1] - new]
    stored = torch.ones_like(past) if layer.real is None else layer.real.to(past.device)
    if past.shape != stored.shape or not torch.equal(past.expand_as(stored), stored):
        raise ModelError(
            "the attention mask hides or shows other past tokens than when they were stored; "
            "pass the mask of the whole conversation, padding included"
        )
    fresh = known[:, known.shape[1] - new :]
    return None if bool(fresh.all()) and layer.real is None else fresh.expand(layer.batch_size, new)


def _padding_of(mask: Tensor) -> Bool[Tensor, "rows positions"]:
    if mask.ndim != 4 or mask.dtype != torch.bool or mask.shape[1] != 1:
        raise ModelError(
            f"an attention mask of shape {list(mask.shape)} and type {mask.dtype} was given to a compressed cache; "
            "give a mask of rows by positions (1 for tokens, 0 for padding)"
        )
    queries, positions = mask.shape[2:]
    padding = mask[:, 0, -1]
    causal = torch.ones(queries, positions, dtype=torch.bool, device=mask.device).tril(positions - queries)
    if queries > 1 and not torch.equal(mask[:, 0], causal & padding[:, None]):
        raise ModelError("a compressed cache supports causal masks with padding only; this one hides other tokens")
    return padding


def _refuse_other_attention() -> NoReturn:
    raise ModelError(
        f"a compressed cache was given to a model whose attention is not '{NAME}'; "
        "make the cache with CompressedCache.of(model, codec) for the model that uses it"
    )


def _refuse_unsupported(module: torch.nn.Module, query: Tensor, value: Tensor, dropout: float, kwargs: dict) -> None:
    wanted = [name for name in ("softcap", "s_aux", "position_bias", "cache") if kwargs.get(name) is not None]
    wanted += ["output_attentions"] if kwargs.get("output_attentions") else []
    wanted += ["attention dropout"] if dropout else []
    wanted += ["values of another width than keys"] if value.shape[-1] != query.shape[-1] else []
    wanted += ["attention that is not causal"] if not getattr(module, "is_causal", True) else []
    if kwargs.get("is_causal") is False:
        wanted.append("attention that is not causal")
    if wanted:
        raise ModelError(f"{type(module).__name__} needs {', '.join(wanted)}; a compressed cache does not support that")
