"""The tables of the README about signed graphs, from results/graph_*.jsonl; `benchmarks/readme.py` writes them."""

import math
import statistics
from typing import Any

from scipy import stats

SETS = {
    "bitcoin-alpha": "Alpha",
    "bitcoin-otc": "OTC",
    "wiki-elec": "wiki-elec",
    "wiki-rfa": "wiki-RfA",
    "slashdot": "Slashdot",
    "epinions": "Epinions",
}
PUBLISHED = {
    "bitcoin-alpha": ((80.1, 1.7), (93.4, 0.9), (88.1, 1.5), (68.3, 1.2)),
    "bitcoin-otc": ((81.8, 0.4), (94.3, 0.7), (89.9, 1.1), (76.6, 1.5)),
    "wiki-elec": ((77.8, 0.4), (86.5, 0.3), (80.0, 0.3), (74.0, 0.3)),
    "wiki-rfa": ((75.4, 0.8), (85.6, 0.3), (78.6, 0.4), (72.1, 0.4)),
    "slashdot": ((66.4, 1.2), (83.6, 0.8), (75.1, 1.0), (65.7, 1.0)),
}
"""SGCN+SGA in SGA's own sensitivity study at its default settings: mean and sd of METRICS, percent."""
METRICS = ("auc_hard", "f1_binary", "f1_micro", "f1_macro")
Rows = list[dict[str, Any]]


def scorers(rows: Rows) -> str:
    """The default scorer and the stack on every graph."""
    rows = [row for row in rows if row["part"] == "scorers"]
    lines = [
        "`benchmarks/graph_sga.py`, SGA's five official splits, mean ± sd; calibration and thresholds from training "
        "edges. Networks learnt on an H100, or on a CPU where that had no time or memory left.",
        "",
        "| graph | `triads` (default): AUC | AP of negatives | macro F1 | ECE "
        "| `stack`: AUC | AP of negatives | macro F1 | ECE |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, title in SETS.items():
        cells = []
        for scorer in ("triads", "stack"):
            here = [row for row in rows if (row["set"], row["scorer"]) == (name, scorer)]
            title = f"{title} ({len(here)} split{'s' if len(here) > 1 else ''})" if len(here) != 5 else title
            cells += [_spread(here, "auc", 4), _spread(here, "ap_negative", 3), _spread(here, "f1_macro", 3)]
            cells += [f"{_mean(here, 'ece'):.3f}"]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def reproduction(rows: Rows) -> str:
    """SGCN+SGA as published: what SGA's logs hold, and what this pipeline gives."""
    lines = [
        "SGCN with random features, SGA's thresholds and curriculum (ties in random order), in percent: published / "
        "here, mean ± sd over the five splits. In italics what is more than two pooled standard deviations apart.",
        "",
        "| graph | AUC of hard labels | F1 | micro F1 | macro F1 |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, published in PUBLISHED.items():
        here = _grid(rows, name, "sgcn", "random", "both", "published")
        cells = []
        for metric, (mean, spread) in zip(METRICS, published, strict=True):
            values = [100 * row[metric] for row in here]
            ours, own = statistics.mean(values), statistics.stdev(values)
            apart = abs(ours - mean) > 2 * math.hypot(spread, own)
            cell = f"{mean:.1f} ± {spread:.1f} / {ours:.1f} ± {own:.1f}"
            cells.append(f"*{cell}*" if apart else cell)
        lines.append(f"| {SETS[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ablation(rows: Rows) -> str:
    """Ranking AUC by network, features, augmentation and curriculum, with paired tests against plain training."""
    parts = [
        "Ranking AUC, mean of five splits. ▲ or ▼: better or worse than plain training of the same network with the "
        "same features (paired t-test over the splits, p < 0.05). Only what ran on all five splits is shown."
    ]
    for scorer, curricula in (
        ("sgcn", ("none", "published", "per sign")),
        ("gcn", ("none", "published")),
        ("gat", ("none", "published")),
    ):
        arms = [(augment, curriculum) for augment in ("none", "add", "delete", "both") for curriculum in curricula]
        for features in ("random", "spectral"):
            names = [name for name in SETS if all(len(_grid(rows, name, scorer, features, *arm)) == 5 for arm in arms)]
            if not names:
                continue
            lines = [
                f"| {scorer.upper()}, {features} features | {' | '.join(SETS[name] for name in names)} |",
                f"| --- |{' ---: |' * len(names)}",
            ]
            for arm in arms:
                cells = [_against_plain(rows, name, scorer, features, *arm) for name in names]
                lines.append(f"| {', '.join(arm)} | {' | '.join(cells)} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def chosen(rows: Rows) -> str:
    """SGA with settings chosen on validation edges against plain training of the same network."""
    rows = sorted((row for row in rows if row["part"] == "chosen"), key=lambda row: row["split"])
    lines = ["| graph (splits) | plain: AUC | chosen: AUC | gain (paired t-test) | plain: macro F1 | chosen |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, title in SETS.items():
        plain, best = ([r for r in rows if (r["set"], r["which"]) == (name, which)] for which in ("plain", "chosen"))
        if best:
            cells = [_spread(part, metric, 4) for metric in ("auc", "f1_macro") for part in (plain, best)]
            pairs = [[row["auc"] for row in part] for part in (best, plain)]
            chance = float(stats.ttest_rel(*pairs).pvalue)
            cells.insert(2, f"{_mean(best, 'auc') - _mean(plain, 'auc'):+.4f} (p = {chance:.2f})")
            lines.append(f"| {title} ({len(plain)}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def peers(rows: Rows) -> str:
    """Our scorers against torch-geometric-signed-directed."""
    lines = [
        f"`{rows[0]['provenance']['command']}`, Bitcoin-OTC, {', '.join(dict.fromkeys(row['split'] for row in rows))}, "
        "one thread; hard labels at a probability of one half.",
        "",
        "| scorer | AUC | macro F1 | CPU seconds |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in dict.fromkeys(row["scorer"] for row in rows):
        here = [row for row in rows if row["scorer"] == name]
        cells = f"{_mean(here, 'auc'):.4f} | {_mean(here, 'f1_macro'):.4f} | {_mean(here, 'cpu_seconds'):.1f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def scale(rows: Rows) -> str:
    """Seconds and peak memory of each step."""
    lines = [
        f"`{rows[0]['provenance']['command']}`, {rows[0]['provenance']['machine']['cores']} cores.",
        "",
        "| graph | step | seconds | peak memory so far (GiB) |",
        "| --- | --- | ---: | ---: |",
    ]
    lines += [f"| {row['graph']} | {row['step']} | {row['seconds']:.1f} | {row['peak_gib']:.1f} |" for row in rows]
    return "\n".join(lines)


def sga(rows: Rows) -> str:
    """What SGA brings, table after table."""
    titles = (
        ("SGA as published", reproduction),
        ("SGA part by part", ablation),
        ("SGA with settings chosen on validation edges, spectral features, calibrated", chosen),
    )
    return "\n\n".join(f"**{title}**\n\n{table(rows)}" for title, table in titles)


def _grid(rows: Rows, name: str, scorer: str, features: str, augment: str, curriculum: str) -> Rows:
    wanted = {"part": "grid", "set": name, "scorer": scorer, "features": features}
    wanted |= {"augment": augment, "curriculum": curriculum}
    found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    return sorted(found, key=lambda row: row["split"])


def _against_plain(rows: Rows, name: str, scorer: str, features: str, augment: str, curriculum: str) -> str:
    here, plain = (
        [row["auc"] for row in _grid(rows, name, scorer, features, *which)]
        for which in ((augment, curriculum), ("none", "none"))
    )
    text = f"{statistics.mean(here):.3f}"
    if (augment, curriculum) == ("none", "none"):
        return text
    if float(stats.ttest_rel(here, plain).pvalue) < 0.05:
        text += " ▲" if statistics.mean(here) > statistics.mean(plain) else " ▼"
    return text


def _mean(rows: Rows, metric: str) -> float:
    return statistics.mean(row[metric] for row in rows)


def _spread(rows: Rows, metric: str, digits: int) -> str:
    values = [row[metric] for row in rows]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"
