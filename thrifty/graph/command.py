"""`thrifty graph`: fit, predict, audit, augment and evaluate on signed edge lists."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thrifty import console, progress

if TYPE_CHECKING:
    from thrifty.graph.evaluate import Entry
    from thrifty.graph.known import Reading
    from thrifty.report import Report

EDGES = click.argument("edges", required=False)
SCORER = click.option("--scorer", default="triads", show_default=True, help="Who tells signs; see thrifty methods.")
SET = click.option(
    "--set", "pairs", multiple=True, metavar="FIELD=VALUE", help="A setting of the scorer or the method."
)
SEED = click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1))
OUTPUT = click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
FORCE = click.option("--overwrite", is_flag=True, help="Replace the file where it is there already.")
METHOD = click.option("--augment", "method", help="Augment the training edges first, by a method such as sga.")
CURRICULUM = click.option("--curriculum", is_flag=True, help="Train from easy to hard (scorers with epochs).")
COUNT = click.IntRange(min=1)
_SHOWN = 15


def reading_options(command: Any) -> Any:
    """The options of commands that read edges: which columns, and what becomes of odd rows."""
    for one in (
        click.option("--source", help="Column of the sources."),
        click.option("--target", help="Column of the targets."),
        click.option("--sign", help="Column of the signs (+1, -1, 0)."),
        click.option("--rating", help="Column of ratings, in place of signs."),
        click.option("--threshold", type=float, help="Ratings above it are positive, below it negative. Default: 0."),
        click.option("--time", help="Column of the times."),
        click.option("--policy", "policies", multiple=True, metavar="NAME=VALUE", help="duplicates, conflicts, ..."),
    ):
        command = one(command)
    return command


@click.group("graph")
def graph() -> None:
    """Signed graphs: who trusts whom, whom to doubt, and what an edge would be.

    EDGES is a file (CSV, TSV, Parquet; .gz as well), a known graph (bitcoin-alpha, bitcoin-otc, epinions, slashdot,
    wiki-elec, wiki-rfa), or nothing for a synthetic graph.
    """


@graph.command()
@EDGES
@OUTPUT
@SCORER
@METHOD
@CURRICULUM
@SET
@SEED
@FORCE
@console.JSON
@reading_options
def fit(edges: str | None, output: Path, overwrite: bool, json_file: Path | None, **options: Any) -> None:
    """Learn the signs of EDGES and write a model."""
    from thrifty.files import check_new
    from thrifty.report import Column, Report, provenance

    start = time.perf_counter()
    check_new(output, overwrite)
    console.check_outputs(json_file, None, overwrite)
    entry = _entry(options["scorer"], options["method"], options["curriculum"], options["pairs"])
    read = _read(edges, options)
    with progress.shown() as track:
        model = entry.model(read.graph, options["seed"], track)
    model.save(output)
    row = {
        "model": str(output),
        "label": entry.label,
        "settings": entry.settings(),
        "nodes": read.graph.num_nodes,
        "edges": read.graph.num_edges,
        "positive_share": read.graph.positive_share,
        "threshold": model.threshold,
        "bytes": output.stat().st_size,
        "row_counts": read.counts,  # not `rows`: in a report these are its own
    }
    columns = [Column("model", "model"), Column("label", "predicts by"), Column("edges", "edges", ",d")]
    columns += [Column("positive_share", "positive", ".1%"), Column("threshold", "threshold", ".3f")]
    title = f"A model of the signs of {read.origin}"
    origin = provenance(console.command(), time.perf_counter() - start)
    console.show(Report(title, "graph", [row], columns, notes=read.notes, provenance=origin), json_file)


@graph.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pairs")
@OUTPUT
@FORCE
@console.JSON
@click.option("--source", help="Column of the sources.")
@click.option("--target", help="Column of the targets.")
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=COUNT,
    help="Processes; PAIRS and output are then folders of Parquet.",
)
def predict(
    model: Path, pairs: str, output: Path, overwrite: bool, json_file: Path | None, workers: int, **options: Any
) -> None:
    """Write P(positive) and a label for each of PAIRS (columns source and target) with MODEL."""
    from thrifty.errors import SettingError
    from thrifty.graph.columns import Columns
    from thrifty.graph.model import SignModel
    from thrifty.graph.pairs import read_pairs
    from thrifty.graph.predict import predict_pairs
    from thrifty.graph.scale import predict_shards
    from thrifty.graph.writing import check_output, write_table
    from thrifty.report import Column, Report, provenance

    start = time.perf_counter()
    console.check_outputs(json_file, None, overwrite)
    columns = [Column("pairs", "pairs", ",d"), Column("predicted", "predicted", ",d"), Column("output", "written to")]
    if Path(pairs).is_dir():
        if options["source"] or options["target"]:
            raise SettingError("--source and --target are for a file; in a folder, name the columns source and target")
        with progress.shown() as track:
            done = predict_shards(model, Path(pairs), output, workers, track, overwrite)
        row = {"pairs": done.num_pairs, "predicted": done.num_pairs - done.num_unknown, "shards": done.num_done}
        notes = [f"{done.num_done} shards done now, {done.num_skipped} were done already; null for an unknown node"]
    else:
        if workers > 1:
            raise SettingError(f"--workers {workers}: they share a folder of Parquet, and {pairs} is none")
        check_output(output, overwrite)
        one = SignModel.load(model)
        asked = read_pairs(pairs, one.graph.names, Columns(source=options["source"], target=options["target"]))
        table = predict_pairs(one, asked)
        write_table(output, table, overwrite)
        label, notes = table["label"], asked.notes
        row = {"pairs": asked.num_pairs, "predicted": int(asked.is_known.sum()), "positive": int((label == 1).sum())}
    row |= {"output": str(output)}
    origin = provenance(console.command(), time.perf_counter() - start)
    console.show(Report("Predicted signs", "graph", [row], columns, notes=notes, provenance=origin), json_file)


@graph.command()
@click.argument("edges")
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--workers", default=1, show_default=True, type=COUNT, help="Processes that share the files.")
@click.option(
    "--shards", type=COUNT, help="Files to cut PAIRS into, where it is no folder of them. Default: at most 8."
)
@FORCE
@console.JSON
@reading_options
def balance(
    edges: str,
    pairs: Path,
    output: Path,
    workers: int,
    shards: int | None,
    overwrite: bool,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Count the triangles that each of PAIRS would close in EDGES: balanced were it positive, were it negative."""
    from thrifty.errors import SettingError
    from thrifty.files import check_folder
    from thrifty.graph.scale import balance_shards
    from thrifty.graph.shards import shard
    from thrifty.report import Column, Report, provenance

    start = time.perf_counter()
    console.check_outputs(json_file, None, overwrite)
    if shards is not None and pairs.is_dir():
        raise SettingError(f"--shards {shards} cuts a file, and {pairs} is a folder: its files are the shards")
    read, notes = _read(edges, options), []
    if not pairs.is_dir():
        check_folder(output, overwrite)
        cut = output.with_name(f"{output.name}-pairs")
        _, notes = shard(pairs, cut, shards, overwrite=overwrite)
        pairs = cut
    with progress.shown() as track:
        done = balance_shards(read.graph, pairs, output, workers, track, overwrite)
    row = {"pairs": done.num_pairs, "unknown": done.num_unknown, "shards": done.num_done, "output": str(output)}
    columns = [Column("pairs", "pairs", ",d"), Column("unknown", "with an unknown node", ",d")]
    columns += [Column("shards", "files done", ",d"), Column("output", "written to")]
    origin = provenance(console.command(), time.perf_counter() - start)
    title = f"Triangles in {read.origin}"
    console.show(Report(title, "graph", [row], columns, notes=[*notes, *read.notes], provenance=origin), json_file)


@graph.command()
@click.argument("model", type=click.Path(path_type=Path))
@EDGES
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write all edges, ranked, to this table.")
@click.option("--most", default=_SHOWN, show_default=True, type=COUNT, help="How many edges to show.")
@FORCE
@console.JSON
@reading_options
def audit(
    model: Path,
    edges: str | None,
    output: Path | None,
    most: int,
    overwrite: bool,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Rank EDGES by how little MODEL believes their signs, with reasons. Without EDGES: those it learnt from."""
    from thrifty.graph.audit import audit as audit_edges
    from thrifty.graph.model import SignModel
    from thrifty.graph.predict import edges_of_model
    from thrifty.graph.writing import check_output, write_table
    from thrifty.report import Column, Report, provenance

    start = time.perf_counter()
    console.check_outputs(json_file, None, overwrite)
    if output is not None:
        check_output(output, overwrite)
    one = SignModel.load(model)
    asked, notes = one.graph, []
    if edges is not None:
        read = _read(edges, options)
        asked, unknown = edges_of_model(one, read.graph)
        notes = [*read.notes, *unknown]
    found = audit_edges(one, asked)
    if output is not None:
        write_table(output, found.columns(), overwrite)
    shown = found.columns(most)
    told = {name: values.astype(str) if name in ("source", "target") else values for name, values in shown.items()}
    rows = [dict(zip(told, values, strict=True)) for values in zip(*(v.tolist() for v in told.values()), strict=True)]
    columns = [Column("source", "source"), Column("target", "target"), Column("sign", "sign", "+d")]
    columns += [Column("probability_of_sign", "belief", ".3f"), Column("reason", "what speaks against it")]
    headline = f"{int((found.belief < 0.5).sum()):,} of {asked.num_edges:,} signs are believed with less than a half."
    origin = provenance(console.command(), time.perf_counter() - start)
    title = "Edges whose sign the model disbelieves"
    console.show(Report(title, "graph", rows, columns, headline, notes=notes, provenance=origin), json_file)


@graph.command()
@EDGES
@OUTPUT
@click.option("--method", default="sga", show_default=True, help="How to augment; see thrifty methods.")
@click.option("--keep", default="200%", show_default=True, help="Most edges afterwards: a share (110%) or a number.")
@click.option("--deleted", type=click.Path(path_type=Path), help="Where deleted edges go. Default: beside the output.")
@click.option("--save-plan", type=click.Path(path_type=Path), help="Write the plan to this file.")
@SET
@SEED
@FORCE
@console.JSON
@reading_options
def augment(
    edges: str | None,
    output: Path,
    keep: str,
    deleted: Path | None,
    save_plan: Path | None,
    overwrite: bool,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Delete and add edges of EDGES; write the new edges, each with its origin, probability and triangles."""
    from thrifty.errors import OutputError
    from thrifty.files import check_new
    from thrifty.graph.apply import apply
    from thrifty.graph.job import GraphJob
    from thrifty.graph.predict import augmented_tables, beside
    from thrifty.graph.writing import check_output, write_table
    from thrifty.report import Column, Report, provenance

    start = time.perf_counter()
    console.check_outputs(json_file, None, overwrite)
    deleted = beside(output, "deleted") if deleted is None else deleted
    check_output(output, overwrite)
    check_output(deleted, overwrite)
    if save_plan is not None:
        check_new(save_plan, overwrite)
    files = [path.resolve() for path in (output, deleted, save_plan, json_file) if path is not None]
    if len(set(files)) < len(files):
        raise OutputError(
            "the edges, the deleted edges, the plan and the JSON need a file each; two have the same name"
        )
    method = _chosen("methods", options["method"], console.pairs_of(options["pairs"]))
    read = _read(edges, options)
    with progress.shown() as track:
        plan = method.plan(GraphJob.of(read.graph, keep, options["seed"], track))
    if save_plan is not None:
        plan.save(save_plan)
    new = apply(plan, read.graph)
    stays, gone = augmented_tables(new)
    write_table(output, stays, overwrite)
    write_table(deleted, gone, overwrite)
    counts = new.counts()
    row = {"method": plan.method, "edges_before": read.graph.num_edges, "edges_after": new.graph.num_edges}
    row |= {name.replace(" +", "_positive").replace(" -", "_negative"): count for name, count in counts.items()}
    row |= {"output": str(output), "deleted": str(deleted)}
    columns = [Column("edges_before", "edges before", ",d"), Column("edges_after", "after", ",d")]
    columns += [
        Column(f"{word}_{sign}", f"{word} {mark}", ",d")
        for word in ("kept", "deleted", "added")
        for sign, mark in (("positive", "+"), ("negative", "-"))
    ]
    origin = provenance(console.command(), time.perf_counter() - start)
    notes = [f"{plan.method}", f"deleted edges: {deleted}", *read.notes]
    title = f"{read.origin}, augmented"
    console.show(Report(title, "graph", [row], columns, notes=notes, provenance=origin), json_file)


@graph.command()
@EDGES
@click.option("--split", default="random", show_default=True, help="random, sga (all five), sga:K, temporal or cold.")
@click.option(
    "--splits", "num_splits", default=5, show_default=True, type=COUNT, help="How many random or cold splits."
)
@click.option("--seeds", default=1, show_default=True, type=COUNT, help="Seeds of the scorer on every split.")
@SCORER
@click.option("--also", multiple=True, metavar="SCORER[:FIELD=VALUE,...]", help="Another scorer in the same run.")
@METHOD
@CURRICULUM
@SET
@SEED
@console.JSON
@console.OUT
@console.OVERWRITE
@reading_options
def evaluate(
    edges: str | None, json_file: Path | None, out: Path | None, overwrite: bool, also: tuple[str, ...], **options: Any
) -> None:
    """Measure how well signs of EDGES are predicted on test edges."""
    start = time.perf_counter()
    console.check_outputs(json_file, out, overwrite)
    entries = [_entry(options["scorer"], options["method"], options["curriculum"], options["pairs"])]
    for text in also:
        name, _, pairs = text.partition(":")
        entries.append(_entry(name, None, False, tuple(pair for pair in pairs.split(",") if pair)))
    read = _read(edges, options)
    with progress.shown() as track:
        report = _evaluated(read, entries, options, track, start)
    report.print()
    console.write(report, json_file, out, overwrite)


def _evaluated(read: "Reading", entries: "list[Entry]", options: dict[str, Any], track: Any, start: float) -> "Report":
    from thrifty.graph import evaluate as evaluation
    from thrifty.graph.split import splits
    from thrifty.report import provenance

    found = splits(read.graph, options["split"], options["num_splits"], options["seed"], read.origin)
    rows = evaluation.evaluate(read.graph, entries, found, options["seeds"], track, options["seed"])
    notes = [*dict.fromkeys(split.note for split in found), *read.notes]
    origin = provenance(console.command(), time.perf_counter() - start)
    return evaluation.report(f"Signs of {read.origin}", [row | {"origin": read.origin} for row in rows], notes, origin)


def _read(edges: str | None, options: dict[str, Any]) -> "Reading":
    from thrifty import settings
    from thrifty.graph import known
    from thrifty.graph.columns import Columns
    from thrifty.graph.policies import Policies

    names = ("source", "target", "sign", "rating", "time")
    chosen = settings.read(Policies, console.pairs_of(options["policies"], "--policy"))
    if options["threshold"] is not None:
        chosen["threshold"] = options["threshold"]
    columns = Columns(**{name: options[name] for name in names})
    return known.load(edges, columns, Policies(**chosen), options.get("seed", 0))


def _entry(scorer: str, method: str | None, has_curriculum: bool, texts: tuple[str, ...]) -> "Entry":
    """The scorer and the method with the settings in `texts`: each goes to the one that has it, the scorer first."""
    import dataclasses

    from thrifty import catalogue
    from thrifty.graph.evaluate import Entry

    pairs = console.pairs_of(texts)
    if method is None:
        return Entry(_chosen("scorers", scorer, pairs), None, has_curriculum)
    fields = {field.name for field in dataclasses.fields(catalogue.find("graph", scorer, "scorers"))}
    of_method = {name: text for name, text in pairs.items() if name not in fields}
    of_scorer = {name: text for name, text in pairs.items() if name in fields}
    return Entry(_chosen("scorers", scorer, of_scorer), _chosen("methods", method, of_method), has_curriculum)


def _chosen(kind: str, name: str, pairs: dict[str, str]) -> Any:
    from thrifty import catalogue, settings

    found = catalogue.find("graph", name, kind)
    return found(**settings.read(found, pairs))
