"""Find a method, a codec or a scorer by the name of its file: `snap_kv.py` holds `SnapKv` and is called `snap_kv`.

There is no registry: the folder is the list.
"""

import ast
import difflib
import importlib
from pathlib import Path

from thrifty.errors import SettingError

SYSTEMS = ("prune", "moe", "kv", "graph")
KINDS = ("methods", "codecs", "scorers")
_ROOT = Path(__file__).parent


def names(system: str, kind: str = "methods") -> list[str]:
    """The names of all methods, codecs or scorers of a system, without importing any."""
    return sorted(path.stem for path in (_ROOT / system / kind).glob("*.py") if path.stem != "__init__")


def about(system: str, kind: str, name: str) -> str:
    """The first line of the file's docstring, read without importing it."""
    text = (_ROOT / system / kind / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def find(system: str, name: str, kind: str = "methods") -> type:
    """The class called `name`. Raises `SettingError` listing the right names."""
    known = names(system, kind)
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise SettingError(f"{system} has no {kind.removesuffix('s')} {name}{hint}; it has {', '.join(known)}")
    return getattr(importlib.import_module(f"thrifty.{system}.{kind}.{name}"), class_name(name))


def class_name(name: str) -> str:
    """`snap_kv` to `SnapKv`."""
    return "".join(word.capitalize() for word in name.split("_"))


def name_of(chosen: object) -> str:
    """The name under which the class of `chosen` is found: that of its file."""
    return type(chosen).__module__.rpartition(".")[2]
