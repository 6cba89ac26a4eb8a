"""What a run cost and what it bought: for the terminal, as Markdown, as JSON and as one page with plots."""

import importlib.metadata
import importlib.resources
import json
import math
import os
import platform
import re
import subprocess
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from thrifty.errors import DataError
from thrifty.files import fresh_folder, write_text
from thrifty.plots import Plot as Plot
from thrifty.plots import Series as Series
from thrifty.plots import draw

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_MISSING = "–"


@dataclass(frozen=True)
class Column:
    """What of each row is shown: `key` may reach into nested dicts (`bytes_per_token.2048`), `format` is Python's."""

    key: str
    title: str
    format: str = ""
    better: Literal["higher", "lower", ""] = ""

    def value(self, row: Mapping[Any, Any]) -> Any:
        """Return what the row holds under `key` as JSON would hold it; None where it holds nothing."""
        return _plain(_reach(row, self.key))

    def text(self, row: Mapping[Any, Any]) -> str:
        """Return the value as it is read in the table."""
        value = self.value(row)
        return format(value, self.format) if self.format and _is_number(value) else _words(value)

    @property
    def heading(self) -> str:
        """The title, with an arrow where one direction is better."""
        return f"{self.title}\N{NO-BREAK SPACE}{self.arrow}".strip()

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return {"higher": "↑", "lower": "↓", "": ""}[self.better]


@dataclass(frozen=True)
class Exchange:
    """A question, and what several caches or models answered: `answers` by the name of each."""

    question: str
    answers: dict[str, str]


@dataclass(frozen=True)
class Report:
    """Things compared, one a row, with what a reader needs to judge and to repeat the comparison."""

    title: str
    kind: str
    rows: list[dict[str, Any]]
    columns: list[Column]
    headline: str = ""
    plots: list[Plot] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> list[list[tuple[str, bool]]]:
        """Return the table row by row: each text, and whether it reads like the best value of its column."""
        by_column = []
        for column in self.columns:
            numbers = {n: column.text(row) for row in self.rows if _is_number(n := column.value(row))}
            best = None
            if column.better and len(set(numbers.values())) > 1:
                best = numbers[max(numbers) if column.better == "higher" else min(numbers)]
            by_column.append([(text, text == best) for text in map(column.text, self.rows)])
        return [list(row) for row in zip(*by_column, strict=True)]

    def print(self, console: "Console | None" = None) -> None:
        """Write the report to the terminal; a table too wide for it continues below with its first column repeated."""
        from rich.console import Console
        from rich.text import Text

        console = console or Console()
        speaks_unicode = console.encoding.lower().startswith("utf")

        def say(text: str = "", style: str = "") -> None:
            console.print(Text(_printable(text, speaks_unicode), style=style), highlight=False)

        say(self.title, "bold")
        if self.headline:
            say(self.headline)
        for table in self._tables(console.width, speaks_unicode):
            say()
            console.print(table)
        if self.legend():
            say(self.legend(), "dim")
        for exchange in self.exchanges:
            say(f"\n{exchange.question}", "italic")
            say("\n".join(f"{name}: {answer}" for name, answer in exchange.answers.items()))
        if self.notes:
            say("\n" + "\n".join(f"* {note}" for note in self.notes))
        if self.provenance:
            say("\n" + "\n".join(f"{name}: {text}" for name, text in self.origin()), "dim")

    def _tables(self, width: int, speaks_unicode: bool) -> "Iterable[Table]":
        from rich.table import Table
        from rich.text import Text

        cells = self.cells()
        needed = []  # a title may take two lines, a value only one
        for number, column in enumerate(self.columns):
            word = max(map(len, column.heading.split(" ")))
            longer = range(word, len(column.heading))
            title = next((size for size in longer if len(textwrap.wrap(column.heading, size or 1)) < 3), word)
            most = 24 if number and not self.is_number(column) else 999  # prose may take several lines
            needed.append(max([title, *(min(most, len(row[number][0])) for row in cells)]))
        for group in _fitting(needed, width):
            table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
            for number in group:
                side: Literal["left", "right"] = "right" if self.is_number(self.columns[number]) else "left"
                title = "\n".join(textwrap.wrap(self.columns[number].heading, max(needed[number], 1)))
                table.add_column(
                    Text(_printable(title, speaks_unicode)), justify=side, vertical="bottom", overflow="fold"
                )
            for row in cells:
                shown = [(_printable(row[number][0], speaks_unicode), row[number][1]) for number in group]
                table.add_row(*(Text(" ".join(text.split()), style="bold" if best else "") for text, best in shown))
            yield table

    def legend(self) -> str:
        """Return what the arrows and the bold face say; nothing where there are none."""
        words = [f"{column.arrow} {column.better} is better" for column in self.columns if column.better]
        words += ["best in bold"] if any(best for row in self.cells() for _, best in row) else []
        return ", ".join(dict.fromkeys(words))

    def is_number(self, column: Column) -> bool:
        """Return whether the column holds numbers, which stand to the right; gaps do not count."""
        values = [value for row in self.rows if (value := column.value(row)) is not None]
        return bool(values) and all(_is_number(value) for value in values)

    def origin(self) -> list[tuple[str, str]]:
        """Return the provenance as lines of name and text."""
        about = _plain({"took" if name == "seconds" else name: value for name, value in self.provenance.items()})
        told = {name: _duration(value) if name == "took" else _words(value) for name, value in about.items()}
        return [(_title(name).capitalize(), text) for name, text in told.items()]

    def markdown(self) -> str:
        """Return the report as GitHub Markdown, without the plots."""
        parts = [f"# {_marked(self.title)}"]
        parts += [_marked(self.headline)] if self.headline else []
        if self.columns:
            titles = [_marked(column.heading) for column in self.columns]
            rules = ["---:" if self.is_number(column) else ":---" for column in self.columns]
            rows = [[f"**{_marked(text)}**" if best else _marked(text) for text, best in row] for row in self.cells()]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in [titles, rules, *rows]))
        parts += [self.legend()] if self.legend() else []
        for exchange in self.exchanges:
            answers = [f"- {_marked(name)}: {_marked(answer)}" for name, answer in exchange.answers.items()]
            parts.append("\n".join([f"> {_marked(exchange.question)}", "", *answers]))
        for lines in (self.notes, [f"{name}: {text}" for name, text in self.origin()]):
            parts += ["\n".join(f"- {_marked(line)}" for line in lines)] if lines else []
        return "\n\n".join(parts) + "\n"

    def json(self) -> str:
        """Return the measurements as strict JSON: one object for one row; what is not finite becomes null."""
        about = {"kind": self.kind, "provenance": self.provenance}
        whole = {"kind": self.kind} | (self.rows[0] if len(self.rows) == 1 else {"rows": self.rows}) | about
        return json.dumps(_plain(whole), ensure_ascii=False, allow_nan=False)

    def page(self) -> str:
        """Return the report as one HTML page that needs nothing beside it."""
        import jinja2
        from markupsafe import Markup

        template = importlib.resources.files("thrifty").joinpath("report_page.html").read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        names = list(dict.fromkeys(series.name for plot in self.plots for series in plot.series))
        figures = [(plot, Markup(draw(plot, names))) for plot in self.plots]
        return environment.from_string(template).render(report=self, figures=figures)

    def save_json(self, path: Path) -> None:
        """Write the measurements to `path`, whole or not at all."""
        write_text(Path(path), self.json() + "\n")

    def save_page(self, folder: Path, overwrite: bool = False) -> Path:
        """Write `report.html` and `report.json` into `folder` and return the page; a used folder needs `overwrite`."""
        page, data = self.page(), self.json() + "\n"
        folder = fresh_folder(Path(folder), overwrite)
        write_text(folder / "report.json", data)
        write_text(folder / "report.html", page)
        return folder / "report.html"


def provenance(command: str, seconds: float | int) -> dict[str, Any]:
    """Return what it takes to repeat a run: the command, the versions and the machine; the date is in UTC."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("thrifty", "torch", "transformers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.machine()}"
    return {
        "command": command,
        "seconds": round(float(seconds), 3),
        "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "versions": versions,
        "machine": {"cpu": _cpu(), "cores": cores, "gpu": _gpu(), "system": system},
    }


def load(paths: list[Path]) -> Report:
    """Read results back (JSON, JSON Lines, or a folder that a page was saved in) and lay them side by side.

    Raises `DataError` where a file cannot be read, is empty, or holds something that no report has written.
    """
    if not paths:
        raise DataError("no result file was named; name one or more, such as results/kv.json")
    results = [(path, result) for path in map(Path, paths) for result in _results(path)]
    first, kind = results[0][0], results[0][1]["kind"]
    rows, origins = [], []
    for path, result in results:
        if result["kind"] != kind:
            kinds = f"{first} is a {kind} report and {path} a {result['kind']} report"
            raise DataError(f"{kinds}; name files of one kind only")
        about = {name: value for name, value in result.items() if name not in ("kind", "provenance", "rows")}
        rows += result.get("rows", [about])
        origins += [result["provenance"]] if result["provenance"] not in origins else []  # one run, many lines
    files = str(first) if len(paths) == 1 else f"{len(paths)} files"
    headline = f"{len(rows)} {'result' if len(rows) == 1 else 'results'} from {files}."
    return Report(f"{kind} results", kind, rows, _columns(rows), headline, provenance=_merged(origins))


def _results(path: Path) -> list[dict[str, Any]]:
    """Read the reports in one file; each has a kind, a provenance and its row or rows."""
    path = path / "report.json" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or "it cannot be opened") if isinstance(error, OSError) else "it is not text"
        raise DataError(f"cannot read {path}: {reason}; name a file that --json wrote") from error
    if not text.strip():
        raise DataError(f"{path} is empty; run the command that writes it again")
    try:
        found = [json.loads(text)]
    except (ValueError, RecursionError):
        found = [_parsed(path, number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for result in found:
        rows = result.get("rows", [{}]) if isinstance(result, dict) else None
        is_whole = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
        if not is_whole or not isinstance(result.get("kind"), str) or not isinstance(result.get("provenance"), dict):
            needed = "a result has a kind, a provenance and its measurements"
            raise DataError(f"{path} holds no thrifty result: {needed}; name a file that --json wrote")
    return found


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}, is not JSON ({error}); name a file that --json wrote") from error


def _columns(rows: list[dict[str, Any]]) -> list[Column]:
    """Return a column for each key under which every row holds a single value, at least once not null."""
    keys = [key for key in rows[0] if all(key in row for row in rows)] or list(rows[0])
    values = {key: [row[key] for row in rows if row.get(key) is not None] for key in keys}
    single = [key for key in keys if values[key] and not any(isinstance(value, dict | list) for value in values[key])]
    return [Column(key, _title(key), _format(values[key])) for key in single]


def _format(values: list[Any]) -> str:
    """Return one format for a column of floats, so that their points stand in line; else none."""
    if not any(isinstance(value, float) for value in values) or not all(_is_number(value) for value in values):
        return ""
    large = max(abs(value) for value in values)
    return ",.0f" if large >= 10_000 else ",.1f" if large >= 100 else ".3f" if large >= 0.1 else ".3g"


def _merged(origins: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what several runs have in common once, and what differs as a list; their seconds are summed."""
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for origin in origins for name in origin):
        values = [origin[name] for origin in origins if name in origin]
        if name == "seconds" and all(_is_number(value) for value in values):
            merged[name] = round(math.fsum(values), 3)
        else:
            different = [value for place, value in enumerate(values) if value not in values[:place]]
            merged[name] = different[0] if len(different) == 1 else different
    return merged


def _fitting(needed: list[int], width: int) -> list[list[int]]:
    """Group columns of the `needed` widths into tables that fit `width`, each with the first column."""
    groups: list[list[int]] = [[0]] if needed else []
    for number in range(1, len(needed)):
        if len(groups[-1]) > 1 and sum(needed[one] + 2 for one in groups[-1]) + needed[number] > width:
            groups.append([0])
        groups[-1].append(number)
    return groups


def _reach(row: Mapping[Any, Any], key: str) -> Any:
    for name, value in row.items():
        if str(name) == key:
            return value
        if isinstance(value, Mapping) and key.startswith(f"{name}."):
            return _reach(value, key.removeprefix(f"{name}."))
    return None


def _plain(value: Any) -> Any:
    """Return `value` as JSON knows it; numbers of other libraries become Python's, what is not finite None."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):  # an array or a tensor, without importing either
        return _plain(value.tolist())
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(value: Any) -> str:
    if value is None or value == "":
        return _MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_number(value):
        return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_title(name)} {_words(one)}" for name, one in value.items()) or _MISSING
    if isinstance(value, list):
        return "; ".join(map(_words, value)) or _MISSING
    return str(value)


def _title(key: str) -> str:
    return str(key).replace("_", " ")


def _duration(seconds: float | int) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _printable(text: str, speaks_unicode: bool = True) -> str:
    """Return `text` without what could steer a terminal, and in ASCII where that is all the terminal knows."""
    text = "".join(one for one in text if one in "\n\t" or unicodedata.category(one) != "Cc")
    if speaks_unicode:
        return text
    return text.translate({ord("–"): "-", ord("↑"): "^", ord("↓"): "v", 0xA0: " "}).encode("ascii", "replace").decode()


def _marked(text: str) -> str:
    """Return `text` so that Markdown shows it as it is, on one line."""
    return " ".join(re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", _printable(text)).split())


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _gpu() -> str | None:
    ask = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]  # so that torch need not be imported
    try:
        names = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        return None
    return ", ".join(name.strip() for name in names if name.strip()) or None
