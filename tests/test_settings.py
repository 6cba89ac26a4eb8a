"""Settings are checked when they are made, and readable from text."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from thrifty import settings
from thrifty.errors import SettingError


@dataclass(frozen=True)
class Inner:
    power: float = 2.0


@dataclass(frozen=True)
class Example:
    bits: Literal[2, 4] = 2
    mode: Literal["fast", "exact"] | None = None
    either: Literal[8, "exact"] = 8
    steps: int = 10
    rate: float = 0.1
    limit: int | None = None
    is_loud: bool = False
    name: str = "x"
    sizes: tuple[int, ...] = (1, 2)
    depths: tuple[float, ...] = ()
    inner: Inner = field(default_factory=Inner)
    made: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        settings.check(self)


def test_a_choice_that_is_listed_is_taken() -> None:
    for values in ({"bits": 4}, {"mode": "fast"}, {"mode": None}, {"either": "exact"}, {"either": 8}):
        Example(**values)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"bits": 3}, "Example: bits=3; use one of 2, 4"),
        ({"bits": "2"}, "Example: bits=2; use one of 2, 4"),
        ({"bits": 2.0}, "Example: bits=2.0; use one of 2, 4"),
        ({"mode": "slow"}, "Example: mode=slow; use one of fast, exact, None"),
        ({"either": 16}, "Example: either=16; use one of 8, exact"),
        ({"either": True}, "Example: either=True; use one of 8, exact"),
    ],
    ids=str,
)
def test_a_choice_that_is_not_listed_is_refused_with_those_that_are(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError) as caught:
        Example(**wrong)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("bits", "4", 4),
        ("mode", "EXACT", "exact"),
        ("mode", "none", None),
        ("either", "8", 8),
        ("either", "exact", "exact"),
        ("steps", "-3", -3),
        ("rate", "1e-3", 0.001),
        ("rate", "2", 2.0),
        ("limit", "none", None),
        ("limit", "7", 7),
        ("is_loud", "yes", True),
        ("is_loud", "False", False),
        ("is_loud", "1", True),
        ("name", "a b", "a b"),
        ("sizes", "3, 4,5", (3, 4, 5)),
        ("sizes", "3", (3,)),
        ("depths", "0,0.5", (0.0, 0.5)),
        ("depths", "", ()),
    ],
)
def test_a_text_becomes_a_value_of_the_right_type(name: str, text: str, value: Any) -> None:
    found = settings.read(Example, {name: text})
    assert found == {name: value}
    assert type(found[name]) is type(value)
    assert getattr(Example(**found), name) == value


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("bits", "3", "Example: bits=3; use one of 2, 4"),
        ("mode", "slow", "Example: mode=slow; use one of fast, exact, None"),
        ("steps", "many", "Example: steps=many; use a whole number"),
        ("steps", "1.5", "Example: steps=1.5; use a whole number"),
        ("rate", "fast", "Example: rate=fast; use a number"),
        ("limit", "x", "Example: limit=x; use a whole number or none"),
        ("is_loud", "perhaps", "Example: is_loud=perhaps; use true or false"),
    ],
)
def test_a_text_that_is_no_value_is_refused_with_what_would_be(name: str, text: str, says: str) -> None:
    with pytest.raises(SettingError) as caught:
        settings.read(Example, {name: text})
    assert str(caught.value) == says


def test_a_list_that_is_none_is_refused_with_what_would_be() -> None:
    with pytest.raises(SettingError, match=r"Example: sizes=1,b; use a whole number, or several with commas between"):
        settings.read(Example, {"sizes": "1,b"})


def test_a_name_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(SettingError, match="Example has no setting bit; it has bits, mode, either, steps"):
        settings.read(Example, {"bit": "2"})
    with pytest.raises(SettingError, match="Example has no setting made"):
        settings.read(Example, {"made": "2"})


def test_a_class_without_settings_says_so() -> None:
    @dataclass(frozen=True)
    class Bare:
        pass

    with pytest.raises(SettingError, match="Bare has no setting x; it has none"):
        settings.read(Bare, {"x": "1"})


def test_what_is_shown_is_plain_enough_for_json() -> None:
    shown = settings.shown(Example(sizes=(3, 4), inner=Inner(3.0)))
    assert json.loads(json.dumps(shown)) == shown
    assert shown["sizes"] == [3, 4]
    assert shown["inner"] == {"Inner": {"power": 3.0}}
    assert shown["mode"] is None
    assert list(shown)[:3] == ["bits", "mode", "either"]
