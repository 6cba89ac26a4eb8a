"""The report of `thrifty prune`: what the small network costs and how good it is, with its widths and its training."""

from collections.abc import Sequence
from typing import Any

from thrifty.report import Column, Plot, Report, Series

COLUMNS = [
    Column("method", "method"),
    Column("accuracy", "accuracy", ".2%", "higher"),
    Column("flops_before", "FLOPs before", ",d"),
    Column("flops_after", "after", ",d"),
    Column("flops_ratio", "kept", ".1%"),
    Column("params_before", "parameters before", ",d"),
    Column("params_after", "after", ",d"),
    Column("activations_before", "activations before", ",d"),
    Column("activations_after", "after", ",d"),
    Column("latency_ms.before", "ms a batch before", ".2f"),
    Column("latency_ms.after", "after", ".2f"),
    Column("seconds", "seconds", ".0f"),
]
SUSPICIOUS = 1e-2
"""A difference of outputs that rounding does not make."""


def report(
    title: str,
    rows: list[dict[str, Any]],
    history: Sequence[dict[str, Any]],
    notes: list[str],
    provenance: dict[str, Any],
) -> Report:
    """A report of one or several ways to prune a network; the plots are of the first row."""
    first = rows[0]
    exact = [f"budget: {one['spent']:,.6g} of {one['limit']:,.6g} {one['unit']} are used" for one in first["limits"]]
    difference = f"the small network equals the masked one up to {first['max_abs_difference']:.1e}"
    if not first["max_abs_difference"] <= SUSPICIOUS:  # also where it is no number
        difference = f"{difference}: THAT IS NOT EQUAL, do not use it, and please report this"
    told = [*exact, difference, f"accuracy on all {first['test_images']:,} test images, after the last epoch", *notes]
    plots = [widths(first["widths"]), *curves(history)]
    return Report(title, "prune", rows, COLUMNS, plots=plots, notes=told, provenance=provenance)


def widths(kept: dict[str, list[int]]) -> Plot:
    """How many channels each group has before and after, in the order of the network."""
    place = list(range(1, len(kept) + 1))
    before, after = [size for _, size in kept.values()], [count for count, _ in kept.values()]
    names = ", ".join(kept) if len(kept) <= 4 else f"{next(iter(kept))} to {list(kept)[-1]}"
    return Plot(
        "Width of each layer",
        f"layer ({names})",
        "channels",
        [Series("before", place, before), Series("after", place, after)],
        caption="What was learnt to keep, layer by layer, from the first to the last.",
    )


def curves(history: Sequence[dict[str, Any]]) -> list[Plot]:
    """Accuracy over the epochs, and what of the budget was used; none where nothing was noted."""
    if not history:
        return []
    epochs = [line["epoch"] for line in history]
    named = (
        ("training images", "accuracy_train"),
        ("held out, whole", "accuracy_whole"),
        ("held out, masked", "accuracy_masked"),
    )
    series = [
        Series(name, epochs, [line.get(key) for line in history])
        for name, key in named
        if any(key in line for line in history)
    ]
    caption = "Held-out images are trained on only once the network has been cut; the test images never."
    plots = [Plot("Training", "epoch", "accuracy", series, caption=caption)]
    if any("kept" in line for line in history):
        kept = [Series(word, epochs, [line.get(word) for line in history]) for word in ("kept", "target")]
        plots.append(Plot("Budget", "epoch", "cost of what would be kept", kept))
    return plots
