"""Save a compressed cache to one safetensors file, and load it again for the same model and settings."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from thrifty.errors import DataError
from thrifty.files import replacing
from thrifty.kv.blocks import Blocks, Coded, Side
from thrifty.kv.cache import CompressedCache, CompressedLayer, RowGroup

_FORMAT = "thrifty cache 1"


def save(cache: CompressedCache, model: PreTrainedModel, path: str | Path) -> None:
    """Write `cache`, which `model` filled, to `path`, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    layers = [_describe(layer, f"{index}", tensors) for index, layer in enumerate(cache.layers)]
    metadata = {"format": _FORMAT, "model": fingerprint(model), "layers": json.dumps(layers)}
    with replacing(Path(path)) as temporary:
        # Clones: rows of a batch may share a tensor, which the format does not allow.
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def load(cache: CompressedCache, model: PreTrainedModel, path: str | Path) -> CompressedCache:
    """Fill `cache`, made for `model` with the settings of the saved one, from `path`; return it.

    Raises `DataError` where the file is damaged, or was written with another model, codec or setting.
    """
    try:
        with safe_open(path, framework="pt", device=str(model.device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise DataError(f"{path} is no saved cache: its format is {metadata.get('format')}, not '{_FORMAT}'")
            if metadata["model"] != fingerprint(model):
                raise DataError(
                    f"{path} was filled by another model or in another dtype; load the model that filled it"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            described = json.loads(metadata["layers"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a cache ({error}); give a file that store.save wrote") from error
    if len(described) != len(cache.layers):
        raise DataError(f"{path} holds {len(described)} layers, the cache has {len(cache.layers)}")
    for index, (layer, about) in enumerate(zip(cache.layers, described, strict=True)):
        _fill(layer, about, f"{index}", tensors, path)
    return cache


def fingerprint(model: PreTrainedModel) -> str:
    """Tells models apart whose caches do not fit each other: the configuration and the dtype."""
    ignored = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation_internal")
    config = {name: value for name, value in model.config.to_dict().items() if name not in ignored}
    text = json.dumps([config, str(model.dtype)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _describe(layer: Any, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(layer, CompressedLayer):
        if layer.real is not None:
            tensors[f"{name}.real"] = layer.real
        groups = [
            {
                "rows": group.rows,
                **{
                    side: _describe_side(getattr(group.blocks, side), f"{name}.{n}.{side}", tensors)
                    for side in ("k", "v")
                },
            }
            for n, group in enumerate(layer.groups)
        ]
        about = {"codec": repr(layer.codec), "prefill": layer.prefill, "positions": layer.positions}
        return about | {"rows": layer.batch_size, "groups": groups}
    if getattr(layer, "is_initialized", False) and isinstance(layer.keys, Tensor):
        tensors[f"{name}.keys"], tensors[f"{name}.values"] = layer.keys, layer.values
    return {"kind": type(layer).__name__, "positions": layer.get_seq_length()}


def _describe_side(side: Side, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    tensors[f"{name}.sinks"], tensors[f"{name}.open"] = side.sinks, side.open
    if side.closed is None:
        return {}
    for part, tensor in side.closed.tensors.items():
        tensors[f"{name}.closed.{part}"] = tensor
    return {"unit": side.closed.unit, "parts": list(side.closed.tensors)}


def _fill(layer: Any, about: dict[str, Any], name: str, tensors: dict[str, Tensor], path: str | Path) -> None:
    if not isinstance(layer, CompressedLayer):
        if about.get("kind") != type(layer).__name__:
            raise DataError(
                f"{path}: layer {name} is {about.get('kind') or about['codec']}, not {type(layer).__name__}"
            )
        if f"{name}.keys" in tensors:
            keys, values = tensors[f"{name}.keys"], tensors[f"{name}.values"]
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = about["positions"]
        return
    if about.get("codec") != repr(layer.codec) or about["prefill"] != layer.prefill:
        raise DataError(f"{path}: layer {name} was held by {about.get('codec')}, the cache wants {layer.codec!r}")
    layer.reset()
    if not about["groups"]:
        return
    layer.groups = [
        RowGroup(group["rows"], Blocks(*(_side(group[s], f"{name}.{n}.{s}", tensors) for s in ("k", "v"))))
        for n, group in enumerate(about["groups"])
    ]
    layer.restored(_on_cpu(tensors.get(f"{name}.real")), about["positions"], about["rows"])


def _side(about: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> Side:
    closed = None
    if about:
        closed = Coded(about["unit"], {part: tensors[f"{name}.closed.{part}"] for part in about["parts"]})
    return Side(tensors[f"{name}.sinks"], closed, tensors[f"{name}.open"])


def _on_cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()
