"""lm-eval's own harness on a model in memory: bundled tasks anywhere, tasks of the hub where that can be reached."""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from thrifty.errors import DataError, SettingError

FOLDER = Path(__file__).parent / "tasks"
"""The bundled tasks; `lm-eval --include_path FOLDER` takes them too."""
BATCH = 16

Scores = dict[str, dict[str, float]]
"""By task: each metric, and its standard error under the metric's name with `_stderr`."""


def find(names: Sequence[str]) -> list[Any]:
    """The tasks called `names` (those of a group one by one), with their items, for `scores`.

    Raises `SettingError` where lm-eval is not installed or does not know a name, `DataError` where it has no items.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise SettingError(
            f"--tasks needs lm-eval (no module {error.name}); run: pip install 'thrifty[eval]'"
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    own = TaskManager(include_path=FOLDER, include_defaults=False)
    known = own if set(names) <= set(own.all_tasks) else TaskManager(include_path=FOLDER)
    bundled = ", ".join(own.all_tasks)
    unknown = [name for name in names if name not in known.all_tasks]
    if unknown:
        raise SettingError(f"lm-eval knows no task {unknown[0]!r}; bundled: {bundled}; all: lm-eval ls tasks")
    try:
        with _quiet():
            return list(known.load(list(names))["tasks"].values())
    except Exception as error:  # datasets and the hub raise many kinds; each means that there are no items
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the items of {', '.join(names)} cannot be had ({first}); go online, or use bundled tasks: {bundled}"
        ) from error


def scores(model: Any, tokenizer: Any, tasks: list[Any]) -> Scores:
    """What `model` scores on `tasks`, as `find` gives them; zero-shot, except where a task itself shows examples."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    evaluate: Any = lm_eval.simple_evaluate  # decorators hide the parameters of both
    wrap: Any = HFLM
    with _quiet():
        language = wrap(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=BATCH)
        found = evaluate(
            language, tasks=tasks, task_manager=TaskManager(include_defaults=False), log_samples=False,
            bootstrap_iters=1000, random_seed=None, numpy_random_seed=None, torch_random_seed=None,
        )  # fmt: skip
    return {name: _metrics(row) for name, row in found["results"].items()}


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """`acc,none` becomes `acc`; a metric behind a filter keeps the filter's name."""
    numbers = {key.removesuffix(",none"): value for key, value in row.items() if "," in key}
    return {key: float(value) for key, value in numbers.items() if isinstance(value, (int, float))}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and remarks of lm-eval and datasets: thrifty shows its own."""
    offline = logging.getLogger("huggingface_hub")
    level = offline.level
    offline.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        offline.setLevel(level)
