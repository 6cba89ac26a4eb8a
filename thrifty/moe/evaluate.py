"""What a mixture of experts predicts, measured against the dense model on fixed windows, and how its experts are used.

A contender is a context within which a model computes in its way, so that a plan's masks, an exported model and the
reference that no router can reach (`oracle`) are measured alike. Nothing here is read while anything is chosen.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot

from thrifty.moe.calibrate import column_norms
from thrifty.moe.distill import PIECE, hidden_states
from thrifty.moe.masking import chosen, experts_of, masked, router_of
from thrifty.moe.sites import Site, found
from thrifty.perplexity import Tally
from thrifty.plan import Plan
from thrifty.progress import Track, silent

Contender = Callable[[], AbstractContextManager[nn.Module]]


@torch.inference_mode()
def quality(
    dense: nn.Module,
    windows: Int[Tensor, "windows window"],
    contenders: Mapping[str, Contender],
    *,
    batch: int = 1,
    track: Track = silent,
) -> dict[str, dict[str, Any]]:
    """Perplexity, its ratio to the dense model's, KL divergence (nats a token) and top-1 agreement of each contender.

    A window's first token is given, every later one is predicted. `batch` windows pass the model together; logits exist
    for a piece of the tokens at a time.
    """
    device = next(dense.parameters()).device
    batches = [part.to(device) for part in windows.split(batch)]
    plain = [hidden_states(dense, ids) for ids in batches]
    tallies = {name: Tally() for name in contenders}
    reference, is_first = Tally(), True
    for name, contender in contenders.items():
        with contender() as model:
            for number, ids in enumerate(track(batches, name[:12], len(batches))):
                _count(tallies[name], reference if is_first else Tally(), dense, model, ids, plain[number])
        is_first = False
    return {name: tally.row(reference, "dense") for name, tally in tallies.items()}


def _count(
    tally: Tally,
    reference: Tally,
    dense: nn.Module,
    model: nn.Module,
    ids: Int[Tensor, "batch window"],
    plain: Float[Tensor, "batch window d"],
) -> None:
    """Add the predictions of one batch to both tallies."""
    hidden = hidden_states(model, ids)
    heads: list[Any] = [one.get_output_embeddings() for one in (dense, model)]  # type: ignore[operator]
    for row in range(len(ids)):
        sums = torch.zeros(4, dtype=torch.float64, device=ids.device)
        target = ids[row, 1:]
        for start in range(0, len(target), PIECE):
            part = slice(start, min(start + PIECE, len(target)))
            wanted, scores = (
                head(states[row, part]).float().log_softmax(-1)
                for head, states in zip(heads, (plain, hidden), strict=True)
            )
            for place, log in ((0, wanted), (1, scores)):
                sums[place] -= log.gather(1, target[part, None]).sum()
            sums[2] += (wanted.exp() * (wanted - scores)).sum()
            sums[3] += (wanted.argmax(-1) == scores.argmax(-1)).sum()
        found_ = sums.tolist()
        reference.loss.append(found_[0] / len(target))
        tally.loss.append(found_[1] / len(target))
        tally.divergence.append(found_[2] / len(target))
        tally.agreed += int(found_[3])
        tally.predictions += len(target)


def with_plan(model: nn.Module, plan: Plan) -> Contender:
    """The dense model with the masks of a plan."""

    @contextmanager
    def contend() -> Iterator[nn.Module]:
        with masked(model, plan):
            yield model

    return contend


def as_it_is(model: nn.Module) -> Contender:
    """Another model, such as an exported one."""

    @contextmanager
    def contend() -> Iterator[nn.Module]:
        yield model

    return contend


def oracle(model: nn.Module, share: float) -> Contender:
    """The reference for any router: every token has the best `share` of each MLP's channels for itself, by
    |h_j| |W_down[:, j]|. It needs all channels computed first, so it saves nothing: a bound, no method."""

    @contextmanager
    def contend() -> Iterator[nn.Module]:
        with ExitStack() as stack:
            for site in found(model):
                norms, width = column_norms(site), max(1, round(share * site.channels))

                def hide(
                    module: nn.Module, inputs: tuple[Tensor, ...], norms: Tensor = norms, width: int = width
                ) -> tuple[Tensor]:
                    best = (inputs[0].float().abs() * norms).topk(width, dim=-1).indices
                    return (inputs[0] * torch.zeros_like(inputs[0]).scatter_(-1, best, 1.0),)

                stack.callback(site.down.register_forward_pre_hook(hide).remove)
            yield model

    return contend


def shuffled(plan: Plan) -> Plan:
    """The plan with every token sent to the next expert instead of its own. Routing that does not get worse by this
    is empty."""
    evidence = {
        name: tensor.roll(1, 0) if name.endswith(".router") else tensor for name, tensor in plan.evidence.items()
    }
    return Plan(f"{plan.method}, routers shuffled", plan.keep, evidence)


@torch.inference_mode()
def load(
    model: nn.Module, plan: Plan, windows: Int[Tensor, "windows window"], batch: int = 1
) -> dict[str, Float[Tensor, " experts"]]:
    """The share of tokens that each expert gets, by layer, with the plan's masks acting."""
    counts: dict[str, Tensor] = {}
    with masked(model, plan), ExitStack() as stack:
        for site in found(model):
            router = router_of(plan, site)
            if router is not None:
                stack.callback(site.mlp.register_forward_pre_hook(_counting(site, router, counts)).remove)
        device = next(model.parameters()).device
        for ids in windows.split(batch):
            hidden_states(model, ids.to(device))
    return {name: (count / count.sum()).cpu() for name, count in counts.items()}


def _counting(site: Site, router: Tensor, counts: dict[str, Tensor]) -> Callable[..., None]:
    router = router.to(site.up.weight.device)

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tokens = one_hot(chosen(router, inputs[0]).flatten(), len(router)).sum(0).double()
        counts[site.name] = counts.get(site.name, torch.zeros_like(tokens)) + tokens

    return count


def overlap(plan: Plan, sites: list[Site]) -> dict[str, dict[str, float]]:
    """For each MLP: its experts' width and their union and intersection as shares of its channels, and the mean Jaccard
    index of pairs of experts (1: all alike)."""
    facts = {}
    for site in sites:
        masks = experts_of(plan, site).float()
        both = linear(masks, masks)
        either = masks.sum(-1)[:, None] + masks.sum(-1)[None] - both
        pairs = ~torch.eye(len(masks), dtype=torch.bool)
        facts[site.name] = {
            "width": float(masks.sum(-1).max()),
            "union": float(masks.amax(0).mean()),
            "intersection": float(masks.amin(0).mean()),
            "jaccard": float((both / either)[pairs].mean()) if len(masks) > 1 else 1.0,
        }
    return facts


def health(sites: list[Site], plan: Plan, loads: Mapping[str, Float[Tensor, " _"]]) -> dict[str, Any]:
    """How the experts are used, over all layers: the most that one expert gets of the tokens, the share of experts that
    get none, mean union, intersection and Jaccard index, and the width of each layer. `loads` is what `load` gives."""
    facts = list(overlap(plan, sites).values())
    parts = [one for one in loads.values() if len(one) > 1]
    mean = {key: sum(one[key] for one in facts) / len(facts) for key in ("union", "intersection", "jaccard")}
    return mean | {
        "num_experts": max(plan.keep[site.name].shape[0] for site in sites),
        "widths": [int(one["width"]) for one in facts],
        "max_load": max((float(one.max()) for one in parts), default=1.0),
        "dead_experts": sum(float((one == 0).float().mean()) for one in parts) / max(1, len(parts)),
    }
