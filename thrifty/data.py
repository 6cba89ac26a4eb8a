"""Find, check and load data sets; nothing is ever downloaded unless `get` is called.

A data set is looked for in the folder named by the environment variable `THRIFTY_DATA`, then in the user's cache.
Both are laid out alike: `text/wikitext-2-test.txt`, `signed/epinions.csv.gz`, `cifar10/train.npz`.
"""

import difflib
import gzip
import hashlib
import http.client
import os
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from thrifty.data_sets import PYTHON_TOPICS, SETS, WIKITEXT_2_TEST, DataFile, DataSet
from thrifty.errors import DataError, SettingError
from thrifty.files import replacing

Progress = Callable[[str, int, int | None], None]
"""Called during a download with the file's name, the bytes so far, and the bytes in all where the server tells."""

GZIP_MAGIC = b"\x1f\x8b"
CHUNK_BYTES = 1 << 18
WAIT_SECONDS = 30.0


class BrokenFileError(DataError):
    """A file is packed, and cannot be unpacked."""


@dataclass(frozen=True)
class DataStatus:
    """What `check` found: the files that are here, those of them with other content than they should have, the rest."""

    name: str
    found: tuple[Path, ...]
    altered: tuple[Path, ...]
    missing: tuple[str, ...]

    @property
    def is_present(self) -> bool:
        """Whether every file is here."""
        return not self.missing

    @property
    def is_intact(self) -> bool:
        """Whether every file is here and is the one it should be."""
        return not self.missing and not self.altered


def find(name: str) -> tuple[Path, ...]:
    """Return the paths of the files of the data set `name`, in their order in `SETS`; none for `python-topics`.

    Raises `SettingError` for a name that does not exist, `DataError` where a file is missing.
    """
    data_set = _named(name)
    paths = {file: _locate(file) for file in data_set.files}
    missing = [file.path for file, path in paths.items() if path is None]
    if missing:
        raise DataError(f"{name} is not on this machine: no {', '.join(missing)} in {_places()}; {_way_out(data_set)}")
    return tuple(path for path in paths.values() if path is not None)


def is_here(name: str) -> bool:
    """Whether every file of the data set `name` is on this machine; their contents are not read."""
    return all(_locate(file) is not None for file in _named(name).files)


def check(name: str) -> DataStatus:
    """Return which files of the data set `name` are here, and whether their SHA-256 is right; reads them whole."""
    paths = [(file, _locate(file)) for file in _named(name).files]
    return DataStatus(
        name=name,
        found=tuple(path for _, path in paths if path is not None),
        altered=tuple(path for file, path in paths if path is not None and not _is_intact(file, path)),
        missing=tuple(file.path for file, path in paths if path is None),
    )


def get(name: str, progress: Progress | None = None) -> tuple[Path, ...]:
    """Download what is missing of the data set `name` into the user's cache, check it, and return all its paths.

    What is here and intact stays. Raises `SettingError` for a name that does not exist, `DataError` where a file has
    no public origin, cannot be reached, or is not the one it should be, `OutputError` where it cannot be written.
    """
    data_set = _named(name)
    cache = cache_folder()
    for file in data_set.files:
        path = _locate(file)
        if path is not None and _is_intact(file, path):
            continue
        if path is not None and not path.is_relative_to(cache):
            raise DataError(f"{path} is not the file of {name} that it should be; remove it and ask again")
        if file.origin is None:
            raise DataError(f"{file.path} of {name} cannot be downloaded; {_way_out(data_set)}")
        _store(cache / file.path, _fetch(file, file.origin, progress))
    return find(name)


def text(name_or_path: str | Path) -> str:
    """Return a text: of the data set with that name, or of a `.txt` or `.txt.gz` file in UTF-8.

    Raises `DataError` where there is none, or where it is empty, not UTF-8, or not what the data set should hold.
    """
    data_set = SETS.get(str(name_or_path))
    if data_set is None:
        return _text_of_file(Path(name_or_path).expanduser())
    if not data_set.is_text:
        raise DataError(f"{data_set.name} is no text; texts are {', '.join(text_names())}")
    if data_set is PYTHON_TOPICS:
        return _python_topics()
    (path,) = find(data_set.name)
    content = _content(path)
    if hashlib.sha256(content).hexdigest() != data_set.files[0].sha256:
        raise DataError(f"{path} is not the {data_set.name} that it should be; remove it, then {_way_out(data_set)}")
    return _decoded(content, path)


def default_text() -> tuple[str, str]:
    """Return the name and the text to measure with where none was asked for: wikitext-2-test if it is here."""
    name = WIKITEXT_2_TEST.name if check(WIKITEXT_2_TEST.name).is_present else PYTHON_TOPICS.name
    return name, text(name)


def text_names() -> list[str]:
    """Return the names of the data sets that `text` can load."""
    return [data_set.name for data_set in SETS.values() if data_set.is_text]


def cache_folder() -> Path:
    """Return the folder that `get` writes to, which need not exist."""
    return Path(platformdirs.user_cache_dir("thrifty", appauthor=False)) / "data"


def _named(name: str) -> DataSet:
    if name in SETS:
        return SETS[name]
    close = difflib.get_close_matches(name, SETS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(SETS)}"
    raise SettingError(f"there is no data set {name!r}; {hint}")


def _given_folder() -> Path | None:
    given = os.environ.get("THRIFTY_DATA", "")
    return Path(given).expanduser() if given else None


def _locate(file: DataFile) -> Path | None:
    for folder in (_given_folder(), cache_folder()):
        if folder is not None and (folder / file.path).is_file():
            return folder / file.path
    return None


def _places() -> str:
    given = _given_folder()
    if given is None:
        return f"{cache_folder()} (and THRIFTY_DATA is not set)"
    return f"{given} (THRIFTY_DATA{'' if given.is_dir() else ', no such folder'}) or {cache_folder()}"


def _way_out(data_set: DataSet) -> str:
    if data_set.has_origin:
        return f"run `thrifty data get {data_set.name}`"
    return (
        f"it comes from {data_set.source} and has no address to download it from: "
        f"let THRIFTY_DATA name a folder that holds {data_set.files[0].path}"
    )


def _is_intact(file: DataFile, path: Path) -> bool:
    try:
        content = _content(path)
    except BrokenFileError:
        return False
    return hashlib.sha256(content).hexdigest() == file.sha256


def _fetch(file: DataFile, origin: str, progress: Progress | None) -> bytes:
    """Return the content of `file` from its origin, converted and checked."""
    raw = bytearray()
    try:
        with urllib.request.urlopen(origin, timeout=WAIT_SECONDS) as response:
            length = response.headers.get("Content-Length", "")
            while chunk := response.read(CHUNK_BYTES):
                raw += chunk
                if progress is not None:
                    progress(file.path, len(raw), int(length) if length.isdigit() else None)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"cannot download {origin}: {reason}; check the connection, "
            f"or let THRIFTY_DATA name a folder that holds {file.path}"
        ) from error
    try:
        content = file.convert(gzip.decompress(raw) if raw.startswith(GZIP_MAGIC) else bytes(raw))
    except (OSError, EOFError, zlib.error, ValueError, IndexError):
        content = b""
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise DataError(
            f"{origin} gave {len(raw):,} bytes that are not {file.path} (its SHA-256 should be {file.sha256}); "
            "nothing was kept: try again, and if it stays so the file has changed there"
        )
    return content


def _store(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _text_of_file(path: Path) -> str:
    if path.is_dir():
        raise DataError(f"{path} is a folder; give a .txt or .txt.gz file")
    if not path.exists():
        raise DataError(
            f"there is no file and no data set {str(path)!r}; "
            f"give a .txt or .txt.gz file, or one of {', '.join(text_names())}"
        )
    return _decoded(_content(path), path)


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw.startswith(GZIP_MAGIC) else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BrokenFileError(f"{path} is a broken gzip file ({error}); give another file") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _decoded(content: bytes, path: Path) -> str:
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise DataError(
            f"{path} is not UTF-8 text: byte {byte:#04x} at {error.start:,}; give a .txt or .txt.gz file in UTF-8"
        ) from error
    if not decoded.strip():
        raise DataError(f"{path} is empty: a text of at least one window is needed; give another file")
    return decoded


def _python_topics() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError("this Python has no pydoc_data.topics; give a .txt file") from error
    return "\n".join(topics[key] for key in sorted(topics))
