"""The table of mixtures of experts in the README, from results/moe.jsonl; `benchmarks/readme.py` writes it."""

import statistics
from typing import Any

Rows = list[dict[str, Any]]


def moe(rows: Rows) -> str:
    """Every method at every budget: perplexity against the dense model, the mean over seeds."""
    rows = [row for row in rows if row["on"] != "held-out"]
    dense = next(row for row in rows if row["method"] == "dense")
    machine = dense["provenance"]["machine"]
    where = ", ".join(dict.fromkeys((machine.get("gpu") or machine["cpu"]).split(", ")))
    lines = [
        f"`benchmarks/moe.py`, {rows[0]['model']}, {where}, {dense['windows']} windows of {dense['window']} tokens of "
        f"{dense['on']}; dense perplexity {dense['ppl']:.2f}. Ratios to it, mean over seeds (n, with the range); "
        "active parameters of the MLPs, of the blocks (as the paper counts) and of the whole model; training tokens.",
        "",
        "| method | widths | MLPs | blocks | model | perplexity ratio | KL (nats) | routers shuffled | tokens |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        if row["method"] != "dense":
            settings = row["run"].split(":", 4)[4] if row["run"].count(":") >= 4 else ""
            told = settings.replace(",", ", ")
            groups.setdefault((row["active"], row["method"], row["widths"], told), []).append(row)
    means = {key: statistics.mean(row["ppl_ratio"] for row in here) for key, here in groups.items()}
    for key in sorted(groups, key=lambda key: (-key[0], means[key])):
        lines.append(_line(key, groups[key], means[key]))
    return "\n".join(lines)


def _line(key: tuple[Any, ...], rows: Rows, mean: float) -> str:
    active, method, widths, told = key
    row = rows[0]
    ratios = [one["ppl_ratio"] for one in rows]
    spread = f" ({len(rows)}: {min(ratios):.3f} to {max(ratios):.3f})" if len(rows) > 1 else ""
    shuffled = [one["ppl_ratio_shuffled"] for one in rows if "ppl_ratio_shuffled" in one]
    shares = [
        f"{row[f'active_ratio_{scope}']:.1%}"
        if f"active_ratio_{scope}" in row
        else f"{active:.0%}"
        if scope == "mlp"
        else "–"
        for scope in ("mlp", "blocks", "model")
    ]
    tokens = f"{row['tokens']:,}" if "tokens" in row else "–"
    name = f"{method} ({told})" if told else method
    cells = [
        name,
        widths if method != "oracle" else "–",
        *shares,
        f"{mean:.3f}{spread}",
        f"{statistics.mean(one['kl'] for one in rows):.3f}",
        f"{statistics.mean(shuffled):.2f}" if shuffled else "–",
        tokens,
    ]
    return f"| {' | '.join(cells)} |"


def cpu_speed(rows: Rows) -> str:
    """Tokens through the whole model on a CPU, dense against both layouts."""
    first = rows[0]
    names = {"dense": "dense", "packed": "`tomoe`", "copies": "`standard`"}
    lines = [
        f"`{first['command'].partition(' --out')[0]}`, {first['machine']}, {first['model']}, {first['dtype']}, "
        f"{first['experts']} experts of {first['active']:.0%} of the channels, taking turns: median milliseconds "
        "(times as fast as dense, by the median and by the fastest rounds).",
        "",
        f"| what | {' | '.join(names.values())} |",
        f"| --- |{' ---: |' * len(names)}",
    ]
    for what in dict.fromkeys(row["what"] for row in rows):
        here = {row["contender"]: row for row in rows if row["what"] == what}
        cells = [
            f"{here[name]['ms']:.1f}"
            + (
                ""
                if name == "dense"
                else f" ({here[name]['times_dense']:.2f}, {here[name]['times_dense_fastest']:.2f})"
            )
            for name in names
        ]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gpu_speed(rows: Rows) -> str:
    """A layer of the shape of Llama-3-8B on a GPU: MLP alone and whole block, dense against every form."""
    first = rows[0]
    names = {"packed": "`tomoe`", "copies": "grouped", "vectors": "one by one", "streams": "streams"}
    lines = [
        f"`{first['command'].partition(' --out')[0]}`, {first['machine']}, torch {first['torch']}, bfloat16, "
        f"{first['experts']} experts of {first['active']:.0%} of the channels: microseconds of a layer's MLP / of its "
        "whole block (times as fast as the faster dense one). Attention and norms are in every block all the same.",
        "",
        f"| tokens | attention, norms | dense | {' | '.join(names.values())} |",
        f"| --- | ---: | ---: |{' ---: |' * len(names)}",
    ]
    for place in dict.fromkeys((row["rows"], row["new_tokens"]) for row in rows):
        here = {row["contender"]: row for row in rows if (row["rows"], row["new_tokens"]) == place}
        dense = [min(here[name][f"{part}_us"] for name in here if "dense" in name) for part in ("mlp", "blocks")]
        cells = [f"{here['dense']['attention_us']:.0f}", f"{dense[0]:.0f} / {dense[1]:.0f}"]
        for name in names:
            row = here.get(name)
            cells.append(
                f"{row['mlp_us']:.0f} ({row['mlp_times_dense']:.2f}) / {row['blocks_us']:.0f} "
                f"({row['blocks_times_dense']:.2f})"
                if row
                else "–"
            )
        what = f"prefill {place[1]:,}" if place[1] > 1 else f"decode, batch {place[0]}"
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)
