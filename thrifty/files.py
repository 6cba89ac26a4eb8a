"""Write results so that nothing is lost: whole files or none, and no folder overwritten unasked."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError  # what its writers raise where the disk is full; no OSError

from thrifty.errors import OutputError


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on failure it vanishes.

    Raises `OutputError` where the folder cannot be written to or the disk is full.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_file(path: Path) -> None:
    """Raise `OutputError` where `path` is a folder, or its own folder cannot be made or written to."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def check_new(path: Path, overwrite: bool = False) -> None:
    """Raise `OutputError` where `check_file` would, or where `path` is there already and there is no `overwrite`."""
    check_file(path)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} is there already; name another file or add --overwrite")


def check_folder(path: Path, overwrite: bool = False) -> None:
    """Raise `OutputError` where `fresh_folder` would: a file in the way, or a folder with files and no `overwrite`."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; name a folder")
    if path.exists() and any(path.iterdir()) and not overwrite:
        raise OutputError(f"{path} already holds files; name another folder or add --overwrite")


def fresh_folder(path: Path, overwrite: bool = False) -> Path:
    """Return `path` as a folder that may be written to; an existing one with files in it needs `overwrite`."""
    check_folder(path, overwrite)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {error.strerror or error}") from error
    return path


@contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, on failure it vanishes.

    Raises `OutputError` where `path` is there already (an empty folder may be), or the disk is full.
    """
    path, temporary = Path(path), None
    check_folder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
