"""Shards: one process and two workers give the same files; a cut-off run goes on; an error names its shard."""

import functools
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from thrifty.errors import DataError, OutputError, SettingError
from thrifty.graph.shards import Job, do_shard, map_shards, shard, shard_files, share, shared

WORK = '''
"""Work that workers can find by its name."""
import numpy as np

def degrees(arrays, factor=1):
    degree = np.bincount(arrays["target"], minlength=int(arrays["num"][0])) * factor
    return lambda source, target: {"popularity": degree[target], "half": degree[source] / 2}

def broken(arrays):
    def work(source, target):
        if 0 in source:
            raise ValueError("a nought")
        return {"same": source}
    return work

def short(arrays):
    return lambda source, target: {"few": source[:1]}
'''
NAMES = np.array(["a", "b", "c", "d"], dtype=object)
ARRAYS = {"target": np.array([1, 1, 2, 0], dtype=np.int32), "num": np.array([4])}
PAIRS = pl.DataFrame({"source": ["b", "c", "zoe", "d", "a", "a"], "target": ["c", "b", "a", "a", "b", None]})


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The module WORK, where this process and those that it starts find it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "work_of_tests.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    import work_of_tests  # pyright: ignore

    yield work_of_tests
    sys.modules.pop("work_of_tests")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """PAIRS in three files."""
    paths, notes = shard(PAIRS, tmp_path / "shards", 3)
    assert [path.name for path in paths] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert notes == []
    return tmp_path / "shards"


def whole(folder: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in shard_files(folder)])


def test_shards_together_are_the_table(shards: Path) -> None:
    assert whole(shards).equals(PAIRS)


def test_results_keep_the_order_and_the_ids_and_are_null_for_unknown_nodes(tmp_path, work, shards) -> None:
    report = map_shards(Job(work.degrees, NAMES, ARRAYS), shards, tmp_path / "out")
    assert (report.num_done, report.num_skipped, report.num_pairs, report.num_unknown) == (3, 0, 6, 2)
    result = whole(tmp_path / "out")
    assert result.select("source", "target").equals(PAIRS)
    assert result["popularity"].to_list() == [1, 2, None, 1, 2, None]
    assert result["half"].to_list() == [1.0, 0.5, None, 0.0, 0.5, None]


@pytest.mark.slow
def test_two_workers_write_what_one_process_writes(tmp_path, work, shards) -> None:
    job = Job(functools.partial(work.degrees, factor=3), NAMES, ARRAYS)
    alone = map_shards(job, shards, tmp_path / "alone")
    together = map_shards(job, shards, tmp_path / "together", workers=2)
    assert alone == together
    for path in shard_files(tmp_path / "alone"):
        assert path.read_bytes() == (tmp_path / "together" / path.name).read_bytes()
    assert {path.name for path in (tmp_path / "together").iterdir()} == {
        *(path.name for path in shard_files(shards)),
        "job.json",
    }
    with pytest.raises(DataError, match=r"shard part-00002.parquet: ValueError: a nought"):
        map_shards(Job(work.broken, NAMES, ARRAYS), shards, tmp_path / "broken", workers=2)


@pytest.mark.slow
def test_workers_that_are_there_already_can_be_used(tmp_path, work, shards) -> None:
    from distributed import LocalCluster

    settings: dict = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    with LocalCluster(**settings) as cluster:
        report = map_shards(
            Job(work.degrees, NAMES, ARRAYS), shards, tmp_path / "out", address=cluster.scheduler_address
        )
    assert report.num_done == 3
    assert whole(tmp_path / "out")["popularity"].to_list() == [1, 2, None, 1, 2, None]


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(tmp_path, work, shards) -> None:
    out = tmp_path / "out"
    job = Job(work.degrees, NAMES, ARRAYS)
    map_shards(job, shards, out)
    (out / "part-00001.parquet").unlink()
    before = (out / "part-00000.parquet").stat().st_mtime_ns
    report = map_shards(job, shards, out)
    assert (report.num_done, report.num_skipped) == (1, 2)
    assert (out / "part-00000.parquet").stat().st_mtime_ns == before


def test_results_of_two_jobs_are_never_mixed(tmp_path, work, shards) -> None:
    out = tmp_path / "out"
    map_shards(Job(work.degrees, NAMES, ARRAYS), shards, out)
    for other in (
        Job(functools.partial(work.degrees, factor=2), NAMES, ARRAYS),
        Job(work.degrees, NAMES, {**ARRAYS, "target": np.array([1, 1, 2, 3], dtype=np.int32)}),
    ):
        with pytest.raises(OutputError, match="results of another job"):
            map_shards(other, shards, out)
    assert map_shards(other, shards, out, overwrite=True).num_done == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="already holds files"):
        map_shards(other, shards, tmp_path / "mine")


def test_an_error_names_the_shard_and_keeps_what_is_done(tmp_path, work, shards) -> None:
    with pytest.raises(DataError, match=r"shard part-00002.parquet: ValueError: a nought; what is done stays"):
        map_shards(Job(work.broken, NAMES, ARRAYS), shards, tmp_path / "out")
    assert len(shard_files(tmp_path / "out")) == 2
    with pytest.raises(DataError, match="give one for each"):
        do_shard(work.short({}), NAMES, shards / "part-00000.parquet", tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


def test_shared_arrays_are_mapped_and_cannot_be_changed(tmp_path, work) -> None:
    share(Job(work.degrees, NAMES, ARRAYS), tmp_path)
    arrays, names = shared(tmp_path)
    assert isinstance(arrays["target"], np.memmap)
    assert not arrays["target"].flags.writeable
    assert names.tolist() == NAMES.tolist()


def test_a_table_is_cut_as_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("source,target,sign\n1,2,1\n\n2,3,-1\n3,4,1,9\n")
    paths, notes = shard(path, tmp_path / "cut", 2)
    assert [pl.read_parquet(part)["source"].to_list() for part in paths] == [[1], [2]]
    assert notes == ["blank line: 1 left out", "row with too many fields: 1 left out"]
    with pytest.raises(OutputError, match="already holds files"):
        shard(path, tmp_path / "cut", 1)
    assert len(shard(path, tmp_path / "cut", 1, overwrite=True)[0]) == len(shard_files(tmp_path / "cut")) == 1


def test_what_cannot_be_done_says_so(tmp_path: Path, shards: Path, work) -> None:
    with pytest.raises(SettingError, match="function at the top of a module"):
        Job(lambda arrays: None, NAMES, ARRAYS)  # pyright: ignore
    with pytest.raises(SettingError, match="holds objects"):
        Job(work.degrees, NAMES, {"names": NAMES})
    with pytest.raises(SettingError, match="0 workers"):
        map_shards(Job(work.degrees, NAMES, ARRAYS), shards, tmp_path / "out", workers=0)
    with pytest.raises(SettingError, match="9 shards of 6 rows; use 1 to 6"):
        shard(PAIRS, tmp_path / "more", 9)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no .parquet files"):
        shard_files(tmp_path / "empty")


def test_few_pairs_need_no_number_of_shards(tmp_path: Path) -> None:
    assert len(shard(PAIRS, tmp_path / "few")[0]) == 6
    assert len(shard(pl.concat([PAIRS] * 2), tmp_path / "more")[0]) == 8


def test_results_never_replace_the_pairs(work, shards: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in shard_files(shards)}
    (tmp_path / "link").symlink_to(shards)
    for pairs in (shards, shards / "part-00001.parquet", tmp_path / "link"):
        with pytest.raises(OutputError, match="holds the pairs themselves"):
            map_shards(Job(work.degrees, NAMES, ARRAYS), pairs, shards, overwrite=True)
    assert {path: path.read_bytes() for path in shards.iterdir()} == before
