"""Files are written whole or not at all, and nothing is overwritten unasked."""

import os
from pathlib import Path

import pytest

from thrifty.errors import OutputError
from thrifty.files import check_file, check_new, fresh_folder, new_folder, replacing, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_is_written_with_the_folders_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "new.txt"
    write_text(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    assert names(path.parent) == ["new.txt"]


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old and long")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("error", [ValueError("no"), OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):  # noqa: SIM117, PT012
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_until_all_is_written_readers_see_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_reader_that_had_opened_the_old_file_reads_it_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"


def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x.txt", "x")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o640


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot write .*file/x\.txt: "):
        write_text(tmp_path / "file" / "x.txt", "x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("x")
    with pytest.raises(OutputError, match=r"cannot write .*folder: "):
        write_text(tmp_path / "folder", "x")
    assert names(tmp_path) == ["file", "folder"]


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), replacing(tmp_path / "x"):
        raise OSError(28, "No space left on device")


def test_a_folder_that_is_new_or_empty_is_fresh(tmp_path: Path) -> None:
    assert fresh_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    assert fresh_folder(tmp_path / "a" / "b").is_dir()


def test_a_folder_with_files_is_taken_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(OutputError, match=r"already holds files; name another folder or add --overwrite"):
        fresh_folder(tmp_path)
    assert fresh_folder(tmp_path, overwrite=True) == tmp_path
    assert (tmp_path / "old.txt").read_text() == "old"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file is a file; name a folder"):
        fresh_folder(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match="cannot make the folder"):
        fresh_folder(tmp_path / "file" / "inside")


def test_a_file_that_could_not_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "out.json"):
        with pytest.raises(OutputError, match=str(path)):
            check_file(path)
    check_file(tmp_path / "new" / "out.json")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_file_that_is_there_is_taken_only_when_asked(tmp_path: Path) -> None:
    check_new(tmp_path / "x.txt")
    (tmp_path / "x.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"x\.txt is there already; name another file or add --overwrite"):
        check_new(tmp_path / "x.txt")
    check_new(tmp_path / "x.txt", overwrite=True)
    with pytest.raises(OutputError, match="is a folder"):
        check_new(tmp_path, overwrite=True)
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("opened", [replacing, new_folder])
def test_a_disk_that_safetensors_finds_full_is_one_line_and_leaves_nothing(opened, tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(OutputError, match=r"cannot write .*No space left"), opened(tmp_path / "made"):
        raise SafetensorError("No space left on device (os error 28)")
    assert not list(tmp_path.iterdir())


def test_a_path_may_be_a_text(tmp_path: Path) -> None:
    with new_folder(str(tmp_path / "out")) as folder:
        write_text(str(folder / "a.txt"), "a")
    assert (tmp_path / "out" / "a.txt").read_text() == "a"
