"""Work over pairs in sharded Parquet: one shard at a time here, or several at once on workers of Dask.

The same function does a shard in both cases. What it needs of a graph goes to the workers once, as memory-mapped
files, so that all workers of a machine share its pages.
"""

import functools
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Shaped

from thrifty.errors import DataError, OutputError, SettingError, ThriftyError
from thrifty.files import fresh_folder, replacing, write_text
from thrifty.graph.columns import Columns
from thrifty.graph.edge_table import load
from thrifty.graph.pairs import read_pairs
from thrifty.graph.rows import counted, tidy, whole_numbers
from thrifty.graph.signed import Nodes
from thrifty.graph.text_table import EXTRA
from thrifty.graph.writing import as_frame
from thrifty.progress import Track, silent

Arrays = Mapping[str, np.ndarray]
Work = Callable[[Nodes, Nodes], Arrays]
"""Called with the node numbers of pairs; returns columns with a value for each pair."""

Prepare = Callable[[Arrays], Work]
"""Called once in each process with the shared arrays (read-only); returns the work. A function of a module, or a
`functools.partial` of one whose arguments are settings: workers find it by its name."""

JOB_FILE = "job.json"
_USUAL_SHARDS = 8


@dataclass(frozen=True)
class Job:
    """What is to be done with every shard. `names` and `arrays` are those of the graph, numbers and texts only."""

    prepare: Prepare
    names: Shaped[np.ndarray, " nodes"]
    arrays: Arrays

    def __post_init__(self) -> None:
        function = self.prepare.func if isinstance(self.prepare, functools.partial) else self.prepare
        name = getattr(function, "__qualname__", "<")
        if "<" in name or "." in name:
            raise SettingError(f"workers cannot find {name} by its name; give a function at the top of a module")
        for name, values in self.arrays.items():
            if values.dtype.hasobject:
                raise SettingError(f"the array {name} holds objects; give numbers")

    def fingerprint(self, shards: Sequence[Path]) -> str:
        """A digest of the work, the graph and the shards: results of one digest belong together."""
        digest = hashlib.sha256()
        function = self.prepare.func if isinstance(self.prepare, functools.partial) else self.prepare
        settings = (self.prepare.args, self.prepare.keywords) if isinstance(self.prepare, functools.partial) else ()
        digest.update(f"{function.__module__}.{getattr(function, '__qualname__', '')} {settings!r}".encode())
        names = "\n".join(self.names.tolist()).encode() if self.names.dtype == object else self.names.tobytes()
        digest.update(names)
        for name, values in sorted(self.arrays.items()):
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
        for path in shards:
            digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ShardReport:
    """What became of the shards: how many were done now or earlier, and what is in those that were done now."""

    num_done: int
    num_skipped: int
    num_pairs: int
    num_unknown: int


def shard_files(origin: Path) -> list[Path]:
    """The Parquet files of a folder in the order of their names, or the one file."""
    if origin.is_file():
        return [origin]
    found = sorted(origin.glob("*.parquet"))
    if not found:
        raise DataError(f"{origin} holds no .parquet files; cut a table into shards first")
    return found


def shard(
    origin: Any, folder: Path, num: int | None = None, columns: Columns | None = None, overwrite: bool = False
) -> tuple[list[Path], list[str]]:
    """Cut a table of edges or pairs into `num` Parquet files of about as many rows; returns the files and notes.

    Without a number: 8, or one a row where there are fewer. The rows keep their order. Blank lines and rows with too
    many fields are left out, and told.
    """
    table = load(origin, columns or Columns(), needs_sign=False)
    frame, notes = table.frame, list(table.notes)
    for name, what in (("blank", "blank line"), (EXTRA, "row with too many fields")):
        if name in frame.columns:
            is_bad = frame[name].fill_null(False) if name == "blank" else frame[name].is_not_null()
            if is_bad.any():
                num_bad = int(is_bad.sum())
                notes.append(f"{what if num_bad == 1 else what.replace('row', 'rows', 1)}: {num_bad:,} left out")
            frame = frame.filter(~is_bad).drop(name)
    num = max(1, min(_USUAL_SHARDS, frame.height)) if num is None else num
    if not 1 <= num <= max(frame.height, 1):
        raise SettingError(f"{num} shards of {counted(frame.height)}; use 1 to {max(frame.height, 1):,}")
    sides = {side: tidy(frame[side]) for side in ("source", "target")}
    whole = {side: whole_numbers(column) for side, column in sides.items()}
    if all(whole[side].null_count() == sides[side].null_count() for side in sides):
        sides = whole
    frame = frame.with_columns(**sides)
    if overwrite and folder.is_dir():
        for old in folder.glob("part-*.parquet"):
            old.unlink()
    fresh_folder(folder, overwrite)
    bounds = np.linspace(0, frame.height, num + 1).astype(int)
    paths = [folder / f"part-{one:05d}.parquet" for one in range(num)]
    for path, start, end in zip(paths, bounds, bounds[1:], strict=False):
        with replacing(path) as temporary:
            frame[int(start) : int(end)].write_parquet(temporary)
    return paths, notes


def map_shards(
    job: Job,
    shards: Path,
    out_folder: Path,
    workers: int = 1,
    track: Track = silent,
    overwrite: bool = False,
    address: str | None = None,
) -> ShardReport:
    """Do a job on every shard, and write what it says to a Parquet file of the same name in `out_folder`.

    A result holds `source` and `target` as the shard tells them, and the columns of the work; these are null where
    the graph does not have a node. One worker: in this process. More: on as many processes of Dask, on this machine
    and reachable from it only; `address` names a Dask scheduler that is already there, whose workers see the same
    folders. Where the same job was cut off, the shards that were done are skipped.

    Raises `DataError` naming the shard that cannot be done, `OutputError` where `out_folder` holds anything else.
    """
    if workers < 1:
        raise SettingError(f"{workers} workers were asked for; use 1 or more")
    paths = shard_files(shards)
    if out_folder.resolve() == paths[0].resolve().parent:
        raise OutputError(f"{out_folder} holds the pairs themselves; name another folder for the results")
    _claim(out_folder, job.fingerprint(paths), overwrite)
    waiting = [path for path in paths if not (out_folder / path.name).exists()]
    pairs, unknown = 0, 0
    if waiting:
        local = workers == 1 and address is None
        results = _here(job, waiting, out_folder) if local else _on_dask(job, waiting, out_folder, workers, address)
        for num_pairs, num_unknown in track(results, "shards", len(waiting)):
            pairs, unknown = pairs + num_pairs, unknown + num_unknown
    return ShardReport(len(waiting), len(paths) - len(waiting), pairs, unknown)


def do_shard(work: Work, names: Shaped[np.ndarray, " nodes"], path: Path, out_path: Path) -> tuple[int, int]:
    """Do the work on one shard; returns the number of pairs, and of those that have an unknown node."""
    try:
        pairs = read_pairs(path, names)
        known = np.flatnonzero(pairs.is_known)
        columns = dict(work(pairs.source[known], pairs.target[known]))
        wrong = {name: len(values) for name, values in columns.items() if len(values) != len(known)}
        if wrong:
            raise DataError(f"the work gave {wrong} values for {len(known):,} pairs; give one for each")
        place = np.full(pairs.num_pairs, -1, dtype=np.int64)
        place[known] = np.arange(len(known))
        rows = pl.Series(place).replace(-1, None)
        frame = as_frame({"source": pairs.source_id, "target": pairs.target_id})
        told = as_frame(columns).select(pl.all().gather(rows)) if len(known) else _all_unknown(columns, len(rows))
        frame = frame.hstack(told)
        with replacing(out_path) as temporary:
            frame.write_parquet(temporary)
    except OutputError:
        raise
    except Exception as error:  # whatever the work does: the shard that it did it on must be told
        said = str(error) if isinstance(error, ThriftyError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"shard {path.name}: {said}; what is done stays, so that a new run goes on from here"
        ) from error
    return pairs.num_pairs, pairs.num_pairs - len(known)


def _all_unknown(columns: Arrays, num: int) -> pl.DataFrame:
    kinds = as_frame(columns).schema
    return pl.DataFrame({name: pl.Series([None], dtype=kind).new_from_index(0, num) for name, kind in kinds.items()})


def _claim(folder: Path, fingerprint: str, overwrite: bool) -> None:
    """Make the folder that of this job; keep the results of an earlier run of the same job."""
    record = folder / JOB_FILE
    try:
        same = json.loads(record.read_text(encoding="utf-8"))["fingerprint"] == fingerprint
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if same and not overwrite:
        return
    if record.exists() and not overwrite:
        raise OutputError(f"{folder} holds results of another job; name another folder or add --overwrite")
    fresh_folder(folder, overwrite)
    for old in folder.glob("*.parquet"):
        old.unlink()
    write_text(record, json.dumps({"fingerprint": fingerprint}) + "\n")


def _here(job: Job, paths: Iterable[Path], out_folder: Path) -> Iterator[tuple[int, int]]:
    work = job.prepare(job.arrays)
    for path in paths:
        yield do_shard(work, job.names, path, out_folder / path.name)


def _on_dask(
    job: Job, paths: Sequence[Path], out_folder: Path, workers: int, address: str | None
) -> Iterator[tuple[int, int]]:
    from distributed import KilledWorker, as_completed

    with tempfile.TemporaryDirectory(prefix=".shared-", dir=out_folder) as shared:
        folder = Path(shared).resolve()
        share(job, folder)
        with _client(min(workers, len(paths)), address) as client:
            futures = {
                client.submit(
                    _do_shared, job.prepare, str(folder), str(path.resolve()), str(out_folder.resolve())
                ): path
                for path in paths
            }
            for future in as_completed(futures):
                try:
                    yield future.result()
                except KilledWorker as error:
                    raise DataError(
                        f"shard {futures[future].name}: its workers died, perhaps for lack of memory; "
                        "use fewer workers or smaller shards"
                    ) from error


@contextmanager
def _client(workers: int, address: str | None) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    if address is not None:
        with Client(address) as client:
            yield client
        return
    settings: dict[str, Any] = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": True,
        "host": "127.0.0.1",
        "dashboard_address": None,  # no page for the world to see
        "memory_limit": 0,  # Dask counts the shared pages once a worker, and would stop workers that lack nothing
        "silence_logs": logging.CRITICAL,
        "env": {"POLARS_MAX_THREADS": "1"},
    }
    with LocalCluster(**settings) as cluster, Client(cluster) as client:
        yield client


def share(job: Job, folder: Path) -> None:
    """Write what the work needs of a graph as files that many processes can map into memory at once."""
    for name, values in job.arrays.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
    as_frame({"name": job.names}).write_parquet(folder / "names.parquet")


def shared(folder: Path) -> tuple[Arrays, Shaped[np.ndarray, " nodes"]]:
    """What `share` wrote: the arrays, mapped and read-only, and the names."""
    arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
    names = pl.read_parquet(folder / "names.parquet")["name"]
    return arrays, names.to_numpy().astype(object) if names.dtype == pl.String else names.to_numpy()


_opened: dict[str, tuple[Work, np.ndarray]] = {}


def _do_shared(prepare: Prepare, folder: str, path: str, out_folder: str) -> tuple[int, int]:
    """Do one shard in a worker, which opens the graph with its first shard and keeps it for the others."""
    if folder not in _opened:
        arrays, names = shared(Path(folder))
        _opened.clear()
        _opened[folder] = (prepare(arrays), names)
    work, names = _opened[folder]
    return do_shard(work, names, Path(path), Path(out_folder) / Path(path).name)
