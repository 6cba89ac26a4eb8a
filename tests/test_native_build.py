"""One compilation of a folder gives one library, whole or not at all."""

import concurrent.futures
import ctypes
from pathlib import Path

import pytest

from thrifty import native_build
from thrifty.native_build import CompileError

FOLDERS = native_build.folders()


@pytest.mark.skipif(native_build.compiler() is None, reason="no C++ compiler")
def test_a_library_is_made_of_all_files_of_a_folder(tmp_path: Path) -> None:
    command, sources = native_build.compiler(), tmp_path / "sources"
    assert command
    sources.mkdir()
    (sources / "one.cpp").write_text("int number() { return 7; }")
    (sources / "two.cpp").write_text(
        'int number(); extern "C" __attribute__((visibility("default"))) int thrifty_version() { return number(); }'
    )
    native_build.compile_library(command, sources, tmp_path / "deep" / "it.so")
    assert ctypes.CDLL(str(tmp_path / "deep" / "it.so")).thrifty_version() == 7
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["it.so"]


@pytest.mark.skipif(native_build.compiler() is None, reason="no C++ compiler")
def test_key_changes_with_the_sources(tmp_path: Path) -> None:
    command = native_build.compiler()
    assert command
    before = native_build.key(command, FOLDERS[0])
    assert before == native_build.key(command, FOLDERS[0])
    (tmp_path / "hack.cpp").write_text("int other;")
    assert native_build.key(command, tmp_path) != before


@pytest.mark.skipif(native_build.compiler() is None, reason="no C++ compiler")
def test_sources_that_do_not_compile_leave_nothing(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "hack.cpp").write_text("this is no C++")
    command = native_build.compiler()
    assert command
    with pytest.raises(CompileError, match="failed:") as caught:
        native_build.compile_library(command, sources, tmp_path / "out" / "hack.so")
    assert len(str(caught.value).splitlines()) == 1
    assert not list((tmp_path / "out").iterdir())


def test_a_compiler_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="no-such-compiler"):
        native_build.compile_library("no-such-compiler", FOLDERS[0], tmp_path / "hack.so")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompileError, match="cannot write"):
        native_build.compile_library("c++", FOLDERS[0], tmp_path / "file" / "hack.so")


def test_one_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    inside, most = 0, 0

    def enter() -> None:
        nonlocal inside, most
        with native_build.locked(tmp_path / "lock"):
            inside += 1
            most = max(most, inside)
            inside -= 1

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(enter) for _ in range(20)]:
            done.result()
    assert most == 1
