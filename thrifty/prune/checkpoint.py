"""The state of a run on disk: whole files or none, read back without running anything that they hold."""

import io
import json
from pathlib import Path
from typing import Any

import torch

from thrifty.errors import DataError, SettingError
from thrifty.files import replacing, write_text

STATE, LOG = "state.pt", "log.jsonl"
RESULTS = ("kept.json", "model.safetensors", "plan.safetensors", "model.onnx", "report.html", "report.json")
"""What a run that ended leaves beside them."""


def save(folder: Path, state: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Write a state (numbers, texts, tensors, and lists and dicts of them) and the lines of the log."""
    whole = io.BytesIO()
    torch.save(state, whole)
    with replacing(folder / STATE) as temporary:
        temporary.write_bytes(whole.getbuffer())
    write_log(folder, history)


def write_log(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write what was noted, a line of JSON each."""
    write_text(folder / LOG, "".join(json.dumps(line) + "\n" for line in history))


def load(folder: Path, about: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Read the state of a run.

    Raises `DataError` where there is none, `SettingError` where it is of a run with other settings than `about`.
    """
    path = folder / STATE
    if not path.is_file():
        raise DataError(f"{folder} holds no run that could go on (no {STATE}); start one without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises for a broken file depends on where it breaks
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())[:120]}); start again") from error
    found = state["about"]
    changed = [name for name in about if found.get(name) != about[name]]
    if changed:
        told = "; ".join(f"{name}: {found.get(name)} then, {about[name]} now" for name in changed)
        raise SettingError(f"{folder} holds a run with other settings ({told}); ask for the same, or another folder")
    return state


def exists(folder: Path) -> bool:
    """Whether the folder holds the state of a run."""
    return (folder / STATE).is_file()


def remove(folder: Path) -> None:
    """Forget the run in the folder, if there is one, and what came of it."""
    for name in (*RESULTS, STATE, LOG):
        (folder / name).unlink(missing_ok=True)
