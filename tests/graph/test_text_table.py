"""Text files as columns of texts: what parts the fields, what is a header, what is no table."""

import gzip
from pathlib import Path

import pytest

from thrifty.errors import DataError
from thrifty.graph.text_table import read_text

EDGES = b"source,target,sign\na,b,1\nb,c,-1\n"


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", " ", "   "])
def test_fields_are_parted_by_what_parts_them(tmp_path: Path, separator: str) -> None:
    path = written(tmp_path, "x.txt", EDGES.replace(b",", separator.encode()))
    table = read_text(path)
    assert table.header == ["source", "target", "sign"]
    assert table.frame.rows() == [("a", "b", "1", None), ("b", "c", "-1", None)]


def test_line_ends_and_marks_of_windows_are_no_part_of_the_table(tmp_path: Path) -> None:
    table = read_text(written(tmp_path, "x.csv", b"\xef\xbb\xbf" + EDGES.replace(b"\n", b"\r\n")))
    assert table.header == ["source", "target", "sign"]
    assert table.frame.rows()[1] == ("b", "c", "-1", None)


def test_remarks_are_passed_over_where_the_file_begins_with_one(tmp_path: Path) -> None:
    table = read_text(written(tmp_path, "x.txt", b"# one\n# two\n1\t2\t1\n2\t3\t-1\n"))
    assert table.header is None
    assert table.frame.height == 2
    assert table.notes == ["remarks, which begin with #: 2"]
    assert table.lines_of([1]) == {1: (4, "2\t3\t-1")}


def test_a_node_may_be_called_like_a_remark(tmp_path: Path) -> None:
    table = read_text(written(tmp_path, "x.csv", b"source,target,sign\n#a,b,1\n"))
    assert table.frame.row(0)[0] == "#a"


def test_a_stray_quotation_mark_swallows_no_rows(tmp_path: Path) -> None:
    table = read_text(written(tmp_path, "x.csv", b'source,target,sign\na,"b,1\nb,c,-1\nc,"d,1\nd,e,1\n'))
    assert table.frame.height == 4
    assert "quotation mark" in table.notes[0]


def test_quoted_fields_may_hold_commas(tmp_path: Path) -> None:
    table = read_text(written(tmp_path, "x.csv", b'"source","target","sign"\n"a, b","c","1"\n'))
    assert table.frame.row(0) == ("a, b", "c", "1", None)


def test_a_quoted_text_may_take_several_lines(tmp_path: Path) -> None:
    lines = b'source,target,sign,why\na,b,1,"he said, ""no"""\nb,c,-1,"two\nlines"\nc,d,1,x\n'
    table = read_text(written(tmp_path, "x.csv", lines))
    assert table.frame["0"].to_list() == ["a", "b", "c"]
    assert table.frame["3"].to_list() == ['he said, "no"', "two\nlines", "x"]
    assert table.lines_of([2]) == {}


def test_line_ends_of_old_macs_end_lines(tmp_path: Path) -> None:
    assert read_text(written(tmp_path, "x.csv", EDGES.replace(b"\n", b"\r"))).frame.height == 2


def test_numbers_of_lines_count_blank_ones(tmp_path: Path) -> None:
    table = read_text(written(tmp_path, "x.csv", b"\nsource,target,sign\n\na,b,1\n"))
    row = table.frame["0"].to_list().index("a")
    assert table.lines_of([row]) == {row: (4, "a,b,1")}


def test_files_packed_in_parts_are_read_whole(tmp_path: Path) -> None:
    table = read_text(written(tmp_path, "x.csv.gz", gzip.compress(EDGES, mtime=0) + gzip.compress(b"c,d,1\n", mtime=0)))
    assert table.frame.height == 3


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.csv", b"", r"is empty \(0 bytes\)"),
        ("x.csv", b"\n \n", "is empty"),
        ("x.csv", b"# only\n# remarks\n", "remarks only"),
        ("x.csv", b"abc\ndef\n", "has one column"),
        ("x.csv", b"a,b\0c\n", "is no text"),
        ("x.csv", "source".encode("utf-16"), "is UTF-16"),
        ("x.csv", gzip.compress(EDGES, mtime=0), r"packed with gzip; rename it to x.csv.gz"),
        ("x.csv", b"PAR1....", "is a Parquet file"),
        ("x.csv.gz", EDGES, "not packed with gzip"),
        ("x.csv.gz", gzip.compress(EDGES * 100, mtime=0)[:-9], "cut off after"),
        ("x.csv.gz", gzip.compress(EDGES, mtime=0)[:12] + b"broken!!" * 9, "broken gzip|cut off"),
    ],
)
def test_what_is_no_table_says_why(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_text(written(tmp_path, name, content))
