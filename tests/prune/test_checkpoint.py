"""The state of a run is written whole or not at all, and read back without running anything in it."""

import os
from pathlib import Path

import pytest
import torch

from thrifty.errors import DataError, OutputError, SettingError
from thrifty.prune import checkpoint

CPU = torch.device("cpu")
STATE = {"about": {"seed": 0, "method": "Ato()"}, "done": 3, "tensor": torch.arange(4.0), "list": [{"a": None}]}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert not checkpoint.exists(tmp_path)
    checkpoint.save(tmp_path, STATE, [{"epoch": 1}])
    assert checkpoint.exists(tmp_path)
    found = checkpoint.load(tmp_path, STATE["about"], CPU)
    assert torch.equal(found.pop("tensor"), STATE["tensor"])
    assert found == {name: value for name, value in STATE.items() if name != "tensor"}
    assert (tmp_path / checkpoint.LOG).read_text() == '{"epoch": 1}\n'
    checkpoint.remove(tmp_path)
    assert not any(tmp_path.iterdir())


def test_another_run_is_named_by_what_differs(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, STATE, [])
    with pytest.raises(SettingError, match=r"seed: 0 then, 1 now"):
        checkpoint.load(tmp_path, {"seed": 1, "method": "Ato()"}, CPU)


def test_a_broken_or_missing_state_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without --resume"):
        checkpoint.load(tmp_path, {}, CPU)
    (tmp_path / checkpoint.STATE).write_bytes(b"half a file")
    with pytest.raises(DataError, match="cannot be read"):
        checkpoint.load(tmp_path, {}, CPU)


def test_a_full_disk_is_one_clear_error_and_the_state_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, STATE, [])
    before = (tmp_path / checkpoint.STATE).read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        checkpoint.save(tmp_path, {**STATE, "done": 4}, [])
    monkeypatch.undo()
    assert (tmp_path / checkpoint.STATE).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.STATE, checkpoint.LOG}
