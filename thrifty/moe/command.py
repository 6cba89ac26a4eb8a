"""`thrifty moe`: a dense language model as a mixture of experts with a fixed active budget."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thrifty import console, progress
from thrifty.errors import ModelError, OutputError

if TYPE_CHECKING:
    from thrifty.report import Report

USUAL = {"cpu": (200, 1), "gpu": (3000, 4)}
"""Steps, and windows of a step for each process: minutes for a model of 135M parameters."""


@click.command()
@click.argument("model")
@click.option("--active", required=True, type=float, help="Share of the weights that may act on a token, as 0.5.")
@click.option(
    "--of", "scope", type=click.Choice(["mlp", "blocks", "model"]), default="mlp", show_default=True,
    help="Of which weights: the MLPs', the MLPs' and attention's (the paper's count), or all.",
)  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The folder to write the model to.")
@click.option("--dry-run", is_flag=True, help="Say what the budget means, and do nothing.")
@click.option("--method", default="tomoe", show_default=True, help="Who chooses the experts; see thrifty methods.")
@click.option("--set", "pairs", multiple=True, metavar="FIELD=VALUE", help="A setting of the method.")
@click.option(
    "--layout", type=click.Choice(["standard", "tomoe"]), default="standard", show_default=True,
    help="standard: a stock class, one width for all layers. tomoe: a width for each layer; needs thrifty to load.",
)  # fmt: skip
@click.option(
    "--text", "texts", multiple=True, metavar="TEXT", help="Learn from this: a name, file, folder or hf:NAME."
)
@click.option("--measure", "measured", metavar="TEXT", help="Text to measure on. Default: wikitext-2-test.")
@click.option(
    "--steps", type=int, help="Training steps, where the method trains. Default: 3000 on a GPU, 200 on a CPU."
)
@click.option("--batch", type=int, help="Windows of a step, over all processes. Default: 4 on a GPU, 1 on a CPU.")
@click.option("--window", default=512, show_default=True, help="Tokens of a window, for training and measuring.")
@click.option("--calibration", default=16, show_default=True, help="Windows that training-free parts look at.")
@click.option("--windows", default=8, show_default=True, help="Windows to measure on.")
@click.option("--heal", type=click.Choice(["lora", "full"]), help="Also train the weights afterwards; off by default.")
@click.option("--heal-steps", default=200, show_default=True)
@click.option("--speed/--no-speed", default=True, help="Also measure tokens per second.")
@click.option(
    "--tasks", default="", metavar="NAME,...",
    help="Also score on these tasks of lm-eval; thrifty_smoke: the bundled ones. Needs thrifty[eval].",
)  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--seed", default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with a training that was interrupted.")
@click.option("--save-plan", type=click.Path(path_type=Path), help="Write the plan (experts, routers) to this file.")
@click.option("--overwrite", is_flag=True, help="Let -o and --out replace what is there.")
@console.JSON
@console.OUT
def moe(model: str, json_file: Path | None, out: Path | None, overwrite: bool, **options: Any) -> None:
    """Make MODEL a mixture of experts of which only a share is active on each token.

    MODEL is smollm2 or a folder with a dense causal language model. Its weights stay as they are: what is learnt is
    which channels of each MLP a token needs. Works under `accelerate launch` as well.
    """
    from thrifty.moe.cost import check_ratio

    start = time.perf_counter()
    check_ratio(options["active"])
    console.check_outputs(json_file, out, overwrite)
    method = _method(options["method"], options["pairs"])
    if options["dry_run"]:
        report = _forecast(model, method, options, start)
    else:
        checkpoint = _check_output(options["output"], overwrite, options["resume"], options["save_plan"])
        try:
            with progress.shown() as track:
                report = _converted(model, method, options, checkpoint, overwrite, track, start)
        except KeyboardInterrupt:
            if checkpoint.exists():
                click.echo(f"the training so far is in {checkpoint}; add --resume to go on with it", err=True)
            raise
    if report is not None:
        report.print()
        console.write(report, json_file, out, overwrite, measured_only=not options["dry_run"])


def _method(name: str, texts: tuple[str, ...]) -> Any:
    from thrifty import catalogue, settings

    kind = catalogue.find("moe", name)
    return kind(**settings.read(kind, console.pairs_of(texts)))


def _check_output(output: Path | None, overwrite: bool, resume: bool, save_plan: Path | None) -> Path:
    """Refuse at once what could not be written after hours of training; return where the training keeps its state."""
    from thrifty.files import check_file, check_folder, check_new

    if output is None:
        raise OutputError("no folder to write the model to; add -o FOLDER, or --dry-run")
    check_folder(output, overwrite)
    if save_plan is not None:
        check_new(save_plan, overwrite)
    checkpoint = output.with_name(f"{output.name}.training.safetensors")
    check_file(checkpoint)
    if checkpoint.exists() and not resume:
        if not overwrite:
            raise OutputError(
                f"{checkpoint} is there, of an interrupted training; add --resume to go on or --overwrite to start over"
            )
        checkpoint.unlink(missing_ok=True)
    return checkpoint


def _forecast(model: str, method: Any, options: dict[str, Any], start: float) -> "Report":
    from thrifty import llm
    from thrifty.moe import forecast
    from thrifty.moe.apply import check_model
    from thrifty.moe.cost import Sizes
    from thrifty.report import Column, Report, provenance

    language = llm.load(model, options["dtype"], options["device"])
    num_experts = getattr(method, "num_experts", 1)
    attention: Any = getattr(method, "attention", "none")
    layouts, reasons = ["tomoe"], list[str]()
    try:
        check_model(language.model, "standard")
        layouts.append("standard")
    except ModelError as error:
        reasons.append(f"No `standard`: {error}.")
    sizes = Sizes.of(language.model)
    rows = forecast.of(sizes, options["active"], options["scope"], num_experts, attention, layouts)
    columns = [
        Column("layout", "layout"),
        Column("active_ratio_mlp", "active MLP", ".1%"),
        Column("active_ratio_blocks", "blocks", ".1%"),
        Column("active_ratio_model", "whole", ".1%"),
        Column("params_active", "active parameters", ",d"),
        Column("params_total", "in all", ",d"),
        Column("bytes", "bytes on disk", ",d"),
        Column("speed_up", "decoding, at best", ".2f"),
        Column("speed_up_prefill", "prefill, at best", ".2f"),
    ]
    notes = [
        f"The dense model has {rows[0]['params_dense']:,} parameters. {num_experts} experts of {rows[0]['width']} "
        "channels in each MLP; `tomoe` lets widths differ between layers within the same budget.",
        "At best: times faster where reading weights (decoding) or multiplying with them (prefill) is all that takes "
        "time. Nothing has been trained.",
        *reasons,
    ]
    if attention != "none":
        notes.append(
            "Attention is thinned too, which only `tomoe` can hold. Masked values count as parameters, not time."
        )
    title = f"{model}, {options['active']:g} of the {options['scope']} active: what it will cost"
    origin = provenance(console.command(), time.perf_counter() - start)
    return Report(title, "moe forecast", rows, columns, notes=notes, provenance=origin)


def _converted(
    model: str, method: Any, options: dict[str, Any], checkpoint: Path, overwrite: bool, track: Any, start: float
) -> "Report | None":
    """The report; of several processes only the first has one."""
    from thrifty import llm
    from thrifty.moe import report, run
    from thrifty.moe.train import Team
    from thrifty.report import provenance

    steps, batch = USUAL["cpu" if options["device"] == "cpu" else "gpu"]
    team = Team.here()  # before the model is loaded: `cuda` is then the device of this process
    llm.check_device(options["device"])  # processes that share the model need it whole only when all is learnt
    language = llm.load(model, options["dtype"], "cpu" if team.is_sharing else options["device"])
    asked = run.Asked(
        active=options["active"],
        scope=options["scope"],
        layout=options["layout"],
        texts=options["texts"],
        measured=options["measured"],
        steps=steps if options["steps"] is None else options["steps"],
        batch=batch * team.size if options["batch"] is None else options["batch"],
        window=options["window"],
        windows=options["windows"],
        calibration=options["calibration"],
        heal=options["heal"],
        heal_steps=options["heal_steps"],
        has_speed=options["speed"],
        tasks=tuple(name.strip() for name in options["tasks"].split(",") if name.strip()),
        seed=options["seed"],
        device=options["device"],
    )
    done = run.run(language, method, asked, checkpoint, options["output"], overwrite, options["save_plan"], track)
    if team.rank > 0:
        return None
    title = f"{model} as a mixture of experts by {options['method']}"
    notes = [f"written to {options['output']} ({options['layout']} layout)", *done.notes]
    return report.report(title, done.rows, provenance(console.command(), time.perf_counter() - start), notes)
