"""Names for codecs with settings: the best that was found at about 2.6, 3.6 and 4.6 bits per value.

Chosen on the validation text of WikiText-2 with SmolLM2-135M; the README has what they reach on the test text. A
preset stands wherever a codec does (`--codec balanced`), and its settings can be changed like those of a codec.
"""

from typing import Any

from thrifty import catalogue, console, settings
from thrifty.errors import SettingError

_UNBIASED = {"fit": "unbiased", "rotation": "all", "summation_elimination": "false"}
PRESETS: dict[str, tuple[str, dict[str, str]]] = {
    "smallest": ("hack", {"k_bits": "2", "v_bits": "2", **_UNBIASED}),
    "balanced": ("hack", {"k_bits": "4", "v_bits": "2", **_UNBIASED}),
    "finest": ("hack", {"k_bits": "4", "v_bits": "4", **_UNBIASED}),
}
"""By name: the codec, and the settings as they would be typed."""


def codec_of(name: str, changes: dict[str, str] | None = None) -> Any:
    """The codec or preset called `name`, with `changes` to its settings. Raises `SettingError` listing what there is.

    `codec_of("balanced", {"sinks": "8"})`, or `codec_of("balanced:sinks=8")`, is the preset with 8 sinks.
    """
    name, _, texts = name.partition(":")
    codec = kind_of(name)
    written = console.pairs_of(tuple(text for text in texts.split(",") if text), f"{name}:")
    return codec(**settings.read(codec, PRESETS.get(name, ("", {}))[1] | written | (changes or {})))


def kind_of(name: str) -> type:
    """The class of the codec or preset called `name`."""
    try:
        return catalogue.find("kv", PRESETS.get(name, (name, {}))[0], "codecs")
    except SettingError as error:
        raise SettingError(f"{error}; presets: {', '.join(PRESETS)}") from None


def about(name: str) -> str:
    """What the preset called `name` stands for, as it would be typed."""
    codec, chosen = PRESETS[name]
    return f"{codec} with {', '.join(f'{field}={text}' for field, text in chosen.items())}"
