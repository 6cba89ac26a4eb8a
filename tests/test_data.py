"""Data sets are found, checked and loaded; only `get` downloads, and it keeps nothing that is not right."""

import gzip
import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from thrifty import data
from thrifty.data_sets import SETS, DataFile, DataSet
from thrifty.errors import DataError, SettingError

CONTENT = "A small text — with a dash.\n".encode()
REAL = ["wikitext-2-test", "wikitext-2-valid", "books", "bitcoin-alpha", "sga-splits"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder named by THRIFTY_DATA, and an empty cache beside it."""
    folder = tmp_path / "given"
    folder.mkdir()
    monkeypatch.setenv("THRIFTY_DATA", str(folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path / "cache")
    return folder


@pytest.fixture
def cache(given: Path) -> Path:
    return given.parent / "cache"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address on this machine that it is served at."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: Quiet(*arguments, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def small_set(monkeypatch: pytest.MonkeyPatch, origin: str | None, path: str = "text/small.txt") -> DataFile:
    file = DataFile(path, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), origin)
    monkeypatch.setitem(SETS, "small", DataSet("small", (file,), "a text", "nowhere", "nobody"))
    return file


def put(folder: Path, content: bytes = CONTENT, path: str = "text/small.txt") -> Path:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


def test_the_given_folder_comes_before_the_cache(given: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_set(monkeypatch, None)
    in_cache = put(cache)
    assert data.find("small") == (in_cache,)
    in_given = put(given)
    assert data.find("small") == (in_given,)


def test_a_missing_set_says_how_to_get_it(given: Path) -> None:
    with pytest.raises(DataError, match="run `thrifty data get wikitext-2-test`"):
        data.find("wikitext-2-test")


def test_a_missing_set_without_origin_says_where_it_comes_from(given: Path) -> None:
    with pytest.raises(DataError, match=r"comes from Project Gutenberg.*THRIFTY_DATA.*text/books\.txt\.gz"):
        data.find("books")


def test_a_given_folder_that_is_not_there_is_named(given: Path) -> None:
    given.rmdir()
    with pytest.raises(DataError, match="THRIFTY_DATA, no such folder"):
        data.find("books")


def test_a_wrong_name_is_met_with_the_right_one(given: Path) -> None:
    with pytest.raises(SettingError, match="did you mean epinions"):
        data.find("epinion")


def test_every_set_that_is_absent_is_reported_as_absent(given: Path) -> None:
    for name, data_set in SETS.items():
        status = data.check(name)
        assert status.is_present == (not data_set.files)
        assert len(status.missing) == len(data_set.files)


def test_check_tells_an_altered_file_from_an_intact_one(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_set(monkeypatch, None)
    path = put(given)
    assert data.check("small").is_intact
    path.write_bytes(CONTENT + b"more")
    status = data.check("small")
    assert status.is_present
    assert status.altered == (path,)
    with pytest.raises(DataError, match="is not the small that it should be"):
        data.text("small")


def test_a_packed_file_is_judged_by_its_content(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_set(monkeypatch, None, "text/small.txt.gz")
    for level in (1, 9):
        put(given, gzip.compress(CONTENT, level, mtime=0), "text/small.txt.gz")
        assert data.check("small").is_intact
    put(given, gzip.compress(CONTENT, mtime=0)[:-9], "text/small.txt.gz")
    assert not data.check("small").is_intact


def test_get_downloads_once(
    given: Path, cache: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    (folder / "small.txt").write_bytes(CONTENT)
    small_set(monkeypatch, f"{address}/small.txt")
    steps = []
    paths = data.get("small", lambda *step: steps.append(step))
    assert paths == (cache / "text/small.txt",)
    assert paths[0].read_bytes() == CONTENT
    assert steps == [("text/small.txt", len(CONTENT), len(CONTENT))]
    (folder / "small.txt").unlink()
    assert data.get("small") == paths
    assert data.text("small") == CONTENT.decode()


def test_get_converts_and_packs(given: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address = served
    (folder / "graph.txt.gz").write_bytes(gzip.compress(b"# edges\n0\t1\t-1\n", mtime=0))
    table = b"source,target,sign\n0,1,-1\n"
    file = replace(
        SETS["epinions"].files[0], sha256=hashlib.sha256(table).hexdigest(), origin=f"{address}/graph.txt.gz"
    )
    monkeypatch.setitem(SETS, "epinions", replace(SETS["epinions"], files=(file,)))
    (path,) = data.get("epinions")
    assert gzip.decompress(path.read_bytes()) == table
    assert data.check("epinions").is_intact


@pytest.mark.parametrize(
    "sent", [b"", CONTENT[:-1], b"<html>please log in</html>", gzip.compress(CONTENT, mtime=0)[:-4]]
)
def test_get_keeps_nothing_that_is_not_right(
    given: Path, cache: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    folder, address = served
    (folder / "small.txt").write_bytes(sent)
    small_set(monkeypatch, f"{address}/small.txt")
    with pytest.raises(DataError, match="nothing was kept"):
        data.get("small")
    assert not cache.exists()


def test_get_replaces_an_altered_file_of_the_cache(
    given: Path, cache: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    (folder / "small.txt").write_bytes(CONTENT)
    small_set(monkeypatch, f"{address}/small.txt")
    put(cache, b"altered")
    assert data.get("small")[0].read_bytes() == CONTENT


def test_get_never_writes_to_the_given_folder(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_set(monkeypatch, "http://127.0.0.1:9/never-asked")
    path = put(given, b"altered")
    with pytest.raises(DataError, match="remove it and ask again"):
        data.get("small")
    assert path.read_bytes() == b"altered"


@pytest.mark.parametrize("name", ["nothing-there.txt", None])
def test_a_failed_download_says_what_to_do(
    given: Path, cache: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    small_set(monkeypatch, f"{served[1]}/{name}" if name else "http://127.0.0.1:9/closed")
    with pytest.raises(DataError, match=r"cannot download .* check the connection"):
        data.get("small")
    assert not cache.exists()


def test_get_of_a_set_without_origin_says_where_it_comes_from(given: Path) -> None:
    with pytest.raises(DataError, match="cannot be downloaded; it comes from"):
        data.get("cifar10")


def test_a_text_file_is_read_plain_or_packed(tmp_path: Path) -> None:
    for name, content in {
        "a.txt": CONTENT,
        "a.txt.gz": gzip.compress(CONTENT, mtime=0),
        "b.txt": b"\xef\xbb\xbf" + CONTENT,
    }.items():
        assert data.text(put(tmp_path, content, name)) == CONTENT.decode()
        assert data.text(str(tmp_path / name)) == CONTENT.decode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: a text of at least one window is needed; give another file"),
        (b" \n\n", "is empty"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (b"caf\xe9", "is not UTF-8 text: byte 0xe9 at 3"),
        (gzip.compress(CONTENT, mtime=0)[:-9], "is a broken gzip file"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.text(put(tmp_path, content, "a.txt"))


def test_a_path_that_is_no_file_is_refused(tmp_path: Path, given: Path) -> None:
    with pytest.raises(DataError, match=r"no file and no data set .*python-topics"):
        data.text(tmp_path / "missing.txt")
    with pytest.raises(DataError, match="is a folder"):
        data.text(tmp_path)
    with pytest.raises(DataError, match="cifar10 is no text; texts are python-topics"):
        data.text("cifar10")


def test_there_is_always_a_text(given: Path) -> None:
    name, text = data.default_text()
    assert name == "python-topics"
    assert len(text) > 100_000
    assert data.find(name) == ()
    assert text == data.text(name)


@pytest.mark.parametrize("name", REAL)
def test_the_real_set_is_the_one_described(name: str) -> None:
    status = data.check(name)
    if not status.is_present:
        pytest.skip(f"{name} is not here: let THRIFTY_DATA name a folder that holds it")
    assert status.is_intact
    if SETS[name].is_text:
        assert len(data.text(name).encode()) == SETS[name].files[0].num_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_every_real_set_is_intact(name: str) -> None:
    if not data.check(name).is_present:
        pytest.skip(f"{name} is not here: let THRIFTY_DATA name a folder that holds it")
    assert data.check(name).is_intact


def test_wikitext_is_what_is_measured_with_where_it_is_here() -> None:
    if not data.check("wikitext-2-test").is_present:
        pytest.skip("wikitext-2-test is not here: let THRIFTY_DATA name a folder that holds it")
    assert data.default_text()[0] == "wikitext-2-test"


def test_loading_a_text_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from thrifty import data; data.text('python-topics'); print({'torch', 'numpy'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
