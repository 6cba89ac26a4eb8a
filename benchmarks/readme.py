"""Write the tables of the README and of docs/ from results/*.jsonl.

.venv/bin/python benchmarks/readme.py [--check]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import graph_tables
import moe_tables
import prune_tables

ROOT = Path(__file__).resolve().parents[1]


def quality(rows: list[dict[str, Any]]) -> str:
    """Codecs: size and quality."""
    first = rows[0]
    columns = "cache (bits of keys/values) | bytes/token at 2k | of bf16 | at 8k | perplexity ratio | KL (nats) | top-1"
    lines = [
        f"`{first['provenance']['command']}`: {first['windows']} windows of {first['window']} tokens of "
        f"{first['text']}, {first['predictions']:,} predictions; plain perplexity {first['ppl_plain']:.3f}, "
        f"plain finds {first['passkey_plain']:.0%} of the passkeys. ± is the standard error over windows.",
        "",
        f"| {columns} | passkeys |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda row: -row["bytes_per_token"]["2048"]):
        held, whole = row["bytes_per_token"], row["bytes_per_token_bf16"]
        lines.append(
            f"| {row['label']} | {held['2048']:,.0f} | {held['2048'] / whole:.1%} | {held['8192'] / whole:.1%} "
            f"| {row['ppl_ratio']:.3f} ± {row['ppl_ratio_error']:.3f} | {row['kl']:.4f} | {row['top1']:.1%} "
            f"| {row['passkey']:.0%} |"
        )
    return "\n".join(lines)


def passkeys(rows: list[dict[str, Any]]) -> str:
    """Hidden numbers that are found, by the length of the prompt."""
    found = {row["label"]: row["passkey_by_depth"] for row in rows}
    lengths = sorted({int(place.split("@")[0]) for place in next(iter(found.values()))})
    lines = [
        f"`{rows[0]['command']}`: numbers found of those hidden at five depths; the plain cache finds "
        f"{rows[0]['passkey_plain']:.0%}.",
        "",
        f"| cache (bits of keys/values) | {' | '.join(f'{length:,} tokens' for length in lengths)} |",
        f"| --- |{' ---: |' * len(lengths)}",
    ]
    for label, places in found.items():
        hits = [[hit for place, hit in places.items() if place.startswith(f"{length}@")] for length in lengths]
        lines.append(f"| {named(label)} | {' | '.join(f'{sum(one)} of {len(one)}' for one in hits)} |")
    return "\n".join(lines)


def speed(rows: list[dict[str, Any]]) -> str:
    """Decode attention on a CPU: milliseconds, and times as fast as SDPA in bf16."""
    rows = [row for row in rows if row["threads"] == 1]
    others = ("read floor", "sdpa")
    contenders = [name for name in dict.fromkeys(row["contender"] for row in rows) if not name.startswith(others)]
    lines = [
        f"`{rows[0]['command']}`, one thread, {rows[0]['cpu']} ({rows[0]['variant']}): milliseconds of one decode step "
        "of one layer's attention, cache out of memory, and how many times as fast as SDPA in bf16.",
        "",
        f"| shape, tokens | SDPA bf16 | {' | '.join(contenders)} |",
        f"| --- | ---: |{' ---: |' * len(contenders)}",
    ]
    for shape, tokens in dict.fromkeys((row["model"], row["tokens"]) for row in rows):
        here = {row["contender"]: row for row in rows if (row["model"], row["tokens"]) == (shape, tokens)}
        base = min(row["ms"] for name, row in here.items() if name.startswith("sdpa bfloat16"))
        cells = [f"{here[c]['ms']:.3f} ({base / here[c]['ms']:.1f}x)" for c in contenders]
        lines.append(f"| {shape}, {tokens:,} | {base:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


PRESETS = {"hack 2/2 + both, no sums": "smallest", "hack 4/2 + both, no sums": "balanced"}
PRESETS["hack 4/4 + both, no sums"] = "finest"
"""Their names in the results."""


def chunk(rows: list[dict[str, Any]]) -> str:
    """Attention of several new tokens on a CPU, in milliseconds."""
    first = rows[0]
    news = list(dict.fromkeys(row["new"] for row in rows))
    lines = [
        f"`{first['provenance']['command']}`, {first['threads']} thread, {first['provenance']['machine']['cpu']} "
        f"({first['variant']}): milliseconds of one layer's attention of new tokens on {first['past']:,} earlier ones.",
        "",
        f"| cache | {' | '.join(f'{new} new tokens' for new in news)} |",
        f"| --- |{' ---: |' * len(news)}",
    ]
    for name in dict.fromkeys(row["contender"] for row in rows):
        cells = [f"{row['ms']:.1f}" for row in rows if row["contender"] == name]
        lines.append(f"| {f'`{name}`' if ' ' not in name else name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def named(label: str) -> str:
    """A preset by its name."""
    return f"**`{PRESETS[label]}`** ({label.split()[1]})" if label in PRESETS else label


def beyond(rows: list[dict[str, Any]]) -> str:
    """Settings beyond the papers and what each buys, on the whole test text."""
    first = rows[0]
    lines = [
        f"`benchmarks/kv_quality.py`: {first['windows']} windows of {first['window']} tokens of {first['text']}, plain "
        f"perplexity {first['ppl_plain']:.3f}. ± is the standard error over windows.",
        "",
        "| cache (bits of keys/values) | bytes/token at 2k | of bf16 | at 8k | perplexity ratio | KL (nats) | top-1 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda row: (row["bytes_per_token"]["2048"], row["ppl_ratio"])):
        held, whole = row["bytes_per_token"], row["bytes_per_token_bf16"]
        lines.append(
            f"| {named(row['label'])} | {held['2048']:,.0f} | {held['2048'] / whole:.1%} | {held['8192'] / whole:.1%} "
            f"| {row['ppl_ratio']:.4f} ± {row['ppl_ratio_error']:.4f} | {row['kl']:.4f} | {row['top1']:.1%} |"
        )
    return "\n".join(lines)


def presets_only(rows: list[dict[str, Any]]) -> str:
    """The presets, and KIVI at the very bytes of each."""
    return beyond([row for row in rows if row["label"].endswith(("both, no sums", "groups of 64"))])


def gpu(rows: list[dict[str, Any]]) -> str:
    """Attention on a GPU: microseconds, and times as fast as the best SDPA."""
    first = rows[0]
    lines = [
        f"{first['machine']}, torch {first['torch']}, triton {first['triton']}: microseconds of one decode step of one "
        "layer's attention (times as fast as the best SDPA; share of the memory bandwidth that `torch.sum` reaches).",
        "",
        "| rows x tokens, head size | best SDPA bf16 | 2 bits | dequantising | 4 bits | dequantising |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for place, here in sorted(by_place(rows).items(), key=lambda one: (-one[0][2], *one[0])):
        base = min(row["us"] for name, row in here.items() if name.startswith("sdpa"))
        cells = []
        for bits in (2, 4):
            codes = here[f"hack {bits} bits"]
            cells.append(f"{codes['us']:.1f} ({base / codes['us']:.2f}x; {codes['share_of_floor']:.0%})")
            peers = [row["us"] for name, row in here.items() if name.startswith(f"restoring {bits} bits")]
            cells.append(f"{min(peers):.1f} ({base / min(peers):.2f}x)" if peers else "–")
        lines.append(f"| {place[0]} x {place[1]:,}, {place[2]} | {base:.1f} | {' | '.join(cells)} |")
    prefills = [row for row in rows if row["kind"] == "prefill"]
    lines += ["", "Prefill of one row, causal, in TFLOP/s:", ""]
    lines += [
        "| tokens | SDPA FlashAttention-2 | SDPA cuDNN | 2 bits | 4 bits |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for tokens in dict.fromkeys(row["tokens"] for row in prefills):
        speed = {row["contender"]: row["tflop_per_s"] for row in prefills if row["tokens"] == tokens}
        names = ("sdpa flash", "sdpa cudnn", "hack 2 bits", "hack 4 bits")
        lines.append(f"| {tokens:,} | {' | '.join(f'{speed[name]:.0f}' for name in names)} |")
    return "\n".join(lines + gpu_peers([row for row in rows if row["kind"] == "peers"]))


def gpu_peers(rows: list[dict[str, Any]]) -> list[str]:
    """Caches that restore everything at each step, as Python calls them."""
    if not rows:
        return []
    names = [name for name in dict.fromkeys(row["contender"] for row in rows) if not name.startswith("sdpa")]
    lines = ["", "One step as Python calls it, no CUDA graph (times as fast as the best SDPA called so):", ""]
    lines += [
        f"| rows x tokens, head size | best SDPA bf16 | {' | '.join(names)} |",
        f"| ---{' | ---:' * len(names)} | ---: |",
    ]
    for place in dict.fromkeys((row["rows"], row["tokens"], row["head_dim"]) for row in rows):
        here = {row["contender"]: row["us"] for row in rows if (row["rows"], row["tokens"], row["head_dim"]) == place}
        base = min(us for name, us in here.items() if name.startswith("sdpa"))
        cells = [f"{here[name]:,.0f} ({base / here[name]:.2f}x)" if name in here else "–" for name in names]
        lines.append(f"| {place[0]} x {place[1]:,}, {place[2]} | {base:,.0f} | {' | '.join(cells)} |")
    return lines


def by_place(rows: list[dict[str, Any]]) -> dict[tuple[int, int, int], dict[str, dict[str, Any]]]:
    """Decode rows of a GPU by (rows, tokens, head size) and contender."""
    found: dict[tuple[int, int, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "decode":
            found.setdefault((row["rows"], row["tokens"], row["head_dim"]), {})[row["contender"]] = row
    return found


def generate(rows: list[dict[str, Any]]) -> str:
    """Tokens per second of a whole model with each cache."""
    first = rows[0]
    commands = " and ".join(f"`{command}`" for command in dict.fromkeys(row["provenance"]["command"] for row in rows))
    short, long = f"{first['short_context']:,}", f"{first['context']:,}"
    machine = f"{first['provenance']['machine']['cpu']} ({first['variant']}), {first['threads']} thread(s)"
    lines = [
        f"{commands}, {machine}: tokens per second of SmolLM2-135M after {short} and after {long} tokens, and the "
        "milliseconds that the longer prompt adds to a step; all contenders take turns.",
        "",
        f"| cache | weights | tokens/s at {short} | at {long} | ms added | times the plain cache | spread of steps |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda row: (row["dtype"], -row["tokens_per_second"])):
        speeds = f"{row['tokens_per_second_short']:.2f} | {row['tokens_per_second']:.2f} | {round(row['added_ms'])}"
        lines.append(f"| {row['cache']} | {row['dtype']} | {speeds} | {row['times_plain']:.2f} | {row['spread']:.0%} |")
    return "\n".join(lines)


TABLES = {
    "README.md": {
        "graph_sga.jsonl": graph_tables.scorers,
        "kv_quality.jsonl": presets_only,
        "prune.jsonl": prune_tables.prune,
        "moe.jsonl": moe_tables.moe,
    },
    "docs/graph.md": {
        "graph_sga.jsonl": graph_tables.sga,
        "graph_peers.jsonl": graph_tables.peers,
        "graph_scale.jsonl": graph_tables.scale,
    },
    "docs/moe.md": {
        "moe_cpu.jsonl": moe_tables.moe,
        "moe_speed_cpu.jsonl": moe_tables.cpu_speed,
        "moe_speed_gpu.jsonl": moe_tables.gpu_speed,
    },
    "docs/kv.md": {
        "kv.jsonl": quality,
        "kv_merged.jsonl": beyond,
        "kv_by_head.jsonl": beyond,
        "kv_quality.jsonl": beyond,
        "kv_quantized.jsonl": beyond,
        "kv_passkeys.jsonl": passkeys,
        "kv_cpu.jsonl": speed,
        "kv_cpu_avx2.jsonl": speed,
        "kv_chunk.jsonl": chunk,
        "kv_gpu.jsonl": gpu,
        "kv_generate.jsonl": generate,
    },
}
"""Which file shows which results, and how."""


def written(page: str, name: str) -> str:
    """The text `page` of the file `name` with its tables made anew."""
    for results, table in TABLES[name].items():
        if not (ROOT / "results" / results).is_file():
            continue  # not measured yet
        rows = [json.loads(line) for line in (ROOT / "results" / results).read_text().splitlines()]
        begin, end = f"<!-- results/{results}: written by benchmarks/readme.py -->\n", "<!-- end -->"
        before, _, rest = page.partition(begin)
        page = before + begin + table(rows) + "\n" + end + rest.partition(end)[2]
    return page


def main() -> None:
    """Write, or with --check only tell whether the pages are as they should be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    for name in TABLES:
        path = ROOT / name
        old = path.read_text()
        new = written(old, name)
        if is_check and new != old:
            sys.exit(f"{name} is not as results/ says")
        path.write_text(new)


if __name__ == "__main__":
    main()
