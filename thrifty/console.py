"""What all commands share: their common options, and how a result gets to the terminal and into files."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from thrifty.errors import SettingError

if TYPE_CHECKING:
    from thrifty.report import Report

JSON = click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result to FILE as JSON.")
OUT = click.option("--out", type=click.Path(path_type=Path), help="Write a report page into this folder.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Let --out replace an earlier report.")


def command() -> str:
    """The command line as it was typed."""
    return shlex.join(["thrifty", *sys.argv[1:]])


def pairs_of(texts: tuple[str, ...], option: str = "--set") -> dict[str, str]:
    """Read `("group=64", "bits=2")`, the values of `option`.

    Raises `SettingError` for a text without a name, an equals sign or a value.
    """
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise SettingError(f"{option} {text}: use {option} field=value")
        pairs[name] = value
    return pairs


def check_outputs(json_file: Path | None, out: Path | None, overwrite: bool) -> None:
    """Refuse at once what could not be written after minutes of work."""
    from thrifty.files import check_file, check_folder

    if json_file is not None:
        check_file(json_file)
    if out is not None:
        check_folder(out, overwrite)


def show(result: "Report", json_file: Path | None) -> None:
    """Print a result, and write it as JSON where asked to."""
    result.print()
    write(result, json_file, None, overwrite=False)


def write(
    result: "Report", json_file: Path | None, out: Path | None, overwrite: bool, measured_only: bool = False
) -> None:
    """Write a result as JSON and as a page where asked to; `measured_only` leaves the first row, the peer, out."""
    if json_file is not None:
        (replace(result, rows=result.rows[1:]) if measured_only else result).save_json(json_file)
    if out is not None:
        click.echo(f"report: {result.save_page(out, overwrite)}")
