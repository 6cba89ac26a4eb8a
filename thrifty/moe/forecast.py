"""What a budget will mean, before anything is trained: active and total parameters, size on disk, speed at best."""

from typing import Any

from thrifty.moe.cost import SCOPES, Scope, Sizes

INDEX_BYTES = 4


def of(sizes: Sizes, active: float, scope: Scope, num_experts: int) -> list[dict[str, Any]]:
    """One row for each layout, with all MLPs of one width; layers with widths of their own cost as much together.

    `standard` stores every expert's weights, `tomoe` every channel once (at most; channels of no expert are left out)
    and which channels each expert has. The speed-up is that of decoding one sequence where reading weights is all that
    takes time: the weights that act on a token, dense against experts. Attention over the cache comes on top of both.
    """
    widths = sizes.uniform_width(active, scope)
    routers = num_experts * sizes.width * sizes.num_layers if num_experts > 1 else 0
    used = int(sizes.active(widths, "model", routers))
    mlp = sum(sizes.parts[name].weights for name in widths)
    experts = sum(sizes.parts[name].unit_weights * width for name, width in widths.items())
    dense = sizes.weights("model")
    common = {
        **{f"active_ratio_{name}": float(sizes.active_ratio(widths, name)) for name in SCOPES},
        "width": min(widths.values()),
        "num_experts": num_experts,
        "params_dense": dense,
        "params_active": used,
        "speed_up": (dense - _unread(sizes)) / (used - _unread(sizes)),
    }
    total = {"standard": dense - mlp + num_experts * experts + routers, "tomoe": dense + routers}
    index = {"standard": 0, "tomoe": num_experts * sum(widths.values()) * INDEX_BYTES}
    return [
        {"layout": name, **common, "params_total": count, "bytes": count * sizes.element_bytes + index[name]}
        for name, count in total.items()
    ]


def _unread(sizes: Sizes) -> int:
    """Weights of which a token reads one row only: an embedding that is not the head too."""
    return 0 if sizes.is_tied else sizes.embedding
