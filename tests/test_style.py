"""The house rules that a machine can check; ruff, pyright and import-linter check the rest."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Generic, Protocol

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = sorted((ROOT / "thrifty").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").iterdir())
METHODS = [
    path for path in PRODUCT if path.parent.name in {"methods", "codecs", "scorers"} and path.name != "__init__.py"
]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 59
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "base", "core", "manager", "misc"}
MAY_BE_BASES = {object, tuple, Generic, Protocol}  # tuple: a NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def nodes(*kinds: type[ast.AST], paths: list[Path] = PRODUCT) -> Iterator[tuple[str, ast.AST]]:
    """Yield every node of these kinds with its place, as `thrifty/plan.py:12`."""
    for path in paths:
        for node in ast.walk(tree(path)):
            if isinstance(node, kinds):
                yield f"{named(path)}:{getattr(node, 'lineno', 1)}", node


def lines_with(pattern: str, paths: list[Path]) -> list[str]:
    return [
        f"{named(path)}:{number}: {line.strip()}"
        for path in paths
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]


def class_name(path: Path) -> str:
    return "".join(word.capitalize() for word in path.stem.split("_"))


def own_class(path: Path) -> ast.ClassDef | None:
    return next((n for n in tree(path).body if isinstance(n, ast.ClassDef) and n.name == class_name(path)), None)


def is_frozen(node: ast.ClassDef) -> bool:
    return any(
        isinstance(decorator, ast.Call)
        and ast.unparse(decorator.func) in {"dataclass", "dataclasses.dataclass"}
        and any(k.arg == "frozen" and ast.unparse(k.value) == "True" for k in decorator.keywords)
        for decorator in node.decorator_list
    )


def loads_torch(*arguments: str) -> bool:
    code = (
        "import sys\n"
        "from thrifty.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('LOADED' if 'torch' in sys.modules else 'LIGHT')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip().endswith("LOADED")


needs_cli = pytest.mark.skipif(not (ROOT / "thrifty/cli.py").exists(), reason="thrifty/cli.py is not written yet")


@pytest.mark.parametrize("path", METHODS, ids=named)
def test_one_file_holds_one_method_of_its_name(path: Path) -> None:
    assert own_class(path) is not None, f"{named(path)} has no class {class_name(path)}"


@pytest.mark.parametrize("path", METHODS, ids=named)
def test_settings_are_a_frozen_dataclass(path: Path) -> None:
    node = own_class(path)
    assert node is not None
    assert is_frozen(node), f"{class_name(path)} is not @dataclass(frozen=True)"


@pytest.mark.parametrize("path", METHODS, ids=named)
def test_one_method_has_one_test(path: Path) -> None:
    tests = [test for test in TESTS if test.name == f"test_{path.stem}.py"]
    assert tests, f"no tests/**/test_{path.stem}.py"
    assert any(re.search(rf"\b{class_name(path)}\b", test.read_text(encoding="utf-8")) for test in tests)


@pytest.mark.parametrize("path", METHODS, ids=named)
def test_no_method_inherits_from_a_concrete_class(path: Path) -> None:
    import torch

    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for owner in (value for value in vars(module).values() if inspect.isclass(value)):
        if owner.__module__ != module.__name__:
            continue
        for base in owner.__mro__[1:]:
            is_contract = getattr(base, "_is_protocol", False) or inspect.isabstract(base)
            is_form = base in MAY_BE_BASES or issubclass(base, Enum | torch.nn.Module)
            assert is_contract or is_form, f"{owner.__name__} inherits from {base.__name__}; wrap it in a field `inner`"


def test_no_method_passes_keywords_through() -> None:
    found = [
        place
        for place, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef, paths=METHODS)
        if isinstance(node, Function) and node.args.kwarg
    ]
    assert not found


def test_no_tool_imports_a_method_or_a_codec() -> None:
    found = [
        place
        for place, node in nodes(ast.Import, ast.ImportFrom, paths=[path for path in PRODUCT if path not in METHODS])
        if re.search(r"thrifty\.\w+(\.| import )(methods|codecs|scorers)\b", ast.unparse(node))
    ]
    assert not found, "a tool never imports a method; the catalogue finds it by name"


def test_files_are_short() -> None:
    too_long = {
        named(path): count
        for path in PRODUCT + TESTS + SCRIPTS
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES
    }
    assert not too_long


def test_functions_are_short() -> None:
    too_long = [
        f"{place} {node.name}"
        for place, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef, paths=PRODUCT + TESTS)
        if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not too_long


def test_every_name_of_a_module_says_something() -> None:
    found = [named(path) for path in PRODUCT if SAYS_NOTHING & {*path.stem.split("_"), path.parent.name}]
    assert not found


def test_init_files_hold_a_docstring_only() -> None:
    for path in (path for path in PRODUCT if path.name == "__init__.py"):
        module = tree(path)
        assert ast.get_docstring(module), f"{named(path)} has no docstring"
        assert len(module.body) == 1, f"{named(path)} holds more than a docstring"


def test_what_is_public_has_a_docstring() -> None:
    missing = [named(path) for path in PRODUCT + TESTS if not ast.get_docstring(tree(path))]
    for path in PRODUCT:
        for node in tree(path).body:
            is_public = isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")
            if is_public and not ast.get_docstring(node):
                missing.append(f"{named(path)}:{node.lineno} {node.name}")
    assert not missing


def test_tests_mirror_the_product() -> None:
    tested = {path.name for path in TESTS}
    does_something = {place.rsplit(":", 1)[0] for place, _ in nodes(ast.FunctionDef, ast.AsyncFunctionDef)}
    untested = [
        named(path)
        for path in PRODUCT
        if path.stem != "__main__" and named(path) in does_something and f"test_{path.stem}.py" not in tested
    ]
    assert not untested


def test_every_contract_can_be_checked_while_the_tests_run() -> None:
    found = [
        f"{place} {node.name}"
        for place, node in nodes(ast.ClassDef)
        if isinstance(node, ast.ClassDef)
        and any(re.match(r"(typing\.)?Protocol\b", ast.unparse(base)) for base in node.bases)
        and not any(ast.unparse(decorator).endswith("runtime_checkable") for decorator in node.decorator_list)
    ]
    assert not found, "a Protocol without @runtime_checkable cannot stand in a checked signature"


def test_no_except_is_bare() -> None:
    found = [place for place, node in nodes(ast.ExceptHandler) if isinstance(node, ast.ExceptHandler) and not node.type]
    assert not found


def test_nothing_is_left_to_do_in_a_remark() -> None:
    assert not lines_with(r"\b(TODO|FIXME|XXX)\b", PRODUCT + TESTS + SCRIPTS)


def test_no_file_names_a_place_on_one_machine() -> None:
    assert not lines_with(r"/(work|root|home)/", PRODUCT + TESTS + SCRIPTS)


def test_nothing_is_unpickled() -> None:
    imported = [
        place
        for place, node in nodes(ast.Import, ast.ImportFrom, paths=PRODUCT + TESTS)
        if re.search(r"\b(pickle|cloudpickle|dill|joblib|shelve)\b", ast.unparse(node))
    ]
    loaded = [
        place
        for place, node in nodes(ast.Call, paths=PRODUCT + TESTS)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "torch.load"
        and not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
    ]
    assert not imported + loaded


def test_no_code_of_a_model_is_trusted() -> None:
    found = [
        place
        for place, node in nodes(ast.keyword, paths=PRODUCT + TESTS)
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and ast.unparse(node.value) != "False"
    ]
    assert not found


def test_no_server_listens_to_the_world() -> None:
    found = [
        place
        for place, node in nodes(ast.Constant)
        if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::")
    ]
    assert not found


def test_every_version_that_scripts_install_is_exact() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    pinned = {plain_name(pin) for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    assert {plain_name(name) for name in asked} <= pinned


def plain_name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-").replace(".", "-")


def test_scripts_stop_at_the_first_error_and_can_be_run() -> None:
    for path in SCRIPTS:
        assert path.stat().st_mode & 0o111, f"{named(path)} is not executable"
        text = path.read_text(encoding="utf-8")
        assert text.startswith("#!/usr/bin/env python") or "set -euo pipefail" in text, named(path)


@needs_cli
@pytest.mark.parametrize("arguments", [["--help"], ["methods"]], ids=" ".join)
def test_asking_for_help_never_imports_torch(arguments: list[str]) -> None:
    assert not loads_torch(*arguments)
