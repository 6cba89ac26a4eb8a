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


def test_the_json_replaces_an_earlier_result_and_no_other_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    Report("One", "test", [{"name": "a"}], [Column("name", "name")], provenance={"command": "a"}).save_json(target)
    console.check_outputs(target, None, overwrite=False)
    for text in (
        "source,target\n1,2\n",
        '{"kind": "mine"}',
        "[1]",
        f"{target.read_text()}{target.read_text()}",
        "\x80",
    ):
        target.write_text(text, encoding="latin-1")
        with pytest.raises(OutputError, match=r"a\.json is there already and is no result that --json wrote"):
            console.check_outputs(target, None, overwrite=True)
    target.write_text("")
    console.check_outputs(target, None, overwrite=False)


def test_the_json_can_go_into_the_folder_of_the_page(tmp_path: Path) -> None:
    result = Report("One", "test", [{"name": "a"}], [Column("name", "name")])
    console.write(result, tmp_path / "page" / "mine.json", tmp_path / "page", overwrite=False)
    assert (tmp_path / "page" / "mine.json").read_text() == (tmp_path / "page" / "report.json").read_text()
