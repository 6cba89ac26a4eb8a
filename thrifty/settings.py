"""Settings of methods and codecs: frozen, typed fields, checked when made and readable from `name=value`."""

import dataclasses
import types
import typing
from typing import Any

from thrifty.errors import SettingError


def check(settings: Any) -> None:
    """Raise `SettingError` where a field with listed choices holds another value. Call it from `__post_init__`."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        choices = _choices(hints[field.name])
        value = getattr(settings, field.name)
        if choices and not any(value == choice and type(value) is type(choice) for choice in choices):
            listed = ", ".join(str(choice) for choice in choices)
            raise SettingError(f"{type(settings).__name__}: {field.name}={value}; use one of {listed}")


def read(kind: type, pairs: dict[str, str]) -> dict[str, Any]:
    """Turn the texts of `pairs` into values of the fields of `kind`.

    Raises `SettingError` naming the right fields for a wrong name, and the right values for a wrong value.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    values = {}
    for name, text in pairs.items():
        if name not in names:
            listed = ", ".join(names) or "none"
            raise SettingError(f"{kind.__name__} has no setting {name}; it has {listed}")
        values[name] = _value(f"{kind.__name__}: {name}", hints[name], text)
    return values


def shown(settings: Any) -> dict[str, Any]:
    """The fields as plain values for JSON: tuples as lists, nested settings as dicts with their class name."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            value = {type(value).__name__: shown(value)}
        result[field.name] = list(value) if isinstance(value, tuple) else value
    return result


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return tuple(one for part in typing.get_args(hint) for one in _alternatives(part))
    return (hint,)


def _choices(hint: Any) -> list[Any]:
    alternatives = _alternatives(hint)
    if not any(typing.get_origin(one) is typing.Literal for one in alternatives):
        return []
    choices: list[Any] = []
    for one in alternatives:
        choices += [None] if one is type(None) else list(typing.get_args(one))
    return choices


def _value(asked: str, hint: Any, text: str) -> Any:
    choices = _choices(hint)
    if choices:
        for choice in choices:
            if str(choice).lower() == text.lower():
                return choice
        listed = ", ".join(str(choice) for choice in choices)
        raise SettingError(f"{asked}={text}; use one of {listed}")
    for one in _alternatives(hint):
        try:
            return _parse(one, text)
        except ValueError:
            continue
    wanted = " or ".join(_describe(one) for one in _alternatives(hint))
    raise SettingError(f"{asked}={text}; use {wanted}")


def _parse(hint: Any, text: str) -> Any:
    if hint is type(None) and text.lower() == "none":
        return None
    if hint is bool and text.lower() in ("true", "false", "yes", "no", "1", "0"):
        return text.lower() in ("true", "yes", "1")
    if hint in (int, float):
        return hint(text)
    if hint is str:
        return text
    if typing.get_origin(hint) is tuple:
        element = typing.get_args(hint)[0]
        return tuple(_parse(element, part.strip()) for part in text.split(",") if part.strip())
    raise ValueError(text)


def _describe(hint: Any) -> str:
    if hint is bool:
        return "true or false"
    if hint is int:
        return "a whole number"
    if hint is float:
        return "a number"
    if hint is type(None):
        return "none"
    if typing.get_origin(hint) is tuple:
        return f"{_describe(typing.get_args(hint)[0])}, or several with commas between"
    return getattr(hint, "__name__", str(hint))
