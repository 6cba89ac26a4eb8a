"""The console: settings are read, and outputs that cannot be written are refused before the work."""

from pathlib import Path

import pytest

from thrifty import console
from thrifty.errors import OutputError, SettingError
from thrifty.report import Column, Report


def test_settings_are_read_as_pairs() -> None:
    assert console.pairs_of(("group=64", "file=a=b")) == {"group": "64", "file": "a=b"}


@pytest.mark.parametrize("text", ["group", "=64", "group="])
def test_a_setting_without_name_or_value_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="use --set field=value"):
        console.pairs_of((text,))
    with pytest.raises(SettingError, match=f"--policy {text}: use --policy field=value"):
        console.pairs_of((text,), "--policy")


def test_outputs_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    console.check_outputs(tmp_path / "new" / "a.json", tmp_path / "page", overwrite=False)
    with pytest.raises(OutputError, match="already holds files"):
        console.check_outputs(None, tmp_path / "used", overwrite=False)
    with pytest.raises(OutputError, match="is a folder"):
        console.check_outputs(tmp_path / "used", None, overwrite=False)


def test_the_peer_can_be_left_out_of_the_json(tmp_path: Path) -> None:
    result = Report("Two", "test", [{"name": "peer"}, {"name": "ours"}], [Column("name", "name")])
    console.write(result, tmp_path / "all.json", None, overwrite=False)
    console.write(result, tmp_path / "ours.json", None, overwrite=False, measured_only=True)
    assert "peer" in (tmp_path / "all.json").read_text()
    assert "peer" not in (tmp_path / "ours.json").read_text()
