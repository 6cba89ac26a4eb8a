"""What a budget will mean, told before anything is trained: parameters, size on disk, speed at best."""

from typing import Any

from thrifty.moe.cost import SCOPES, Scope, Sizes

ROUTER_BYTES = 4
"""The tomoe layout keeps routers in float32, and for each channel and expert one byte that says who has it."""


def of(sizes: Sizes, active: float, scope: Scope, num_experts: int) -> list[dict[str, Any]]:
    """One row for each layout, with all MLPs of one width; layers with widths of their own cost as much together.

    `standard` stores every expert's weights, `tomoe` every channel once (at most; channels of no expert are left out).
    `speed_up` is that of decoding one sequence where reading weights is all that takes time: the weights that act on a
    token, dense against experts. `speed_up_prefill` is that of reading a prompt where the multiplications with the
    weights of the blocks are all that takes time. Attention over the cache comes on top of both.
    """
    widths = sizes.uniform_width(active, scope)
    routers = num_experts * sizes.width * sizes.num_layers if num_experts > 1 else 0
    used = int(sizes.active(widths, "model", routers))
    parts = [(sizes.parts[name], width) for name, width in widths.items()]
    mlp = sum(part.weights for part, _ in parts)
    experts = sum(part.unit_weights * width for part, width in parts)
    union = sum(part.unit_weights * min(part.size, num_experts * width) for part, width in parts)
    members = num_experts * sum(min(part.size, num_experts * width) for part, width in parts)
    dense = sizes.weights("model")
    common = {
        **{f"active_ratio_{name}": float(sizes.active_ratio(widths, name)) for name in SCOPES},
        "width": min(widths.values()),
        "num_experts": num_experts,
        "params_dense": dense,
        "params_active": used,
        "speed_up": (dense - _unread(sizes)) / (used - _unread(sizes)),
        "speed_up_prefill": sizes.weights("blocks") / (float(sizes.active(widths, "blocks")) + routers),
    }
    total = {"standard": dense - mlp + num_experts * experts + routers, "tomoe": dense - mlp + union + routers}
    extra = {"standard": 0, "tomoe": members + routers * (ROUTER_BYTES - sizes.element_bytes)}
    return [
        {"layout": name, **common, "params_total": count, "bytes": count * sizes.element_bytes + extra[name]}
        for name, count in total.items()
    ]


def _unread(sizes: Sizes) -> int:
    """Weights of which a token reads one row only: an embedding that is not the head too."""
    return 0 if sizes.is_tied else sizes.embedding
