"""Compile the C++ sources in `thrifty/kv/native` into one library. Standard library only: the wheel build runs it too.

The library holds every variant of the kernel, each compiled for its own processor; which one runs is chosen when it
is loaded. It has a plain C interface, so one library serves every Python and every torch.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
LIBRARY = "hack.so"
WAIT_SECONDS = 300.0

_FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-w"),
    *("-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"),  # so that plain loops become vector code
)
_X86_64 = {
    "avx2.cpp": ("-mavx2", "-mfma", "-mf16c"),
    "avx512.cpp": (
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vbmi", "-mavx512vnni"),
        *("-mfma", "-mf16c", "-mprefer-vector-width=512"),
    ),
}


class CompileError(Exception):
    """There is no compiler, or it failed; the message is one line."""


def compiler() -> str | None:
    """The path of a C++ compiler: `$CXX`, c++, g++ or clang++; None where there is none."""
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def key(command: str) -> str:
    """What a library depends on: sources, flags, compiler and machine, as a short hash."""
    digest = hashlib.sha256(repr((_FLAGS, _X86_64, platform.machine(), platform.system())).encode())
    digest.update(_run([command, "--version"]).encode())
    for path in sorted(SOURCES.glob("*.[ch]*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def compile_library(command: str, to: Path) -> None:
    """Compile the sources with the compiler `command`; `to` appears whole or not at all. Raises `CompileError`."""
    flags_of = _X86_64 if platform.machine().lower() in ("x86_64", "amd64") else {}
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=".build-") as folder:
            objects = []
            for source in sorted(SOURCES.glob("*.cpp")):
                objects.append(f"{folder}/{source.stem}.o")
                _run([command, *_FLAGS, *flags_of.get(source.name, ()), "-c", str(source), "-o", objects[-1]])
            _run([command, "-shared", "-pthread", *_linking(), *objects, "-o", f"{folder}/{LIBRARY}"])
            os.replace(f"{folder}/{LIBRARY}", to)
    except OSError as error:
        raise CompileError(f"cannot write {to}: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time do what follows; where files cannot be locked, all do it, which costs only time."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(path.open("w"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _linking() -> tuple[str, ...]:
    """A library that runs where the C++ runtime is another one, or missing."""
    return ("-static-libstdc++", "-static-libgcc") if platform.system() == "Linux" else ()


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise CompileError(f"{command[0]} failed: {said.strip()}")
    return done.stdout
