"""Draw the picture of the README from results/kv_quality.jsonl and results/kv_gpu.jsonl.

    .venv/bin/python benchmarks/plot.py [--out docs/kv.svg]

Left: quality against bytes, on a GPU. Right: one decode step by context, heads of 128 channels.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from readme import ROOT, by_place

STYLES = {1: "-", 8: "--", 32: ":"}
CONTENDERS = {"sdpa": ("bf16, best SDPA", "#777777"), "hack 4": ("4 bits", "#1f77b4"), "hack 2": ("2 bits", "#d62728")}


def rows_of(name: str) -> list[dict[str, Any]]:
    """The lines of a results file."""
    return [json.loads(line) for line in (ROOT / "results" / name).read_text().splitlines()]


def quality(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Perplexity lost against the share of bf16 bytes."""
    kinds = {"presets": "both, no sums", "hack, as published": "", "kivi": "kivi"}
    for (name, mark), sign in zip(kinds.items(), "o^s", strict=True):
        plain = {"hack 2/2", "hack 4/2", "hack 4/4"}
        chosen = [row for row in rows if (mark and mark in row["label"]) or (not mark and row["label"] in plain)]
        chosen.sort(key=lambda row: row["bytes_per_token"]["8192"])
        x = [row["bytes_per_token"]["8192"] / row["bytes_per_token_bf16"] * 100 for row in chosen]
        y = [(row["ppl_ratio"] - 1) * 100 for row in chosen]
        axes.plot(x, y, marker=sign, linestyle="-" if name != "kivi" else "", label=name)
    axes.set(xlabel="bytes at 8k tokens (% of bf16)", ylabel="perplexity lost (%)", yscale="log")
    axes.set_title("SmolLM2-135M, WikiText-2 test")
    axes.legend(frameon=False)


def speed(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Microseconds of a step by context and batch."""
    places = {place: here for place, here in by_place(rows).items() if place[2] == 128}
    for start, (label, color) in CONTENDERS.items():
        for batch, style in STYLES.items():
            points = [
                (tokens, min(row["us"] for name, row in here.items() if name.startswith(start)))
                for (count, tokens, _), here in sorted(places.items())
                if count == batch
            ]
            axes.plot(*zip(*points, strict=True), style, marker=".", color=color, label=f"{label}, batch {batch}")
    axes.set(xlabel="context (tokens)", ylabel="µs a step and layer", xscale="log", yscale="log")
    axes.set_title(f"Decode attention, {rows[0]['machine']}")
    axes.legend(frameon=False, fontsize=6)


def main() -> None:
    """Draw both and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "kv.svg")
    asked = parser.parse_args()
    with mpl.rc_context({"svg.hashsalt": "thrifty", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        quality(left, rows_of("kv_quality.jsonl"))
        speed(right, rows_of("kv_gpu.jsonl"))
        figure.savefig(asked.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
