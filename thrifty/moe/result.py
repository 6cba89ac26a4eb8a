"""What came of a plan, as numbers: quality, what is active, how the experts are used. The keys are in docs/json.md."""

from typing import Any

from torch import Tensor

from thrifty.catalogue import name_of
from thrifty.moe import evaluate
from thrifty.moe.cost import SCOPES, widths_of
from thrifty.moe.job import MoeJob
from thrifty.moe.sites import Site
from thrifty.plan import Plan
from thrifty.progress import Track, silent


def of(
    job: MoeJob,
    method: Any,
    plan: Plan,
    windows: Tensor,
    made: Any | None = None,
    *,
    is_shuffled: bool = True,
    track: Track = silent,
) -> dict[str, Any]:
    """The result of one plan on `windows` [windows, window] of the text that is measured on; of the exported model
    `made` where it is given, else of the dense model with masks. `is_shuffled` adds the control in which every token
    goes to the wrong expert."""
    model = job.model
    contenders = {"plan": evaluate.with_plan(model, plan) if made is None else evaluate.as_it_is(made)}
    has_routers = any(name.endswith(".router") for name in plan.evidence)
    if is_shuffled and has_routers:
        contenders["shuffled"] = evaluate.with_plan(model, evaluate.shuffled(plan))
    found = evaluate.quality(model, windows, contenders, batch=_batch(model), track=track)
    shuffled = found.get("shuffled", {}).get("ppl_ratio")
    loads = evaluate.load(model, plan, windows[:2], _batch(model)) if has_routers else {}
    history = plan.evidence.get("history")
    return {
        "method": name_of(method),
        "settings": plan.method,
        **active(job, plan, made),
        **found["plan"],
        "ppl_ratio_shuffled": shuffled,
        **evaluate.health(job.sites, plan, loads),
        "layers": layers(job.sites, plan, loads),
        "history": None if history is None else history.tolist(),
    }


def active(job: MoeJob, plan: Plan, made: Any | None = None) -> dict[str, Any]:
    """What is active on a token, in every scope, and the parameters in all; routers, and the networks that mask values
    for each token, count in scope `model`."""
    widths = widths_of(plan.keep)
    routers = sum(
        tensor.numel() for name, tensor in plan.evidence.items() if name.endswith(".router") or ".vo." in name
    )
    params_active = int(job.sizes.active(widths, "model", routers))
    return {
        **{f"active_ratio_{scope}": float(job.sizes.active_ratio(widths, scope)) for scope in SCOPES},
        "params_dense": job.sizes.weights("model"),
        "params_active": params_active,
        "params_total": None if made is None else sum(parameter.numel() for parameter in made.parameters()),
    }


def layers(sites: list[Site], plan: Plan, loads: dict[str, Tensor]) -> dict[str, list[float | None]]:
    """Layer by layer: width, union and intersection as shares of the channels, the largest and the smallest load."""
    facts = evaluate.overlap(plan, sites)
    kept = [facts[site.name] for site in sites]
    parts = [loads.get(site.name) for site in sites]
    return {
        "width": [one["width"] / site.channels for one, site in zip(kept, sites, strict=True)],
        "union": [one["union"] for one in kept],
        "intersection": [one["intersection"] for one in kept],
        "most_loaded": [None if one is None else float(one.max()) for one in parts],
        "least_loaded": [None if one is None else float(one.min()) for one in parts],
    }


def _batch(model: Any) -> int:
    return 8 if model.device.type == "cuda" else 1
