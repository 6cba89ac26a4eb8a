"""A table in a text file (CSV, TSV, with spaces; packed with gzip or not) as columns of texts."""

import csv
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from thrifty.errors import DataError
from thrifty.graph.columns import looks_like_header

GZIP_MAGIC = b"\x1f\x8b"
KINDS = {b"PAR1": "a Parquet file", b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "packed with gzip", b"BZh": "bzip2"}
SAMPLE_BYTES = 1 << 16
REMARKS = (b"#", b"%")
EXTRA = "more"
"""The column that holds what a row has beyond its last column."""


@dataclass(frozen=True)
class TextTable:
    """All rows of a text file, each field a text or null, and the names of its columns (None: it has no header).

    `frame` has columns `0`, `1`, ... and `more`, which is null unless a row has too many fields.
    """

    frame: pl.DataFrame
    header: list[str] | None
    notes: list[str]
    content: bytes
    comment: bytes | None
    first_row: int
    has_long_rows: bool = False

    def lines_of(self, rows: list[int]) -> dict[int, tuple[int, str]]:
        """The number of the line (from 1) and its text, for some rows; remarks are lines, but no rows.

        No answer where a row may take several lines.
        """
        if self.has_long_rows:
            return {}
        found, wanted, row = {}, set(rows), -self.first_row
        position = 0
        for number in range(1, self.content.count(b"\n") + 2):
            if len(found) == len(wanted):
                break
            end = self.content.find(b"\n", position)
            end = len(self.content) if end < 0 else end
            if self.comment is None or not self.content.startswith(self.comment, position):
                if row in wanted:
                    found[row] = (number, self.content[position:end].decode("utf-8", "replace").strip("\r"))
                row += 1
            position = end + 1
        return found


def read_text(path: Path) -> TextTable:
    """Read all rows of a text file; raises `DataError` for what is empty, cut off, or no text."""
    content = _content(path)
    if content.startswith(b"\xef\xbb\xbf"):
        content = content[3:]
    if b"\n" not in content:
        content = content.replace(b"\r", b"\n")  # line ends of old Macs
    if not content.strip():
        raise DataError(f"{path} is empty; give a table with the columns source, target and sign")
    # Remarks are looked for only where the file begins with one: elsewhere #name may be a node.
    comment = next((mark for mark in REMARKS if content.lstrip().startswith(mark)), None)
    sample = content[:SAMPLE_BYTES]
    if b"\0" in sample:
        raise DataError(f"{path} is no text (byte 0 at {sample.index(0):,}); give CSV in UTF-8, or Parquet")
    whole = sample if len(content) <= SAMPLE_BYTES else sample[: sample.rfind(b"\n") + 1]
    lines = [line for line in whole.split(b"\n") if line.strip() and not (comment and line.startswith(comment))]
    lines = [line.decode("utf-8", "replace").strip("\r") for line in lines[:200]]
    if not lines:
        raise DataError(f"{path} holds remarks only; give a table with the columns source, target and sign")
    separator = _separator(lines, path)
    notes = []
    parsed = content
    if separator == "  ":
        parsed = re.sub(rb"[ \t]+", b" ", re.sub(rb"(?m)^[ \t]+|[ \t\r]+$", b"", content))
        lines, separator = [" ".join(line.split()) for line in lines], " "
    fields = [_fields(line, separator) for line in lines]
    header = fields[0] if looks_like_header(fields[0]) else None
    width = len(header) if header else Counter(map(len, fields)).most_common(1)[0][0]
    frame, trusted = _parse(parsed, separator, comment.decode() if comment else None, width)
    if not trusted:
        notes.append('a quotation mark is not closed in its line: all " are taken for letters')
    if comment:
        remarks = content.count(b"\n" + comment) + content.startswith(comment)
        notes.append(f"remarks, which begin with {comment.decode()}: {remarks:,}")
    has_long_rows = trusted and b'"' in content and _has_breaks(frame)
    first_row = 0
    if header:
        first_row = 1 + _blank_rows_before(frame)
    return TextTable(frame.slice(first_row), header, notes, content, comment, first_row, has_long_rows)


def _fields(line: str, separator: str) -> list[str]:
    try:
        row = next(csv.reader([line], delimiter=separator))
    except csv.Error:
        row = line.split(separator)
    return [field.strip() for field in row]


def _blank_rows_before(frame: pl.DataFrame) -> int:
    filled = frame.head(SAMPLE_BYTES).select(pl.any_horizontal(pl.all().is_not_null())).to_series()
    return int(filled.arg_max() or 0)


def _content(path: Path) -> bytes:
    """The bytes of the file, unpacked."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    is_packed = path.suffix.lower() == ".gz"
    if not raw:
        raise DataError(f"{path} is empty (0 bytes); give a table with the columns source, target and sign")
    found = next((kind for magic, kind in KINDS.items() if raw.startswith(magic)), None)
    if is_packed and not raw.startswith(GZIP_MAGIC):
        raise DataError(f"{path} is named .gz and is {found or 'not packed with gzip'}; rename or pack it")
    if not is_packed and found is not None:
        way_out = f"rename it to {path.name}.gz" if raw.startswith(GZIP_MAGIC) else "rename it, or give the table in it"
        raise DataError(f"{path} is named as a text and is {found}; {way_out}")
    if not is_packed and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16; save it as UTF-8")
    return _unpacked(raw, path) if is_packed else raw


def _unpacked(raw: bytes, path: Path) -> bytes:
    # One member after the other, as `cat a.gz b.gz` makes them; a member that does not end was cut off.
    parts, rest = [], raw
    while rest:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            parts.append(unpacker.decompress(rest))
        except zlib.error as error:
            if parts and not rest.strip(b"\0"):
                break  # padding after the last member, which gzip allows
            raise DataError(f"{path} is a broken gzip file ({error}); fetch it again") from error
        if not unpacker.eof:
            raise DataError(f"{path} is a gzip file that was cut off after {len(raw):,} bytes; fetch it again")
        rest = unpacker.unused_data
    return b"".join(parts)


def _separator(lines: list[str], path: Path) -> str:
    """The one that parts most lines into as many fields as the first; two spaces stand for any white space."""
    candidates = ["\t", ",", ";", "|"] if ".tsv" in path.suffixes else [",", "\t", ";", "|"]
    scores = {one: sum(line.count(one) == lines[0].count(one) > 0 for line in lines) for one in candidates}
    best = max(scores, key=scores.__getitem__)
    if scores[best]:
        return best
    if len(lines[0].split()) < 2:
        raise DataError(
            f"{path} has one column ({lines[0][:40]!r} is its first line); "
            "part source, target and sign by commas, tabs or spaces"
        )
    return "  "


def _parse(content: bytes, separator: str, comment: str | None, width: int) -> tuple[pl.DataFrame, bool]:
    """The rows as texts, and whether quotation marks could be trusted to enclose fields within one line."""
    names = [str(place) for place in range(width)] + [EXTRA]

    def parse(quote: str | None) -> pl.DataFrame:
        return pl.read_csv(
            content,
            has_header=False,
            schema=dict.fromkeys(names, pl.String),
            separator=separator,
            quote_char=quote,
            comment_prefix=comment,
            extra_columns="ignore",
            missing_columns="insert",
            encoding="utf8-lossy",
        )

    has_quotes = b'"' in content
    try:
        frame = parse('"' if has_quotes else None)
        if not has_quotes:
            return frame, True
        if not _has_breaks(frame):
            return frame, True
    except pl.exceptions.PolarsError:
        if not has_quotes:
            raise
        frame = None
    # A field with a line break is a text of many lines, or began with a stray quotation mark and swallowed the rows
    # after it: what makes more rows of the right length is right.
    plain = parse(None).with_columns(pl.all().str.strip_chars('"'))
    if frame is not None and _num_whole_rows(frame) >= _num_whole_rows(plain):
        return frame, True
    return plain, False


def _has_breaks(frame: pl.DataFrame) -> bool:
    return bool(frame.select(pl.any_horizontal(pl.all().str.contains("\n", literal=True).any())).item())


def _num_whole_rows(frame: pl.DataFrame) -> int:
    *_, last, extra = frame.columns
    return frame.filter(pl.col(last).is_not_null() & pl.col(extra).is_null()).height
