"""The table of pruning in the README, from results/prune.jsonl; `benchmarks/readme.py` writes it."""

import statistics
from typing import Any

Rows = list[dict[str, Any]]


def prune(rows: Rows) -> str:
    """Every method at every budget beside the unpruned network, the mean over seeds."""
    first = rows[0]
    machine, training = first["provenance"]["machine"], first["training"]
    where = ", ".join(dict.fromkeys((machine.get("gpu") or machine["cpu"]).split(", ")))
    sizes = sorted({row["training"]["batch_size"] for row in rows}, reverse=True)
    lines = [
        f"`benchmarks/prune.py`, {first['images']}, {where}, batches of "
        f"{' or '.join(map(str, sizes))}, {training['precision']}: accuracy of the *small* network on all "
        f"{first['test_images']:,} test images after the last epoch, mean ± sd over seeds (n); training time in "
        "that of the unpruned network, where neither shared its GPU; forward pass in float32, small against whole.",
        "",
        "| network, epochs, recipe | method | FLOPs kept | parameters kept | accuracy | training time | batch 1 "
        "| batch 256 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key in dict.fromkeys(map(_trained, rows)):
        here = [row for row in rows if _trained(row) == key]
        whole = [row["seconds"] for row in here if row["method"] == "unpruned" and not row.get("shared_gpu")]
        runs = dict.fromkeys(row["run"].rpartition(":")[0] for row in here)
        order = sorted(runs, key=lambda run: (-_of(here, run)[0]["flops_ratio"], -_accuracy(_of(here, run))[0]))
        lines += [_line(key, _of(here, run), whole) for run in order]
    return "\n".join(lines)


def _trained(row: dict[str, Any]) -> str:
    """Of which network, how long, and whether with cutout: what is compared has it in common."""
    cutout = row["training"].get("cutout")
    return f"{row['network']}, {row['epochs']}" + (f", cutout {cutout}" if cutout else "")


def _of(rows: Rows, run: str) -> Rows:
    return [row for row in rows if row["run"].rpartition(":")[0] == run]


def _accuracy(rows: Rows) -> tuple[float, float]:
    values = [100 * row["accuracy"] for row in rows]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _line(key: str, rows: Rows, whole: list[float]) -> str:
    mean, spread = _accuracy(rows)
    row = rows[0]
    _, method, budget, _ = row["run"].split(":")
    limits = [limit for limit in budget.split(",") if "=" in limit and not limit.startswith("flops")]
    method = ", ".join(word.strip() for word in (*method.split(","), *limits))
    alone = [r["seconds"] for r in rows if not r.get("shared_gpu")]
    share = f"{statistics.mean(alone) / statistics.mean(whole):.2f}" if whole and alone else "–"
    params = row["params_after"] / row["params_before"]
    told = f"{mean:.2f}" + (f" ± {spread:.2f}" if len(rows) > 1 else "") + f" ({len(rows)})"
    times = [
        f"{statistics.median(r[name]['after'] / r[name]['before'] for r in rows):.2f}"
        for name in ("latency_ms_single", "latency_ms")
    ]
    cells = [key, method, f"{row['flops_ratio']:.1%}", f"{params:.1%}", told, share, *times]
    return f"| {' | '.join(cells)} |"
