"""What all commands share: their common options, and how a result gets to the terminal and into files."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from thrifty.errors import OutputError, SettingError

if TYPE_CHECKING:
    from thrifty.report import Report

JSON = click.option(
    "--json", "json_file", metavar="FILE", type=click.Path(path_type=Path),
    help="Write the result to FILE as JSON; an earlier result is replaced, any other file is not.",
)  # fmt: skip
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
    """Refuse at once what could not be written after minutes of work, and a JSON file that would replace another."""
    from thrifty.files import check_file, check_folder

    if json_file is not None:
        _check_no_other(json_file)
        check_file(json_file)
        if json_file.exists() and not _may_be_replaced(json_file):
            raise OutputError(f"{json_file} is there already and is no result that --json wrote; name another file")
    if out is not None:
        check_folder(out, overwrite)


def _check_no_other(json_file: Path) -> None:
    """Raise `OutputError` where the running command names the file, or the page that it is part of, as another path."""
    context = click.get_current_context(silent=True)
    if context is None:  # called from Python
        return
    for option in context.command.params:
        if option.name == "json_file" or not isinstance(option.type, click.Path):
            continue
        value = context.params[option.name]
        paths = value if isinstance(value, tuple) else [value] if value is not None else []
        for path in paths:
            if json_file.resolve() in (path.resolve(), (path / "report.json").resolve()):
                named = option.get_error_hint(context)
                raise OutputError(f"--json {json_file} would write over {named}, {path}; name another file")


def _may_be_replaced(path: Path) -> bool:
    """Whether a file is empty, or holds one result as `--json` writes it."""
    if not path.is_file():
        return False
    if not path.stat().st_size:
        return True
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"kind", "provenance"} <= found.keys()


def show(result: "Report", json_file: Path | None) -> None:
    """Print a result, and write it as JSON where asked to."""
    result.print()
    write(result, json_file, None, overwrite=False)


def write(
    result: "Report", json_file: Path | None, out: Path | None, overwrite: bool, measured_only: bool = False
) -> None:
    """Write a result as JSON and as a page where asked to; `measured_only` leaves the first row, the peer, out."""
    if out is not None:  # first: the JSON may go into the folder of the page, which must be empty
        click.echo(f"report: {result.save_page(out, overwrite)}")
    if json_file is not None:
        (replace(result, rows=result.rows[1:]) if measured_only else result).save_json(json_file)
