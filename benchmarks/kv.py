"""Quality and size of every codec on SmolLM2-135M against the plain cache, in one run.

    .venv/bin/python benchmarks/kv.py [--windows 8] [--results results/kv.jsonl]

One JSON line a codec, in the form of `thrifty kv --json` (docs/json.md). `benchmarks/readme.py` makes the table of the
README from it. Nothing is chosen on this text: the settings are the published ones.
"""

import argparse
import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from thrifty import catalogue, data, llm
from thrifty.files import write_text
from thrifty.kv import compare, measure
from thrifty.report import provenance

ENTRIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("hack", {"k_bits": 4, "v_bits": 4}),
    ("kivi", {"k_bits": 4, "v_bits": 4}),
    ("hack", {"k_bits": 4, "v_bits": 2}),
    ("hack", {"k_bits": 3, "v_bits": 3}),
    ("hack", {"k_bits": 2, "v_bits": 2}),
    ("hack", {"k_bits": 2, "v_bits": 2, "weights": "published"}),
    ("kivi", {"k_bits": 2, "v_bits": 2}),
    ("kivi", {"k_bits": 2, "v_bits": 2, "group": 64, "residual": 64}),
    ("hack", {"layout": "v1", "k_bits": 4, "v_bits": 4}),
    ("hack", {"layout": "v1", "k_bits": 2, "v_bits": 2}),
)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--results", type=Path, default=Path("results/kv.jsonl"))
    arguments = parser.parse_args()
    start = time.perf_counter()
    language = llm.load("smollm2")
    uniform = catalogue.find("kv", "uniform")()
    entries = [
        compare.entry(language, name, catalogue.find("kv", name, "codecs")(**chosen), uniform)
        for name, chosen in ENTRIES
    ]
    protocol = dataclasses.replace(measure.Protocol(), windows=arguments.windows)
    name, text = data.default_text()
    windows = measure.windows_of(language, text, name, protocol)
    console = Console(stderr=True)

    def shown(items: Any, what: str, total: int) -> Any:
        return track(items, description=what, total=total, console=console)

    results = compare.rows(language, entries, windows, name, protocol, shown)
    origin = provenance(shlex.join(["python", *sys.argv]), time.perf_counter() - start)
    compare.report("Codecs on SmolLM2-135M", "kv", results, origin).print()
    lines = [json.dumps({**row, "kind": "kv", "provenance": origin}) for row in results]
    write_text(arguments.results, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
