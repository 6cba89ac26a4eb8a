"""How long work tells how far it is: a `Track` wraps what is iterated over."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

What = str | Callable[[], str]
"""What is being done: a text, or a function that tells it anew with every item."""

Track = Callable[[Iterable[Any], What, int], Iterator[Any]]
"""Called with the items, what is being done, and how many items there are; yields the items."""


def silent(items: Iterable[Any], what: What, total: int) -> Iterator[Any]:
    """A `Track` that shows nothing."""
    yield from items


@contextmanager
def shown() -> Iterator[Track]:
    """Give a `Track` with a bar and an estimate of the time left; silent without a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    columns = (*columns, TextColumn("left"), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    with bar:

        def track(items: Iterable[Any], what: What, total: int) -> Iterator[Any]:
            if isinstance(what, str):
                yield from bar.track(items, total=total, description=what)
                return
            task = bar.add_task(what(), total=total)
            for item in items:
                yield item
                bar.update(task, advance=1, description=what())

        yield track
