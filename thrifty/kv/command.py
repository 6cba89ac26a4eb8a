"""`thrifty kv`: a compressed key-value cache measured against the plain one."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thrifty import console, progress
from thrifty.errors import SettingError, ThriftyError

if TYPE_CHECKING:
    from thrifty.report import Report


@click.command()
@click.argument("model")
@click.option(
    "--codec",
    default="hack",
    show_default=True,
    help="How keys and values are held: a codec or a preset; see thrifty methods.",
)
@click.option("--method", default="uniform", show_default=True, help="Who chooses the bits of each layer.")
@click.option("--keep", help="Budget: a share of the bf16 cache (30%) or bytes per token (7000).")
@click.option("--set", "pairs", multiple=True, metavar="FIELD=VALUE", help="A setting of the codec or the method.")
@click.option("--also", multiple=True, metavar="CODEC[:FIELD=VALUE,...]", help="Another codec in the same run.")
@click.option("--text", "text_name", help="A text set or file. Default: wikitext-2-test, else python-topics.")
@click.option("--windows", default=8, show_default=True, help="Windows of text to read.")
@click.option("--window", default=2048, show_default=True, help="Tokens of a window.")
@click.option("--passkey-tokens", default=1024, show_default=True, help="Length of the passkey prompts; 0 for none.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--seed", default=0, show_default=True)
@click.option("--save-plan", type=click.Path(path_type=Path), help="Write the plan (bits per layer) to this file.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Use a saved plan instead of a method.")
@console.JSON
@console.OUT
@console.OVERWRITE
def kv(model: str, json_file: Path | None, out: Path | None, overwrite: bool, **options: Any) -> None:
    """Measure a compressed key-value cache of MODEL against the plain one.

    MODEL is smollm2 or a folder with a causal language model. Settings are given as --set k_bits=4; a wrong name or
    value lists the right ones.
    """
    from thrifty import data

    start = time.perf_counter()
    console.check_outputs(json_file, out, overwrite)
    codec, method = _kv_choices(options["codec"], options["method"], options["pairs"])
    others = [_also(one, options["method"]) for one in options["also"]]
    protocol = _kv_protocol(options)
    name, text = (
        (options["text_name"], data.text(options["text_name"])) if options["text_name"] else data.default_text()
    )
    report = _compare_kv(model, [(options["codec"], codec, method), *others], (name, text), protocol, options, start)
    report.print()
    console.write(report, json_file, out, overwrite, measured_only=True)


def _kv_choices(codec_name: str, method_name: str, texts: tuple[str, ...]) -> tuple[Any, Any]:
    """The codec and the method with the settings in `texts`: each setting goes to the one that has it."""
    import dataclasses

    from thrifty import catalogue, settings
    from thrifty.kv import presets

    method = catalogue.find("kv", method_name)
    pairs = console.pairs_of(texts)
    of_method = {field.name for field in dataclasses.fields(method)}
    for_method = {name: text for name, text in pairs.items() if name in of_method}
    for_codec = {name: text for name, text in pairs.items() if name not in of_method}
    try:
        codec = presets.codec_of(codec_name, for_codec)
    except SettingError as error:
        if of_method and "has no setting" in str(error):
            raise SettingError(f"{error}; {method.__name__} has {', '.join(sorted(of_method))}") from None
        raise
    return codec, method(**settings.read(method, for_method))


def _also(text: str, method_name: str) -> tuple[str, Any, Any]:
    """Read `kivi:group=64,residual=64`."""
    name, _, pairs = text.partition(":")
    return (name, *_kv_choices(name, method_name, tuple(pair for pair in pairs.split(",") if pair)))


def _kv_protocol(options: dict[str, Any]) -> Any:
    from thrifty.kv.measure import Protocol

    lengths = (options["passkey_tokens"],) if options["passkey_tokens"] else ()
    return Protocol(windows=options["windows"], window=options["window"], passkey_tokens=lengths, seed=options["seed"])


def _compare_kv(
    model: str,
    choices: list[tuple[str, Any, Any]],
    text: tuple[str, str],
    protocol: Any,
    options: dict[str, Any],
    start: float,
) -> "Report":
    from thrifty import llm
    from thrifty.kv import attention, compare
    from thrifty.kv.measure import passkeys, windows_of
    from thrifty.plan import Plan
    from thrifty.report import provenance

    saved = Plan.load(options["plan_file"]) if options["plan_file"] else None
    if not text[1].strip():
        raise ThriftyError(f"{text[0]} is empty; give a text of at least one window")
    language = llm.load(model, options["dtype"], options["device"])
    attention.check(language.model)
    passkeys(language, protocol)  # a length without room is refused before anything is measured
    windows = windows_of(language, text[1], text[0], protocol)
    entries = [compare.entry(language, *one, options["keep"], protocol.ratio_context) for one in choices]
    one = entries[0] = entries[0] if saved is None else replace(entries[0], plan=saved)
    if options["save_plan"]:
        one.plan.save(options["save_plan"])
    with progress.shown() as track:
        results = compare.rows(language, entries, windows, text[0], protocol, track)
    origin = provenance(console.command(), time.perf_counter() - start)
    labels = ", ".join(entry.label for entry in entries)
    return compare.report(f"{model}: {labels} against the plain cache", "kv", results, origin)
