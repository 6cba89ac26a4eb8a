"""What a budget will mean, told before anything is trained: parameters, size on disk, speed at best."""

from collections.abc import Collection
from typing import Any

from thrifty.moe.attention_masks import Sides, check_scope, chosen
from thrifty.moe.cost import SCOPES, Part, Scope, Sizes
from thrifty.moe.learnt import FEATURES

ROUTER_BYTES = 4
"""The tomoe layout keeps routers in float32, and for each channel and expert one byte that says who has it."""
PLACE_BYTES = 8
"""It keeps the number of each rotary pair that is left."""


def of(
    sizes: Sizes,
    active: float,
    scope: Scope,
    num_experts: int,
    attention: Sides = "none",
    layouts: Collection[str] = ("standard", "tomoe"),
) -> list[dict[str, Any]]:
    """One row for each of `layouts`, with all MLPs of one width; layers with widths of their own cost as much together.
    Where `attention` is masked it is thinned by the same share, and only `tomoe` can hold it.

    `standard` stores every expert's weights, `tomoe` every channel once (at most; channels of no expert are left out).
    `speed_up` is that of decoding one sequence where reading weights is all that takes time: the weights that act on a
    token, dense against experts. `speed_up_prefill` is that of reading a prompt where the multiplications with the
    weights of the blocks are all that takes time. Attention over the cache comes on top of both. Masked values count
    as active parameters only: their weights are read and multiplied with all the same.

    Raises `SettingError` where the budget cannot be met, or masks of attention would not count.
    """
    check_scope(attention, scope)
    widths, thin = _widths(sizes, active, scope, attention)
    kept, pairs = widths | thin, {name: width for name, width in thin.items() if name.endswith(".qk")}
    routers = num_experts * sizes.width * sizes.num_layers if num_experts > 1 else 0
    networks = sum(_network(sizes, sizes.parts[name]) for name in thin if name not in pairs)
    used = int(sizes.active(kept, "model", routers + networks))
    read = int(sizes.active(widths | pairs, "model", routers + networks))
    parts = [(sizes.parts[name], width) for name, width in widths.items()]
    mlp = sum(part.weights for part, _ in parts)
    experts = sum(part.unit_weights * width for part, width in parts)
    union = sum(part.unit_weights * min(part.size, num_experts * width) for part, width in parts)
    members = num_experts * sum(min(part.size, num_experts * width) for part, width in parts)
    dense = sizes.weights("model")
    common = {
        **{f"active_ratio_{name}": float(sizes.active_ratio(kept, name)) for name in SCOPES},
        "width": min(widths.values()),
        "num_experts": num_experts,
        "params_dense": dense,
        "params_active": used,
        "speed_up": (dense - _unread(sizes)) / (read - _unread(sizes)),
        "speed_up_prefill": sizes.weights("blocks")
        / (float(sizes.active(widths | pairs, "blocks")) + routers + networks),
    }
    less = sum(sizes.parts[name].unit_weights * (sizes.parts[name].size - width) for name, width in pairs.items())
    total = {
        "standard": dense - mlp + num_experts * experts + routers,
        "tomoe": dense - mlp + union + routers + networks - less,
    }
    single = (routers + networks) * (ROUTER_BYTES - sizes.element_bytes)
    extra = {"standard": 0, "tomoe": members + single + PLACE_BYTES * sum(pairs.values())}
    return [
        {"layout": name, **common, "params_total": count, "bytes": count * sizes.element_bytes + extra[name]}
        for name, count in total.items()
        if name in layouts and (name == "tomoe" or not thin)
    ]


def _widths(sizes: Sizes, active: float, scope: Scope, attention: Sides) -> tuple[dict[str, int], dict[str, int]]:
    """Widths of the MLPs, and of what of attention does not stay whole."""
    thinned = [name for name in sizes.parts if name.endswith(tuple(f".{side}" for side in chosen(attention)))]
    widths = sizes.uniform_width(active, scope, thinned)
    thin = {name: widths.pop(name) for name in thinned}
    return widths, {name: width for name, width in thin.items() if width < sizes.parts[name].size}


def _network(sizes: Sizes, values: Part) -> int:
    """Weights of the network that masks the values of one layer."""
    return FEATURES * (sizes.width + values.size + 3)


def _unread(sizes: Sizes) -> int:
    """Weights of which a token reads one row only: an embedding that is not the head too."""
    return 0 if sizes.is_tied else sizes.embedding
