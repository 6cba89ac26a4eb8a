"""The small network on disk: safetensors, and JSON of what was kept of each tensor; read back onto the user's own model
definition, without pickle."""

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from thrifty.errors import DataError, ModelError, OutputError
from thrifty.files import replacing, write_text
from thrifty.plan import Plan
from thrifty.prune.apply import cut, kept_indices, lengths_of, smaller
from thrifty.prune.coupling import Coupling
from thrifty.prune.gating import state_of
from thrifty.prune.trial import tensors_of

_FORMAT = "thrifty compact 1"
WEIGHTS, KEPT = "model.safetensors", "kept.json"


def save(folder: Path, model: nn.Module, plan: Plan, coupling: Coupling) -> nn.Module:
    """Write what `plan` keeps of the whole `model` into `folder` (two files), and return that small network.

    The last of the two files to appear is `kept.json`, so a folder that has it is whole.
    """
    small = smaller(model, coupling, plan.keep)
    kept = kept_indices(model, coupling, plan.keep)
    record = {
        "format": _FORMAT,
        "method": plan.method,
        "kept": {name: {str(dim): index.tolist() for dim, index in dims.items()} for name, dims in kept.items()},
        "sizes": {path: sorted(sizes.items()) for path, sizes in lengths_of(coupling, plan.keep).items()},
    }
    try:
        (folder / KEPT).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder / KEPT}: {error.strerror}") from error
    with replacing(folder / WEIGHTS) as temporary:
        save_file(_distinct(small), temporary, metadata={"format": _FORMAT})
    write_text(folder / KEPT, json.dumps(record) + "\n")
    return small


def load(model: nn.Module | Callable[[], nn.Module], folder: Path) -> nn.Module:
    """The small network that `save` wrote, built from its whole definition: a model (left as it is) or what makes one.

    Raises `DataError` where the folder holds something else or the definition is another one.
    """
    try:
        record = json.loads((folder / KEPT).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
        if record["format"] != _FORMAT:
            raise DataError(f"{folder} has the format '{record['format']}', not '{_FORMAT}'")
        kept = {
            name: {int(dim): torch.tensor(index, dtype=torch.int64) for dim, index in dims.items()}
            for name, dims in record["kept"].items()
        }
        sizes = {path: dict(pairs) for path, pairs in record["sizes"].items()}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder} holds no small network ({error}); name a folder that thrifty prune wrote") from error
    small = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
    state = state_of(small)
    for name, dims in kept.items():
        for dim, index in dims.items():
            size = state[name].shape[dim] if name in state and dim < state[name].ndim else 0
            if not len(index) or int(index.min()) < 0 or int(index.max()) >= size:
                raise DataError(f"{folder} is of another network: {type(small).__name__} has no {name} of such a size")
    cut(small, kept, sizes)
    _fill(small, weights, folder)
    return small


def export_onnx(model: nn.Module, inputs: tuple[Any, ...], path: Path, tolerance: float = 1e-4) -> float:
    """Write an ONNX file and run it in ONNX Runtime: returns the largest difference of outputs.

    The batch size is free where the model's own code does not fix it (as `len(x)` does, unlike `x.shape[0]`). Raises
    `ModelError` where the packages are missing (`pip install thrifty[prune]`), the model cannot be exported, or the
    difference is above `tolerance` times the largest output.
    """
    check_onnx()
    import onnxruntime

    model = copy.deepcopy(model).eval().cpu()
    inputs = tuple(value.cpu() if isinstance(value, Tensor) else value for value in inputs)
    free = tuple({0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.ndim else None for value in inputs)
    with torch.no_grad():
        expected = tensors_of(model(*inputs))
        try:
            with _quiet():
                program = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=free, verbose=False)
        except Exception as error:  # whatever the exporter raises
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{type(model).__name__} cannot be exported to ONNX: {said}") from error
    assert program is not None
    with replacing(path) as temporary:
        program.save(temporary)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {spec.name: value.numpy() for spec, value in zip(session.get_inputs(), tensors_of(inputs), strict=True)}
    found = [torch.from_numpy(value) for value in session.run(None, given)]
    difference = max(float((one - other).abs().max()) for one, other in zip(expected, found, strict=True))
    scale = max(float(one.abs().max()) for one in expected)
    if not difference <= tolerance * max(scale, 1.0):
        raise ModelError(f"{path}: ONNX Runtime differs by {difference:.3g} from the network; do not use this file")
    return difference


def check_onnx() -> None:
    """Raise `ModelError` where a package that ONNX files need is missing."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise ModelError(f"ONNX needs {name}, which is not installed; run: pip install 'thrifty[prune]'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch.onnx says about its own internals and packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _distinct(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with every tensor under its first name only, as safetensors wants it."""
    names = {id(tensor): name for name, tensor in reversed(state_of(model).items())}
    state = model.state_dict(keep_vars=True)
    return {name: value.detach().contiguous() for name, value in state.items() if names.get(id(value), name) == name}


def _fill(small: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    asked = _distinct(small)
    wrong = [name for name in {**asked, **weights} if name not in asked or name not in weights]
    wrong += [name for name in asked if name in weights and asked[name].shape != weights[name].shape]
    if wrong:
        raise DataError(f"{folder} is of another network than {type(small).__name__}: {wrong[0]} does not fit")
    small.load_state_dict(weights, strict=False)  # what is missing are other names of what is there
