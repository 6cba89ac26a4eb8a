"""The command line. Nothing heavy is imported before a command needs it."""

import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thrifty.errors import SettingError, ThriftyError

if TYPE_CHECKING:
    from thrifty.report import Report

EXTRAS = {"transformers": "llm", "gguf": "llm", "accelerate": "llm"}
"""Which extra of the package brings a module that not everybody installs."""

JSON = click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result to FILE as JSON.")
OUT = click.option("--out", type=click.Path(path_type=Path), help="Write a report page into this folder.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Let --out replace an earlier report.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="thrifty")
def cli() -> None:
    """Give a network a budget; it learns what to keep."""


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
@click.argument("model")
@click.option("--codec", default="hack", show_default=True, help="How keys and values are held; see thrifty methods.")
@click.option("--method", default="uniform", show_default=True, help="Who chooses the bits of each layer.")
@click.option("--keep", help="Budget: a share of the bf16 cache (30%) or bytes per token (7000).")
@click.option("--set", "pairs", multiple=True, metavar="FIELD=VALUE", help="A setting of the codec or the method.")
@click.option("--also", multiple=True, metavar="CODEC[:FIELD=VALUE,...]", help="Another codec in the same run.")
@click.option("--text", "text_name", help="A text set or file. Default: wikitext-2-test, else python-topics.")
@click.option("--windows", default=8, show_default=True, help="Windows of text to read.")
@click.option("--window", default=2048, show_default=True, help="Tokens of a window.")
@click.option("--passkey-tokens", default=1024, show_default=True, help="Length of the passkey prompts; 0 for none.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--seed", default=0, show_default=True)
@click.option("--save-plan", type=click.Path(path_type=Path), help="Write the plan (bits per layer) to this file.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Use a saved plan instead of a method.")
@JSON
@OUT
@OVERWRITE
def kv(model: str, json_file: Path | None, out: Path | None, overwrite: bool, **options: Any) -> None:
    """Measure a compressed key-value cache of MODEL against the plain one.

    MODEL is smollm2 or a folder with a causal language model. Settings are given as --set k_bits=4; a wrong name or
    value lists the right ones.
    """
    from thrifty import data

    start = time.perf_counter()
    _check_outputs(json_file, out, overwrite)
    codec, method = _kv_choices(options["codec"], options["method"], options["pairs"])
    others = [_also(one, options["method"]) for one in options["also"]]
    protocol = _kv_protocol(options)
    name, text = (
        (options["text_name"], data.text(options["text_name"])) if options["text_name"] else data.default_text()
    )
    report = _compare_kv(model, [(options["codec"], codec, method), *others], (name, text), protocol, options, start)
    report.print()
    _write(report, json_file, out, overwrite, measured_only=True)


def _kv_choices(codec_name: str, method_name: str, texts: tuple[str, ...]) -> tuple[Any, Any]:
    """The codec and the method with the settings in `texts`: each setting goes to the one that has it."""
    import dataclasses

    from thrifty import catalogue, settings

    codec, method = catalogue.find("kv", codec_name, "codecs"), catalogue.find("kv", method_name)
    pairs = _pairs(texts)
    of_method = {field.name for field in dataclasses.fields(method)}
    for_method = {name: text for name, text in pairs.items() if name in of_method}
    for_codec = {name: text for name, text in pairs.items() if name not in of_method}
    try:
        chosen = settings.read(codec, for_codec)
    except SettingError as error:
        if of_method and "has no setting" in str(error):
            raise SettingError(f"{error}; {method.__name__} has {', '.join(sorted(of_method))}") from None
        raise
    return codec(**chosen), method(**settings.read(method, for_method))


def _also(text: str, method_name: str) -> tuple[str, Any, Any]:
    """Read `kivi:group=64,residual=64`."""
    name, _, pairs = text.partition(":")
    return (name, *_kv_choices(name, method_name, tuple(pair for pair in pairs.split(",") if pair)))


def _kv_protocol(options: dict[str, Any]) -> Any:
    from thrifty.kv.measure import Protocol

    lengths = (options["passkey_tokens"],) if options["passkey_tokens"] else ()
    return Protocol(windows=options["windows"], window=options["window"], passkey_tokens=lengths, seed=options["seed"])


def _compare_kv(
    model: str,
    choices: list[tuple[str, Any, Any]],
    text: tuple[str, str],
    protocol: Any,
    options: dict[str, Any],
    start: float,
) -> "Report":
    from thrifty import llm
    from thrifty.kv import compare
    from thrifty.kv.measure import windows_of
    from thrifty.plan import Plan
    from thrifty.report import provenance

    saved = Plan.load(options["plan_file"]) if options["plan_file"] else None
    if not text[1].strip():
        raise ThriftyError(f"{text[0]} is empty; give a text of at least one window")
    language = llm.load(model, options["dtype"], options["device"])
    entries = [compare.entry(language, *one, options["keep"], protocol.ratio_context) for one in choices]
    one = entries[0] = entries[0] if saved is None else replace(entries[0], plan=saved)
    if options["save_plan"]:
        one.plan.save(options["save_plan"])
    windows = windows_of(language, text[1], text[0], protocol)
    with _progress() as track:
        results = compare.rows(language, entries, windows, text[0], protocol, track)
    origin = provenance(_command(), time.perf_counter() - start)
    labels = ", ".join(entry.label for entry in entries)
    return compare.report(f"{model}: {labels} against the plain cache", "kv", results, origin)


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report page. Default: thrifty-demo.")
@OVERWRITE
@JSON
def demo(out: Path | None, overwrite: bool, json_file: Path | None) -> None:
    """See what thrifty does on a real model, in a few minutes on two cores."""
    from thrifty import demo as show

    _check_outputs(json_file, out, overwrite)
    with _progress() as track:
        report = show.run(_command(), track, lambda line: click.echo(line, err=True))
    report.print()
    _write(report, json_file, out or show.free_folder(Path.cwd()), overwrite)


@cli.command()
@JSON
def methods(json_file: Path | None) -> None:
    """List the methods and codecs of every system."""
    from thrifty import catalogue
    from thrifty.report import Column, Report

    rows = [
        {"system": system, "kind": kind, "name": name, "about": catalogue.about(system, kind, name)}
        for system in catalogue.SYSTEMS
        for kind in catalogue.KINDS
        for name in catalogue.names(system, kind)
    ]
    columns = [
        Column("system", "system"),
        Column("kind", "kind"),
        Column("name", "name"),
        Column("about", "what it is"),
    ]
    _show(Report("Methods and codecs", "methods", rows, columns), json_file)


@cli.group("data")
def data_group() -> None:
    """Find, check and fetch data sets; nothing is downloaded unless asked for."""


@data_group.command("list")
@JSON
def data_list(json_file: Path | None) -> None:
    """List the data sets and where they are."""
    from thrifty import data
    from thrifty.data_sets import SETS

    rows = []
    for name, one in SETS.items():
        state = "here" if data.is_here(name) else "not here"
        rows.append({"name": name, "state": state, "about": one.about})
    _show_data("Data sets", rows, json_file)


@data_group.command("check")
@click.argument("names", nargs=-1)
@JSON
def data_check(names: tuple[str, ...], json_file: Path | None) -> None:
    """Compare the data sets on this machine with their checksums; all of them where none is named."""
    from thrifty import data
    from thrifty.data_sets import SETS

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
@JSON
def data_get(name: str, json_file: Path | None) -> None:
    """Download a data set from its public origin and check it."""
    from rich.progress import Progress

    from thrifty import data

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
@JSON
@OUT
@OVERWRITE
def report(files: tuple[Path, ...], json_file: Path | None, out: Path | None, overwrite: bool) -> None:
    """Show the results in FILES (JSON or JSON lines) as one table."""
    from thrifty.report import load

    _check_outputs(json_file, out, overwrite)
    loaded = load(list(files))
    loaded.print()
    _write(loaded, json_file, out, overwrite)


def _stop(message: str, status: int) -> None:
    click.echo(f"thrifty: {message}", err=True)
    sys.exit(status)


def _command() -> str:
    return shlex.join(["thrifty", *sys.argv[1:]])


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise SettingError(f"--set {text}: use --set field=value")
        pairs[name] = value
    return pairs


def _check_outputs(json_file: Path | None, out: Path | None, overwrite: bool) -> None:
    """Refuse at once what could not be written after minutes of work."""
    from thrifty.files import check_file, check_folder

    if json_file is not None:
        check_file(json_file)
    if out is not None:
        check_folder(out, overwrite)


def _progress() -> Any:
    """A context that gives a `Track` with a bar and an estimate of the time left, silent without a terminal."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    @contextmanager
    def shown() -> Iterator[Any]:
        columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console)
        with bar:

            def track(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
                yield from bar.track(items, total=total, description=what)

            yield track

    return shown()


def _show(result: "Report", json_file: Path | None) -> None:
    result.print()
    _write(result, json_file, None, overwrite=False)


def _show_data(title: str, rows: list[dict[str, Any]], json_file: Path | None) -> None:
    from thrifty.report import Column, Report

    columns = [Column("name", "name"), Column("state", "state"), Column("about", "what or where")]
    _show(Report(title, "data", rows, columns), json_file)


def _write(
    result: "Report", json_file: Path | None, out: Path | None, overwrite: bool, measured_only: bool = False
) -> None:
    if json_file is not None:
        (replace(result, rows=result.rows[1:]) if measured_only else result).save_json(json_file)
    if out is not None:
        click.echo(f"report: {result.save_page(out, overwrite)}")
