"""The table of data sets holds together, and what is converted becomes what is stored."""

import gzip
import hashlib
import re

import pytest

from thrifty import data
from thrifty.data_sets import SETS, DataFile

FILES = [file for data_set in SETS.values() for file in data_set.files]


def converter(name: str) -> DataFile:
    return SETS[name].files[0]


def test_every_name_is_that_of_its_set() -> None:
    assert all(name == data_set.name for name, data_set in SETS.items())


def test_every_set_says_what_it_is_and_how_to_cite_it() -> None:
    assert all(data_set.about and data_set.source and data_set.citation for data_set in SETS.values())


def test_no_file_is_in_two_sets() -> None:
    assert len({file.path for file in FILES}) == len(FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.path)
def test_every_file_stays_in_its_folder_and_can_be_checked(file: DataFile) -> None:
    assert not file.path.startswith("/")
    assert ".." not in file.path
    assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
    assert file.num_bytes > 0
    assert file.origin is None or file.origin.startswith("https://")


def test_a_rating_becomes_a_sign_and_a_weight() -> None:
    convert = converter("bitcoin-otc").convert
    table = b"source,target,sign,weight,time\n6,2,1,4,1289241911.72836\n1,15,-1,-10,1289243140\n"
    assert convert(b"6,2,4,1289241911.72836\n1,15,-10,1289243140\n") == table


@pytest.mark.parametrize(
    "origin", [b"# Directed graph\n# From\tTo\tSign\n0\t1\t-1\n1\t128552\t-1\n", b"0,1,-1\r\n1,128552,-1\r\n"]
)
def test_edges_parted_by_tabs_or_commas_become_a_table_with_a_header(origin: bytes) -> None:
    assert converter("epinions").convert(origin) == b"source,target,sign\n0,1,-1\n1,128552,-1\n"


ORIGINS = {
    "bitcoin-alpha": "1b2a970f327d0ceba0c57bd5919670257cbe4cc0704e2ddac09abc4b08e2ca4d",
    "bitcoin-otc": "76bd9d8f1d3ff9a1813d9fc8e6902a0ee4d0a2f8c1003842dbc9ec79149ab60c",
    "wiki-elec": "2c22df5022c7b7985fe3d29efc0a25cf338646964fed77d256c3294ae1c45614",
    "wiki-rfa": "3ae55e992deed7e1e9df863927775db9c5c15578c1eed05b16be5961d7eb8143",
}


@pytest.mark.parametrize("name", ORIGINS)
def test_the_published_file_converts_to_the_stored_one(name: str) -> None:
    if not data.check(name).is_present:
        pytest.skip(f"{name} is not here: let THRIFTY_DATA name a folder that holds it")
    stored = gzip.decompress(data.find(name)[0].read_bytes())
    published = as_published(name, stored)
    assert hashlib.sha256(published).hexdigest() == ORIGINS[name]
    assert converter(name).convert(published) == stored


def as_published(name: str, stored: bytes) -> bytes:
    """Undo the conversion: the file as its authors publish it, of which the SHA-256 is known."""
    rows = stored.splitlines()[1:]
    if name.startswith("bitcoin"):
        cells = [row.split(b",") for row in rows]
        return b"".join(b",".join((*row[:2], *row[3:])) + b"\n" for row in cells)
    return b"".join(row + b"\r\n" for row in rows)
