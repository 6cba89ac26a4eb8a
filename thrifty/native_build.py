"""Compile and load the kernels in C++: the folders `thrifty/*/native`, one library each.

Only the standard library is imported here: the wheel build runs it too. A library holds every variant of its kernel,
each compiled for its own processor; which one runs is chosen when it is loaded. It has a plain C interface, so one
library serves every Python and every torch. It comes with the wheel, or is compiled once into the user's cache folder
(`$THRIFTY_CACHE` chooses another).
"""

import concurrent.futures
import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

LIBRARY = "kernels.so"
VARIANTS = ("avx512", "avx2", "portable")
WAIT_SECONDS = 300.0
_log = logging.getLogger(__name__)

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


@functools.cache
def has_triton() -> bool:
    """Whether kernels in Triton can be had, which need no build: it comes with PyTorch for GPUs."""
    return importlib.util.find_spec("triton") is not None


def folders() -> list[Path]:
    """The folders of sources, one for each library."""
    return sorted(path for path in Path(__file__).parent.glob("*/native") if any(path.glob("*.cpp")))


class CompileError(Exception):
    """There is no compiler, or it failed; the message is one line."""


def compiler() -> str | None:
    """The path of a C++ compiler: `$CXX`, c++, g++ or clang++; None where there is none."""
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def key(command: str, sources: Path) -> str:
    """What a library depends on: sources, flags, compiler and machine, as a short hash."""
    digest = hashlib.sha256(repr((_FLAGS, _X86_64, platform.machine(), platform.system())).encode())
    digest.update(_run([command, "--version"]).encode())
    for path in sorted(sources.glob("*.[ch]*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def compile_library(command: str, sources: Path, to: Path) -> None:
    """Compile the folder `sources` with `command` into `to`, whole or not at all. Raises `CompileError`."""
    flags_of = _X86_64 if platform.machine().lower() in ("x86_64", "amd64") else {}
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=".build-") as folder:
            objects = {source: f"{folder}/{source.stem}.o" for source in sorted(sources.glob("*.cpp"))}

            def compiled(source: Path) -> None:
                _run([command, *_FLAGS, *flags_of.get(source.name, ()), "-c", str(source), "-o", objects[source]])

            with concurrent.futures.ThreadPoolExecutor() as pool:  # a file takes up to ten seconds
                list(pool.map(compiled, objects))
            _run([command, "-shared", "-pthread", *_linking(), *objects.values(), "-o", f"{folder}/{LIBRARY}"])
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


def library(sources: Path, version: int, what: str) -> ctypes.CDLL | None:
    """The library of a folder, compiled if need be; None where it cannot be had, and one warning that `what` runs in
    PyTorch."""
    shipped = sources / LIBRARY
    with contextlib.suppress(CompileError):  # one made for another system is no reason to give up
        if shipped.exists():
            return load(shipped, version)
    try:
        return load(_compiled(sources), version)
    except CompileError as error:
        _log.warning("%s in PyTorch, which is slower: %s", what, error)
        return None


def load(path: Path, version: int) -> ctypes.CDLL:
    """Load a library. Raises `CompileError` where it cannot be, or has another version."""
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.thrifty_version.restype = ctypes.c_int32
        found = loaded.thrifty_version()
    except (OSError, AttributeError) as error:
        raise CompileError(f"{path} cannot be loaded: {error}") from error
    if found != version:
        raise CompileError(f"{path} has version {found}, not {version}; install thrifty again")
    loaded.thrifty_variant.restype = ctypes.c_char_p
    loaded.thrifty_variant.argtypes = (ctypes.c_char_p,)
    return loaded


@functools.cache
def variant(library: ctypes.CDLL, asked: str) -> str:
    """Which of `VARIANTS` runs: the one that is asked for, or the fastest for an empty text.

    Raises `SettingError` for one that does not exist, or that this machine cannot run.
    """
    from thrifty.errors import SettingError  # not at the top: the wheel build has no package yet

    if asked and asked not in VARIANTS:
        raise SettingError(f"THRIFTY_NATIVE={asked}; use 0 or one of {', '.join(VARIANTS)}")
    found = library.thrifty_variant(asked.encode())
    if found is None:
        raise SettingError(f"THRIFTY_NATIVE={asked}, which this machine cannot run; use another of {VARIANTS} or none")
    return found.decode()


@functools.cache
def torch_threads() -> ctypes.c_void_p | None:
    """`GOMP_parallel` of the OpenMP library that torch brings, so that its threads are used and not a second team;
    None where torch has another one, and a kernel starts threads of its own."""
    import torch

    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p)
        except (OSError, AttributeError):
            continue
    return None


def _compiled(sources: Path) -> Path:
    import platformdirs

    command = compiler()
    if command is None:
        raise CompileError("no C++ compiler; install g++ or clang++, or set CXX")
    folder = Path(os.environ.get("THRIFTY_CACHE") or platformdirs.user_cache_path("thrifty")) / "native"
    path = folder / key(command, sources) / LIBRARY
    if not path.exists():
        with locked(path.with_name("lock")):
            if not path.exists():
                compile_library(command, sources, path)
    return path


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
