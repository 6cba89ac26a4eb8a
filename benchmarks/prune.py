"""Pruning on CIFAR-10: every run trains for the same epochs; what is told is the small network after the last epoch.

    python benchmarks/prune.py --gpus 2 --minutes 9 --epochs 120 \\
        --runs resnet18:unpruned:1:0 resnet18:ato:0.2:0 resnet56:ato:0.45:0 resnet56:ato,recipe=published:0.45:0

A run is NETWORK:METHOD[,FIELD=VALUE...]:BUDGET:SEED, where the budget is a share of the FLOPs (0.2) or what `thrifty
prune --keep` takes (flops=20%,activations=45%). On each GPU runs ResNet-18 alone, or as many of the
other networks as `--per-gpu` says. A run that is stopped by `--minutes` keeps its state in `--state`; the same command
goes on with it, and leaves out what is in `--out` already. Data comes through THRIFTY_DATA, or in parts, to be joined:

    split -b 60M cifar10/train.npz cifar10/train.npz.        (makes train.npz.aa and train.npz.ab)
    python benchmarks/prune.py --parts cifar10 ...            (a folder with test.npz and the parts)
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from thrifty import catalogue, console, files, progress, settings
from thrifty.prune import evaluate, images
from thrifty.prune.job import PruneJob
from thrifty.prune.named import model_of
from thrifty.prune.training import Training
from thrifty.prune.unpruned import Unpruned

ROUND_TO = ["resnet18=8", "resnet56=8"]  # other widths are slow on a GPU
RESIDUAL = ["resnet18"]
GRACE_SECONDS = 20


@dataclass(frozen=True)
class Spec:
    """One run."""

    network: str
    method: str
    keep: str
    seed: int

    @staticmethod
    def of(text: str) -> "Spec":
        network, method, keep, seed = text.split(":")
        return Spec(network, method, keep, int(seed.removeprefix("seed")))

    @property
    def text(self) -> str:
        return f"{self.network}:{self.method}:{self.keep}:{self.seed}"

    @property
    def folder(self) -> str:
        return re.sub("[:,=%]+", "-", self.text)

    def made(self) -> object:
        name, *pairs = self.method.split(",")
        if name == "unpruned":
            return Unpruned()
        kind = catalogue.find("prune", name)
        return kind(**settings.read(kind, console.pairs_of(tuple(pairs))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", required=True, help="NETWORK:METHOD[,FIELD=VALUE...]:BUDGET:SEED")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--train", nargs="*", default=[], metavar="FIELD=VALUE", help="of every run")
    parser.add_argument(
        "--round-to", nargs="*", default=ROUND_TO, metavar="NETWORK=N", help="widths are multiples of N"
    )
    parser.add_argument("--residual", nargs="*", default=RESIDUAL, help="networks whose streams shrink as well")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--num-train", type=int)
    parser.add_argument("--parts", type=Path, help="folder with test.npz and train.npz.*")
    parser.add_argument("--gpus", type=int, default=max(torch.cuda.device_count(), 1))
    parser.add_argument("--per-gpu", type=int, default=3, help="runs that share a GPU, but for ResNet-18")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--state", type=Path, default=Path("prune-runs"), help="folder of states")
    parser.add_argument("--out", type=Path, default=Path("results/prune.jsonl"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.parts:
        os.environ["THRIFTY_DATA"] = str(joined(arguments.parts, arguments.state))
    if arguments.one:
        try:
            train_one(Spec.of(arguments.one), arguments)
        except KeyboardInterrupt:
            print("stopped, the state is kept", flush=True)
            sys.exit(130)
    else:
        schedule([Spec.of(text) for text in arguments.runs], arguments)


def joined(parts: Path, state: Path) -> Path:
    """A data folder with the train file that the parts make."""
    folder = state.resolve() / "data"
    train = folder / "cifar10" / "train.npz"
    if not train.exists():
        train.parent.mkdir(parents=True, exist_ok=True)
        content = b"".join(part.read_bytes() for part in sorted(parts.glob("train.npz.*")))
        train.with_suffix(".new").write_bytes(content)
        train.with_suffix(".new").rename(train)
        (train.parent / "test.npz").write_bytes((parts / "test.npz").read_bytes())
    return folder


def command_of(one: str, gpu: int, log: Path | None = None) -> subprocess.Popen:
    """This very command for one run, on one of the GPUs that this process sees."""
    environment = dict(os.environ)
    if torch.cuda.is_available():
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = seen.split(",")[gpu] if seen else str(gpu)
    words = [sys.executable, __file__, *sys.argv[1:], "--one", one]
    target = None if log is None else log.open("a")
    return subprocess.Popen(words, env=environment, stdout=target, stderr=subprocess.STDOUT if target else None)


def schedule(specs: list[Spec], arguments: argparse.Namespace) -> None:
    """Run all specs that are not done, until the minutes are over."""
    deadline = time.monotonic() + 60 * arguments.minutes
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    done = {(line["run"], line["training"]["epochs"]) for line in map(json.loads, lines)}
    waiting = [spec for spec in specs if (spec.text, arguments.epochs) not in done]
    running: dict[Spec, tuple[int, subprocess.Popen]] = {}
    arguments.state.mkdir(parents=True, exist_ok=True)
    told: dict[Spec, int] = {}
    while (waiting or running) and time.monotonic() < deadline:
        for spec in list(waiting):
            gpu = free_gpu(spec, running, arguments)
            if gpu is not None:
                waiting.remove(spec)
                running[spec] = (gpu, command_of(spec.text, gpu, arguments.state / f"{spec.folder}.txt"))
        time.sleep(1)
        for spec, (_, process) in list(running.items()):
            tell(spec, arguments, told)
            if process.poll() is not None:
                del running[spec]
                note(spec, process.returncode, arguments)
    for _, process in running.values():
        process.send_signal(signal.SIGINT)
    for spec, (_, process) in running.items():
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        note(spec, process.returncode, arguments)
    for spec in waiting:
        print(f"{spec.text}: not begun", flush=True)


def free_gpu(
    spec: Spec, running: dict[Spec, tuple[int, subprocess.Popen]], arguments: argparse.Namespace
) -> int | None:
    """A GPU that has room: ResNet-18 wants one for itself; the emptiest for the others."""

    def weight(one: Spec) -> float:
        return 1.0 if one.network == "resnet18" else 1.0 / arguments.per_gpu

    loads = [sum(weight(one) for one, (gpu, _) in running.items() if gpu == number) for number in range(arguments.gpus)]
    best = min(range(arguments.gpus), key=loads.__getitem__)
    return best if loads[best] + weight(spec) <= 1 + 1e-9 else None


def tell(spec: Spec, arguments: argparse.Namespace, told: dict[Spec, int]) -> None:
    """Seconds an epoch, at epochs 2, 10, 20, ..."""
    log = arguments.state / spec.folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    marks = [2, *range(10, len(lines) + 1, 10)]
    for mark in (mark for mark in marks if told.get(spec, 0) < mark <= len(lines)):
        line = json.loads(lines[mark - 1])
        told[spec] = mark
        facts = " ".join(f"{key}={line[key]:.4g}" for key in ("accuracy_train", "accuracy_masked") if key in line)
        each = line["seconds"] / mark
        print(f"{spec.text}: epoch {mark} {line.get('phase', '')} {each:.2f} s an epoch so far, {facts}", flush=True)


def note(spec: Spec, status: int, arguments: argparse.Namespace) -> None:
    """Append the line of a run that is over, or say why there is none."""
    row = arguments.state / spec.folder / "row.json"
    if status == 0 and row.exists():
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("a") as file:
            file.write(row.read_text().strip() + "\n")
        line = json.loads(row.read_text())
        print(
            f"{spec.text}: accuracy {line['accuracy']:.4f}, FLOPs {line['flops_ratio']:.4f}, {line['seconds']:.0f} s",
            flush=True,
        )
        return
    text = (arguments.state / f"{spec.folder}.txt").read_text().strip().splitlines()
    print(f"{spec.text}: stopped with status {status}: {text[-1] if text else ''}", flush=True)


def round_of(network: str, round_to: list[str]) -> int:
    """The widths of this network are multiples of it."""
    return int(console.pairs_of(tuple(round_to), "--round-to").get(network, "1"))


def training_of(pairs: list[str], **fixed: str) -> Training:
    """The settings of every run, from what `--train` was given."""
    chosen = {"precision": "bfloat16", "form": "graph"} if torch.cuda.is_available() else {}
    return Training(**settings.read(Training, chosen | fixed | console.pairs_of(tuple(pairs), "--train")))


def train_one(spec: Spec, arguments: argparse.Namespace) -> None:
    """Train one network in this process and leave its row in its folder."""
    from thrifty.prune import checkpoint
    from thrifty.prune.outcome import outcome_of
    from thrifty.report import provenance

    start = time.perf_counter()
    folder = arguments.state / spec.folder
    folder.mkdir(parents=True, exist_ok=True)
    found = images.load(arguments.data, arguments.num_train)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    job = PruneJob.of(
        model_of(spec.network, len(found.classes), spec.seed),
        found,
        spec.keep,
        training_of(arguments.train, epochs=str(arguments.epochs)),
        seed=spec.seed,
        device=device,
        round_to=round_of(spec.network, arguments.round_to),
        residual=spec.network in arguments.residual,
        folder=folder,
        resume=checkpoint.exists(folder),
        track=progress.silent,
    )
    method = spec.made()
    plan = method.plan(job)
    outcome = outcome_of(method, plan, job, job.history[-1]["seconds"], batch=256)
    one = torch.randn(1, *found.shape, device=device)
    single = dict(zip(("before", "after"), evaluate.latencies_ms([job.model, outcome.small], one), strict=True))
    row = outcome.row | {"latency_ms_single": single}
    row |= {"run": spec.text, "network": spec.network, "method": spec.method.partition(",")[0]}
    row |= {
        "training": settings.shown(job.training),
        "round_to": job.round_to,
        "residual": job.residual,
        "shared_gpu": spec.network != "resnet18" and arguments.per_gpu > 1,
        "phases": phases(job.history),
    }
    whole = {"kind": "prune", **row, "provenance": provenance(" ".join(sys.argv), time.perf_counter() - start)}
    files.write_text(folder / "row.json", json.dumps(whole) + "\n")


def phases(history: list[dict]) -> dict[str, float]:
    """The seconds of each phase; of the whole run where there are none."""
    found: dict[str, float] = {}
    before = 0.0
    for line in history:
        name = line.get("phase", "training")
        found[name] = round(found.get(name, 0.0) + line["seconds"] - before, 3)
        before = line["seconds"]
    return found


if __name__ == "__main__":
    main()
