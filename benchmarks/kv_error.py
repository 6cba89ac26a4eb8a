"""Error of attention on codes by length: against float64 attention on the very values that the codes stand for.

    .venv/bin/python benchmarks/kv_error.py [--tokens 1024 16384 131072] [--results results/kv_error.jsonl]

What is left is the price of 8-bit queries and weights. Keys, values and queries are normal; `sharpness` is the standard
deviation of the logits. Relative error is the norm of the difference over the norm of the reference, over 4 queries.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch

from thrifty.files import write_text
from thrifty.kv.blocks import encode, restore
from thrifty.kv.codecs.hack import Hack
from thrifty.report import Column, Report, provenance

CODECS = {
    "consistent, kernel": {},
    "consistent, PyTorch": {"kernel": "reference"},
    "published": {"weights": "published"},
}


@torch.inference_mode()
def errors(bits: int, dim: int, tokens: int, sharpness: float, seed: int) -> dict[str, float]:
    """Relative error of each form."""
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, 1, 1, tokens, dim, generator=generator)
    q = torch.randn(1, 4, 1, dim, generator=generator) * sharpness
    found = {}
    for name, settings in CODECS.items():
        codec = Hack(k_bits=bits, v_bits=bits, **settings)
        blocks = encode(codec, k, v)
        exact_k, exact_v = (x.double() for x in restore(codec, blocks))
        right = (q.double() @ exact_k.mT * dim**-0.5).softmax(-1) @ exact_v
        found[name] = float((codec.attend(q, blocks, dim**-0.5) - right).norm() / right.norm())
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 16384, 131072])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("results/kv_error.jsonl"))
    asked = parser.parse_args()
    start, rows = time.perf_counter(), []
    for bits in (2, 4):
        for sharpness in (1.0, 2.0):
            for tokens in asked.tokens:
                runs = [errors(bits, 128, tokens, sharpness, seed) for seed in range(asked.seeds)]
                for name in CODECS:
                    values = [run[name] for run in runs]
                    row = {"weights": name, "bits": bits, "sharpness": sharpness, "tokens": tokens, "head_dim": 128}
                    rows.append(row | {"error": statistics.median(values), "worst": max(values), "seeds": asked.seeds})
    origin = provenance(shlex.join(["python", *sys.argv]), time.perf_counter() - start)
    columns = [Column(key, key) for key in ("weights", "bits", "sharpness", "tokens")]
    columns += [Column("error", "median error", ".4f"), Column("worst", "worst seed", ".4f")]
    Report("Error of attention on codes", "kv_error", rows, columns, provenance=origin).print()
    write_text(
        asked.results, "".join(json.dumps({**row, "kind": "kv_error", "provenance": origin}) + "\n" for row in rows)
    )


if __name__ == "__main__":
    main()
