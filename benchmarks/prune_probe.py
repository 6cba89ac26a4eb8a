"""The time of one step of `thrifty prune` on a GPU: a network as it is, one that is searched, and ones that were cut.

    python benchmarks/prune_probe.py --forms graph --batches 512 --budgets flops=20%,activations=45% 0.2

Needs no data. Prints milliseconds of a step of the weights, of the controller and of the projection, by form of the
step and size of the batch, with the network cut to each of `--budgets` as a uniform narrowing meets it.
"""

import argparse
import time
from dataclasses import replace

import torch
from prune import RESIDUAL, ROUND_TO, round_of, training_of

from thrifty.prune.cost import budget_of
from thrifty.prune.images import Images, Split
from thrifty.prune.job import PruneJob, ranks_within
from thrifty.prune.named import model_of
from thrifty.prune.run import Run
from thrifty.prune.unpruned import Unpruned

FORMS = ("graph", "eager", "compiled_graph", "compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet56", "resnet18"])
    parser.add_argument("--forms", nargs="+", default=list(FORMS), help="the first ones first")
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 256, 512])
    budgets = ["flops=20%,activations=45%"]
    parser.add_argument("--budgets", nargs="+", default=budgets, help="the first one is searched for")
    parser.add_argument("--seconds", type=float, default=60, help="for each network")
    parser.add_argument("--train", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument(
        "--round-to", nargs="*", default=ROUND_TO, metavar="NETWORK=N", help="widths are multiples of N"
    )
    parser.add_argument("--residual", nargs="*", default=RESIDUAL, help="networks whose streams shrink as well")
    arguments = parser.parse_args()
    for network in arguments.networks:
        probe(network, arguments)


def noise(count: int = 50_000) -> Images:
    """Images of the size and number of CIFAR-10 that need no file."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=generator)
    whole = Split(pixels, labels)
    return Images("noise", whole, whole.take(torch.arange(1000)), tuple("0123456789"))


def probe(network: str, arguments: argparse.Namespace) -> None:
    """The steps of one network, whole, searched and pruned, in every form."""
    deadline = time.monotonic() + arguments.seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    residual, round_to = network in arguments.residual, round_of(network, arguments.round_to)
    first = PruneJob.of(
        model_of(network, 10),
        noise(),
        arguments.budgets[0],
        training_of(arguments.train),
        device=device,
        round_to=round_to,
        residual=residual,
    )
    budgets = {
        keep: budget_of(keep, first.coupling, residual=residual, round_to=round_to) for keep in arguments.budgets
    }
    jobs = [replace(first, keep=keep, budget=budget) for keep, budget in budgets.items()]
    for form in arguments.forms:
        for batch in arguments.batches:
            if time.monotonic() > deadline:
                print(f"{network}: time is over before {form} at {batch}", flush=True)
                return
            training = replace(first.training, form=form, batch_size=batch, learning_rate=0.01)
            probe_one(network, [replace(job, training=training) for job in jobs])


def probe_one(network: str, jobs: list[PruneJob]) -> None:
    """One form and one size of the batch: all budgets."""
    first = jobs[0]
    print(f"{network} {first.training.form} batch {first.training.batch_size}", flush=True)
    torch.cuda.reset_peak_memory_stats() if torch.cuda.is_available() else None
    with Run(first, Unpruned()) as run:
        begin = time.perf_counter()
        warm(run)
        print(f"  first 8 steps  {time.perf_counter() - begin:8.1f} s")
        whole = timed(run)
        tell_step("whole", whole, whole, run)
        probe_search(run, first, whole)
    for job in jobs:
        with Run(job, Unpruned()) as run:
            run.cut(job.best(ranks_within({group.name: -torch.arange(group.size) for group in job.groups})))
            warm(run)
            tell_step(f"cut to {job.keep}", timed(run), whole, run)
    if torch.cuda.is_available():
        print(f"  memory         {torch.cuda.max_memory_allocated() / 2**30:8.1f} GiB", flush=True)


def probe_search(run: Run, job: PruneJob, whole: float) -> None:
    """What the search adds to a step of the weights, and what its parts take."""
    from thrifty.prune.methods.ato import Ato

    method = Ato()
    loop = method.loop_of(run.model, run.optimizer, job.coupling, job.budget, run.num_steps)
    if job.training.is_replayed:
        loop.replay_controller()
    while loop.phase == "warm-up":
        loop.done += 1
    kept = torch.ones(loop.search.layout.num_parts, device=job.device)

    def control() -> None:
        with run.precision:
            loop.controller_step(*run.held_out_batch())

    for _ in range(6):
        control()
    drop, project = (
        clock(call, 30) for call in (lambda: loop.projection.drop(kept), lambda: loop.projection.shorten(0.0))
    )
    print(f"  controller step {clock(control, 10) * 1e3:7.2f} ms")
    print(f"  projection     {project * 1e3:8.3f} ms ({project / whole:.1%} of a step); a new mask {drop * 1e3:.3f} ms")

    def searched() -> None:
        run.step()
        if loop.wants_controller_step:
            control()
        loop.after_step()

    tell_step("search", clock(searched, 100), whole, run)
    facts = clock(lambda: loop.epoch_end(run.held_out_accuracy), 3)
    print(f"  facts          {facts * 1e3:8.1f} ms an epoch", flush=True)


def tell_step(what: str, seconds: float, whole: float, run: Run) -> None:
    """Milliseconds of a step, seconds of an epoch, and both in terms of the whole network's."""
    epoch = seconds * run.batches.num_batches
    print(f"  {what:<14} {seconds * 1e3:8.2f} ms a step, {epoch:.2f} s an epoch ({seconds / whole:.2f})", flush=True)


def warm(run: Run) -> None:
    steps(run, 8)
    wait()


def steps(run: Run, count: int) -> None:
    for _ in range(count):
        run.step()


def timed(run: Run, count: int = 40) -> float:
    return clock(run.step, count)


def clock(call, count: int) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return (time.perf_counter() - start) / count


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
