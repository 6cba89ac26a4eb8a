"""The table, the plots and the notes of a comparison of mixtures of experts."""

from typing import Any

from thrifty.report import Column, Plot, Report, Series

DENSE = "dense"


def dense_row(row: dict[str, Any]) -> dict[str, Any]:
    """The dense model as a row of its own, from what `row` was compared with."""
    return {
        "label": DENSE,
        "active_ratio_mlp": 1.0,
        "active_ratio_blocks": 1.0,
        "active_ratio_model": 1.0,
        "params_active": row["params_dense"],
        "params_total": row["params_dense"],
        "ppl": row["ppl_dense"],
        "ppl_ratio": 1.0,
        "kl": 0.0,
        "top1": 1.0,
        "tokens_per_second": {"moe": row.get("tokens_per_second", {}).get("dense", {})},
        "tasks": {"moe": row.get("tasks", {}).get("dense", {})},
    }


def report(title: str, rows: list[dict[str, Any]], provenance: dict[str, Any], notes: list[str]) -> Report:
    """Table, plots and notes; the dense model is the first row."""
    columns = [
        Column("label", "model"),
        Column("active_ratio_mlp", "active MLP", ".1%"),
        Column("active_ratio_blocks", "blocks", ".1%"),
        Column("active_ratio_model", "whole", ".1%"),
        Column("ppl", "perplexity", ",.2f"),
        Column("ppl_ratio", "ratio to dense", ",.3f"),
        Column("kl", "KL divergence", ".3f"),
        Column("top1", "top-1 agreement", ".1%"),
        Column("ppl_ratio_shuffled", "ratio, routers shuffled", ".2f"),
        Column("union", "union of experts", ".2f"),
        Column("max_load", "largest load", ".2f"),
    ]
    timed = next((row["tokens_per_second"]["moe"] for row in rows if "tokens_per_second" in row), {})
    columns += [
        Column(f"tokens_per_second.moe.{phase}.{size}", f"{phase} at batch {size} (tokens/s)", ",.0f")
        for phase, sizes in timed.items()
        for size in sizes
    ]
    tasks = next((row["tasks"]["moe"] for row in rows if "tasks" in row), {})
    columns += [
        Column(f"tasks.moe.{task}.{metric}", f"{task}, {metric}", ".3f")
        for task, metrics in tasks.items()
        for metric in metrics
    ]
    shown = [dense_row(rows[0]), *rows]
    return Report(
        title, "moe", shown, columns, headline(rows), plots(rows), notes=[*notes, *read_me(rows)], provenance=provenance
    )


def headline(rows: list[dict[str, Any]]) -> str:
    """The best row in one sentence."""
    best = min(rows, key=lambda row: row["ppl_ratio"])
    return (
        f"{best['label']}: {best['active_ratio_mlp']:.0%} of the MLPs' weights active on a token, "
        f"{best['ppl_ratio']:.3f} times the dense model's perplexity."
    )


def plots(rows: list[dict[str, Any]]) -> list[Plot]:
    """Quality against active parameters, and of the best row its layers, its load and its training."""
    best = min(rows, key=lambda row: row["ppl_ratio"])
    points = [Series(row["label"], [100 * row["active_ratio_mlp"]], [row["ppl_ratio"]]) for row in rows]
    found = [
        Plot(
            "Quality against what is active",
            "active weights of the MLPs (%)",
            "perplexity, times dense",
            [*points, Series(DENSE, [100], [1.0])],
            "scatter",
            log_y=True,
            caption="Left is smaller, down is closer to the dense model.",
        )
    ]
    depth = list(range(len(best["layers"]["width"])))
    names = {"width": "of one expert", "union": "of any expert", "intersection": "of all experts"}
    lines = [Series(name, depth, best["layers"][key]) for key, name in names.items()]
    caption = f"{best['label']}: shares of each MLP's channels."
    found.append(Plot("Channels by layer", "layer", "share of channels", lines, caption=caption))
    if any(value is not None for value in best["layers"]["most_loaded"]):
        names = {"most_loaded": "most used expert", "least_loaded": "least used expert"}
        lines = [Series(name, depth, best["layers"][key]) for key, name in names.items()]
        even = 1 / best["num_experts"]
        caption = f"{best['label']}: {best['num_experts']} experts, so {even:.3f} each if all were used alike."
        found.append(Plot("Load by layer", "layer", "share of tokens", lines, caption=caption))
    trained = [row for row in rows if row.get("history")]
    if trained:
        points = {row["label"]: row["history"][:: max(1, len(row["history"]) // 60)] for row in trained}
        lines = [Series(name, [one[0] for one in steps], [one[1] for one in steps]) for name, steps in points.items()]
        caption = "It rises while the budget falls, and has the noise of the gates until the masks settle."
        found.append(Plot("Training", "step", "KL divergence (nats a token)", lines, log_y=True, caption=caption))
    return found


def read_me(rows: list[dict[str, Any]]) -> list[str]:
    """What a reader must know to judge the numbers."""
    first = min(rows, key=lambda row: row["ppl_ratio"])
    notes = [
        f"Perplexity, KL divergence (nats a token) and top-1 agreement: {first['windows']} windows of "
        f"{first['window']} tokens of {first['text']}, {first['predictions']:,} predictions, compared with the dense "
        f"model on the same. The standard error of the ratio over windows is {first['ppl_ratio_error']:.4f} for "
        f"{first['label']}.",
        "Active weights: `MLP` counts the MLPs' linears only, `blocks` those and attention's (as ToMoE's paper does), "
        "`whole` everything with embeddings and routers. The width of an MLP is that of its widest expert.",
    ]
    if any(row.get("ppl_ratio_shuffled") is not None for row in rows):
        notes.append(
            "Routers shuffled: every token goes to the wrong expert; where that is harmless, routing is empty."
        )
    if any("tokens_per_second" in row for row in rows):
        notes.append("Tokens per second: random prompts, greedy decoding, median, the two models taking turns.")
    if any(row.get("tasks") for row in rows):
        notes.append(
            "Tasks: lm-eval's own harness, on the exported model. The bundled ones (thrifty_...) have some 70 items "
            "written for thrifty: they show damage, and are no benchmarks."
        )
    return notes
