"""A network by its name: one of `thrifty.prune.models`, or `package.module:function` of the user's."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thrifty.errors import ModelError, SettingError
from thrifty.prune import models


def names() -> list[str]:
    """The networks that thrifty brings along."""
    return [name for name, one in vars(models).items() if inspect.isfunction(one) and one.__module__ == models.__name__]


def model_of(name: str, num_classes: int, seed: int = 0) -> nn.Module:
    """The network called `name`, with weights that depend on the seed alone.

    A function is called with `num_classes` where it takes that. Raises `SettingError` for a name that does not exist,
    `ModelError` where a function fails or gives no network.
    """
    build = _function(name) if ":" in name else _own(name)
    takes = inspect.signature(build).parameters
    given = {"num_classes": num_classes} if "num_classes" in takes else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = build(**given)
        except Exception as error:  # whatever the user's code raises
            raise ModelError(f"{name} failed with {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} gave a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _own(name: str) -> Callable[..., Any]:
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise SettingError(f"there is no model {name!r}; {hint} (or package.module:function for your own)")
    return getattr(models, name)


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise SettingError(f"model {name}: {module} cannot be imported from {here} ({error})") from error
    if not callable(found):
        raise SettingError(f"model {name}: {module} has no function {function!r}")
    return found
