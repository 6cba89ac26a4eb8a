"""`thrifty prune`: train a network and get a smaller one that fits a budget."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thrifty import console, progress
from thrifty.errors import SettingError

if TYPE_CHECKING:
    from thrifty.prune.job import PruneJob


@click.command()
@click.argument("model")
@click.option("--data", "data_name", default="digits", show_default=True, help="digits, cifar10, cifar100 or a folder.")
@click.option(
    "--keep",
    default="flops=50%",
    show_default=True,
    help="Budget: flops=45%, params=2M, activations=50%, latency=5ms@32, or several: a,b.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--method", default="ato", show_default=True, help="Who decides what stays; see thrifty methods.")
@click.option("--set", "pairs", multiple=True, metavar="FIELD=VALUE", help="A setting of the method.")
@click.option("--train", "train_pairs", multiple=True, metavar="FIELD=VALUE", help="A setting of the training.")
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs in all, whatever the method. Default: 100.")
@click.option("--num-train", type=click.IntRange(min=2), help="Use only so many training images (not of digits).")
@click.option(
    "--round-to", type=click.IntRange(min=1), help="Widths are multiples of it. Default: 8 on a GPU, 1 elsewhere."
)
@click.option("--residual", is_flag=True, help="Let the widths of residual streams shrink as well.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option(
    "--batch", default=64, show_default=True, type=click.IntRange(min=1), help="Images when latency is timed."
)
@click.option("--onnx", is_flag=True, help="Also write model.onnx, and check it with ONNX Runtime.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1))
@click.option("--resume", is_flag=True, help="Go on with the run in the folder.")
@click.option("--overwrite", is_flag=True, help="Start anew although the folder holds files.")
@console.JSON
def prune(model: str, output: Path, json_file: Path | None, resume: bool, overwrite: bool, **options: Any) -> None:
    """Train MODEL on images and cut it down to a budget while it trains.

    MODEL is resnet8, resnet18, resnet20, resnet56 or package.module:function for a function that returns a network.
    The folder gets the small network, the plan, a log, a report page, and a state from which --resume goes on.
    """
    from thrifty.files import fresh_folder

    start = time.perf_counter()
    console.check_outputs(json_file, None, overwrite)
    method = _method(options["method"], options["pairs"])
    training = _training(options["train_pairs"], options["epochs"])
    _check_output(output, resume, overwrite)
    if options["onnx"]:
        _check_onnx()
    job = _job(model, training, output, resume, options)
    if not resume:
        fresh_folder(output, overwrite)  # only now, since what was asked for could have been refused
    click.echo(_told(model, job), err=True)
    with progress.shown() as track:
        _finish(model, method, job, track, options["batch"], json_file, start)
    if options["onnx"]:
        _export(job, output)


def _check_onnx() -> None:
    """Better now than after hours of training."""
    from thrifty.prune.compact import check_onnx

    check_onnx()


def _export(job: "PruneJob", output: Path) -> None:
    from thrifty.prune.compact import export_onnx, load

    difference = export_onnx(load(job.model, output), job.coupling.inputs, output / "model.onnx")
    click.echo(f"ONNX: {output / 'model.onnx'}, equal up to {difference:.1e}")


def _method(name: str, texts: tuple[str, ...]) -> Any:
    from thrifty import catalogue, settings

    method = catalogue.find("prune", name)
    return method(**settings.read(method, console.pairs_of(texts)))


def _training(texts: tuple[str, ...], epochs: int | None) -> Any:
    from thrifty import settings
    from thrifty.prune.training import Training

    pairs = console.pairs_of(texts, "--train")
    if epochs is not None:
        if pairs.get("epochs", str(epochs)) != str(epochs):
            raise SettingError(f"--epochs {epochs} and --train epochs={pairs['epochs']}: give one of them")
        pairs["epochs"] = str(epochs)
    return Training(**settings.read(Training, pairs))


def _check_output(output: Path, resume: bool, overwrite: bool) -> None:
    from thrifty.files import check_folder
    from thrifty.prune import checkpoint

    if not resume and output.is_dir() and checkpoint.exists(output) and not overwrite:
        raise SettingError(f"{output} holds a run; add --resume to go on with it, or --overwrite to start anew")
    check_folder(output, overwrite or resume)


def _job(model: str, training: Any, output: Path, resume: bool, options: dict[str, Any]) -> "PruneJob":
    from thrifty.prune import images
    from thrifty.prune.job import PruneJob
    from thrifty.prune.named import model_of
    from thrifty.prune.training import device_of

    device = device_of(options["device"])
    found = images.load(options["data_name"], options["num_train"])
    network = model_of(model, len(found.classes), options["seed"])
    return PruneJob.of(
        network,
        found,
        options["keep"],
        training,
        seed=options["seed"],
        device=device,
        round_to=options["round_to"] or (8 if device.type == "cuda" else 1),
        residual=options["residual"],
        folder=output,
        resume=resume,
    )


def _told(model: str, job: "PruneJob") -> str:
    """What can go, and how far, before anything is trained."""
    from thrifty.prune.cost import least, taken_by_rounding

    floor = least(job.groups, job.round_to)
    limits = "; ".join(
        f"{one.spent({}):,.6g} {one.unit} -> {one.limit:,.6g} (the least is {one.spent(floor):,.6g})"
        for one in job.budget.each
    )
    parts = sum(group.size for group in job.groups)
    told = [f"{model}: {parts:,} channels in {len(job.groups)} groups may go; {limits}"]
    told += [f"  {group.name} stays whole: {group.reason}" for group in job.coupling.frozen]
    if (taken := taken_by_rounding(job.budget, job.groups, job.round_to)) > _MUCH_TAKEN:
        told.append(
            f"  multiples of {job.round_to} in every layer alone take {taken:.0%} of the budget, whatever is learnt; "
            f"--round-to {max(1, job.round_to // 4)} leaves more to choose"
        )
    return "\n".join(told)


_MUCH_TAKEN = 0.25


def _finish(
    model: str,
    method: Any,
    job: "PruneJob",
    track: progress.Track,
    batch: int,
    json_file: Path | None,
    start: float,
) -> None:
    """Run the method, and write what came of it."""
    from dataclasses import replace

    from thrifty.prune.compact import save
    from thrifty.prune.outcome import outcome_of
    from thrifty.prune.report import report
    from thrifty.report import provenance

    assert job.folder is not None
    try:
        plan = method.plan(replace(job, track=track))
    except KeyboardInterrupt:
        click.echo(f"the state is in {job.folder}; add --resume to go on", err=True)
        raise
    outcome = outcome_of(method, plan, job, job.history[-1]["seconds"], batch)
    plan.save(job.folder / "plan.safetensors")
    save(job.folder, job.model, plan, job.coupling)
    origin = provenance(console.command(), time.perf_counter() - start)
    row = {"model": model, **outcome.row}
    result = report(f"{model} on {job.images.name}: {row['method']}", [row], job.history, [], origin)
    click.echo(f"report: {result.save_page(job.folder, overwrite=True)}")
    console.show(result, json_file)
