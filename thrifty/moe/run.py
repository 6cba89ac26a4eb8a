"""From a dense model to a folder with experts, and the numbers: what the command does, for scripts as well."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from thrifty.errors import OutputError, SettingError
from thrifty.llm import LanguageModel
from thrifty.moe import harness, result, text
from thrifty.moe.apply import Layout, applied, check_model, save
from thrifty.moe.cost import Scope
from thrifty.moe.heal import Heal
from thrifty.moe.job import MoeJob
from thrifty.moe.speed import tokens_per_second
from thrifty.moe.train import Team
from thrifty.perplexity import windows_of
from thrifty.plan import Plan
from thrifty.progress import Track


@dataclass(frozen=True)
class Asked:
    """What is asked for; `thrifty moe --help` says what each means."""

    active: float
    scope: Scope = "mlp"
    layout: Layout = "standard"
    texts: tuple[str, ...] = ()
    measured: str | None = None
    steps: int = 600
    batch: int = 4
    window: int = 512
    windows: int = 8
    calibration: int = 16
    heal: str | None = None
    heal_steps: int = 200
    has_speed: bool = True
    tasks: tuple[str, ...] = ()
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse what measures nothing: a window of one token predicts none."""
        for name, least in (("windows", 1), ("window", 2)):
            if getattr(self, name) < least:
                raise SettingError(f"{name}={getattr(self, name)}; use {least} or more")


@dataclass(frozen=True)
class Done:
    """Rows of results (the healed model's is the second), and what else must be said."""

    rows: list[dict[str, Any]]
    notes: list[str]


def texts_of(asked: Asked) -> tuple[list[tuple[str, str]], tuple[str, str]]:
    """The texts to learn from and the one to measure on, by name. Raises `DataError` where they share passages."""
    learnt, measured = text.usual() if not (asked.texts and asked.measured) else ([], ("", ""))
    if asked.texts:
        learnt = text.read(asked.texts)
    if asked.measured:
        (measured,) = text.read([asked.measured])
    text.check_apart(learnt, measured)
    return learnt, measured


def run(
    language: LanguageModel,
    method: Any,
    asked: Asked,
    checkpoint: Path | None,
    output: Path,
    overwrite: bool,
    save_plan: Path | None,
    track: Track,
) -> Done:
    """Plan, heal where asked to, apply, check, write, measure. Only the first process of several writes.

    Nothing appears at `output` before the exported model has been found equal to the masked one.
    """
    check_model(language.model, asked.layout)
    heal = Heal(asked.heal, steps=asked.heal_steps) if asked.heal else None  # type: ignore[arg-type]
    tasks = harness.find(asked.tasks) if asked.tasks else []
    learnt, measured = texts_of(asked)
    windows = windows_of(language, measured[1], measured[0], asked.windows, asked.window)
    corpus = text.corpus(language, learnt, asked.window, asked.seed)
    job = MoeJob.of(
        language.model,
        corpus,
        asked.active,
        asked.scope,
        "equal" if asked.layout == "standard" else "layer",
        steps=asked.steps,
        batch=asked.batch,
        calibration=asked.calibration,
        seed=asked.seed,
        checkpoint=checkpoint,
        track=track,
    )
    if asked.batch % Team.here().size:
        raise SettingError(f"--batch {asked.batch} cannot be shared by {Team.here().size} processes evenly")
    plan = method.plan(job)
    torch.nn.Module.to(job.model, asked.device)  # where processes share it while they learn, it was on the host
    stages = [("", job.model)]
    if heal is not None:
        stages.append((f", healed ({asked.heal}, {asked.heal_steps} steps)", heal(job, plan)))
    if Team.here().rank > 0:
        return Done([], [])
    if save_plan is not None:
        plan.save(save_plan)
    rows, made = list[dict[str, Any]](), None
    dense = harness.scores(job.model, language.tokenizer, tasks) if tasks else {}
    for name, model in stages:
        row, made = _stage(job, method, plan, model, windows, asked)
        if tasks:
            row["tasks"] = {"dense": dense, "moe": harness.scores(made, language.tokenizer, tasks)}
        label = f"{row['method']} {asked.active:.0%}{name}"
        rows.append({"label": label, "text": measured[0], "model": language.name, "window": asked.window} | row)
    _write(made, output, overwrite, language.tokenizer)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return Done(rows, [f"learnt from {', '.join(corpus.names)}: {corpus.num_tokens:,} tokens, a tenth held out"])


def _stage(
    job: MoeJob, method: Any, plan: Plan, model: Any, windows: torch.Tensor, asked: Asked
) -> tuple[dict[str, Any], Any]:
    """The exported model of one stage and its result. Raises `ModelError` where it differs from the masked one."""
    made, difference = applied(plan, model, asked.layout)
    row = result.of(job, method, plan, windows, made, is_shuffled=model is job.model, track=job.track)
    row |= {"layout": asked.layout, "max_abs_difference": difference.largest, "windows": len(windows)}
    if asked.has_speed:
        row["tokens_per_second"] = tokens_per_second({"dense": job.model, "moe": made}, track=job.track)
    return row, made


def _write(made: Any, output: Path, overwrite: bool, tokenizer: Any) -> None:
    """Write the folder beside the old one first, where there is one; then it takes its place."""
    if not (overwrite and output.exists()):
        save(made, output, tokenizer)
        return
    fresh = output.with_name(f".{output.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    save(made, fresh, tokenizer)
    try:
        shutil.rmtree(output)
        fresh.rename(output)
    except OSError as error:
        raise OutputError(f"cannot replace {output}: {error.strerror or error}; the new model is {fresh}") from error
