"""The command line. Nothing heavy is imported before a command needs it."""

import sys
from pathlib import Path
from typing import Any

import click

from thrifty import console, progress
from thrifty.errors import ThriftyError
from thrifty.graph.command import graph
from thrifty.kv.command import kv
from thrifty.moe.command import moe
from thrifty.prune.command import prune

EXTRAS = {
    **dict.fromkeys(("transformers", "gguf", "accelerate"), "llm"),
    **dict.fromkeys(("dask", "distributed", "numba", "polars", "scipy", "torch_geometric"), "graph"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript", "PIL", "sklearn"), "prune"),
}
"""Which extra of the package brings a module that not everybody installs."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="thrifty")
def cli() -> None:
    """Give a network a budget; it learns what to keep."""


cli.add_command(kv)
cli.add_command(graph)
cli.add_command(prune)
cli.add_command(moe)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: an error is one line on stderr and status 2, Ctrl-C is status 130."""
    try:
        cli(arguments, standalone_mode=False)
    except click.exceptions.Abort:
        _stop("stopped; nothing half-written is left", 130)
    except KeyboardInterrupt:
        _stop("stopped; nothing half-written is left", 130)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        _stop(f"{' '.join(error.format_message().split())}{hint}", 2)
    except ThriftyError as error:
        _stop(" ".join(str(error).split()), 2)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(str(error.name).partition(".")[0])
        if extra is None:
            raise
        _stop(f"{error.name} is not installed; run: pip install 'thrifty[{extra}]'", 2)


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report page. Default: thrifty-demo.")
@click.option("--part", type=click.Choice(["all", "graph", "prune", "moe", "kv"]), default="all", show_default=True)
@console.OVERWRITE
@console.JSON
def demo(out: Path | None, part: str, overwrite: bool, json_file: Path | None) -> None:
    """See what thrifty does on a real model and a real graph, in a few minutes on two cores.

    Each part writes a page into a folder of its name; --json holds the rows of all parts.
    """
    from thrifty import demo as show

    console.check_outputs(json_file, out, overwrite)
    folder = out or show.free_folder(Path.cwd())
    reports = {}
    for name in show.PARTS if part == "all" else (part,):
        with progress.shown() as track:
            reports[name] = show.run(name, console.command(), track, lambda line: click.echo(line, err=True))
        reports[name].print()
        console.write(reports[name], None, folder / name, overwrite)
    if json_file is not None:
        show.joined(reports).save_json(json_file)


@cli.command()
@console.JSON
def methods(json_file: Path | None) -> None:
    """List the methods and codecs of every system, and the presets of kv."""
    from thrifty import catalogue
    from thrifty.kv import presets
    from thrifty.report import Column, Report

    console.check_outputs(json_file, None, overwrite=False)
    rows = [
        {"system": system, "kind": kind, "name": name, "about": catalogue.about(system, kind, name)}
        for system in catalogue.SYSTEMS
        for kind in catalogue.KINDS
        for name in catalogue.names(system, kind)
    ]
    rows += [
        {"system": "kv", "kind": "presets", "name": name, "about": presets.about(name)} for name in presets.PRESETS
    ]
    columns = [
        Column("system", "system"),
        Column("kind", "kind"),
        Column("name", "name"),
        Column("about", "what it is"),
    ]
    console.show(Report("Methods and codecs", "methods", rows, columns), json_file)


@cli.group("data")
def data_group() -> None:
    """Find, check and fetch data sets; nothing is downloaded unless asked for."""


@data_group.command("list")
@console.JSON
def data_list(json_file: Path | None) -> None:
    """List the data sets and where they are."""
    from thrifty import data
    from thrifty.data_sets import SETS

    console.check_outputs(json_file, None, overwrite=False)
    rows = []
    for name, one in SETS.items():
        state = "here" if data.is_here(name) else "not here"
        rows.append({"name": name, "state": state, "about": one.about})
    _show_data("Data sets", rows, json_file)


@data_group.command("check")
@click.argument("names", nargs=-1)
@console.JSON
def data_check(names: tuple[str, ...], json_file: Path | None) -> None:
    """Compare the data sets on this machine with their checksums; all of them where none is named."""
    from thrifty import data
    from thrifty.data_sets import SETS

    console.check_outputs(json_file, None, overwrite=False)
    rows = []
    for name in names or tuple(SETS):
        status = data.check(name)
        state = "intact" if status.is_intact else "altered" if status.altered else "not here"
        where = ", ".join(str(path) for path in (*status.altered, *status.found)[:1])
        rows.append({"name": name, "state": state, "about": where})
    _show_data("Checked data sets", rows, json_file)
    if any(row["state"] == "altered" for row in rows):
        raise ThriftyError("a file is not the one it should be; remove it and run thrifty data get NAME")


@data_group.command("get")
@click.argument("name")
@console.JSON
def data_get(name: str, json_file: Path | None) -> None:
    """Download a data set from its public origin and check it."""
    from rich.progress import Progress

    from thrifty import data

    console.check_outputs(json_file, None, overwrite=False)
    with Progress(transient=True) as progress:
        tasks: dict[str, Any] = {}

        def note(path: str, done: int, total: int | None) -> None:
            if path not in tasks:
                tasks[path] = progress.add_task(path, total=total)
            progress.update(tasks[path], completed=done, total=total)

        paths = data.get(name, note)
    rows = [{"name": name, "state": "here", "about": str(path)} for path in paths] or [
        {"name": name, "state": "here", "about": "comes with Python"}
    ]
    _show_data("Fetched", rows, json_file)


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@console.JSON
@console.OUT
@console.OVERWRITE
def report(files: tuple[Path, ...], json_file: Path | None, out: Path | None, overwrite: bool) -> None:
    """Show the results in FILES (JSON or JSON lines) as one table."""
    from thrifty.report import load

    console.check_outputs(json_file, out, overwrite)
    loaded = load(list(files))
    loaded.print()
    console.write(loaded, json_file, out, overwrite)


def _stop(message: str, status: int) -> None:
    click.echo(f"thrifty: {message}", err=True)
    sys.exit(status)


def _show_data(title: str, rows: list[dict[str, Any]], json_file: Path | None) -> None:
    from thrifty.report import Column, Report

    columns = [Column("name", "name"), Column("state", "state"), Column("about", "what or where")]
    console.show(Report(title, "data", rows, columns), json_file)
