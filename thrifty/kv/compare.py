"""Measure codecs against the plain cache in one run, and make a report of it."""

from dataclasses import Field, dataclass, fields, replace
from typing import Any

from torch import Tensor

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.kv import measure
from thrifty.kv.apply import apply
from thrifty.kv.blocks import Codec
from thrifty.kv.cost import has_bits
from thrifty.kv.job import KvJob
from thrifty.kv.measure import MakeCache, Protocol
from thrifty.llm import LanguageModel
from thrifty.plan import Plan
from thrifty.progress import Track
from thrifty.report import Column, Plot, Report, Series

REFERENCE = "plain"


@dataclass(frozen=True)
class Entry:
    """One codec in a comparison: its catalogue name, and the plan that says what each layer spends."""

    codec: str
    job: KvJob
    plan: Plan

    @property
    def label(self) -> str:
        """Codec, settings that are not the usual ones, and bits: `hack v1 4/2`, `kivi group=64 2/2`."""
        chosen: Any = self.job.codec
        words = [self.codec]
        for one in fields(chosen):
            value = getattr(chosen, one.name)
            if value != _usual(chosen, one) and one.name not in ("k_bits", "v_bits"):
                words.append(value if isinstance(value, str) else f"{one.name}={value}")
        if has_bits(chosen):
            words.append(", ".join(f"{k}/{v}" for k, v in sorted(self._bits())))
        return " ".join(words)

    @property
    def make(self) -> MakeCache:
        """Makes a fresh cache in which every query sees what a token-by-token run would show it."""
        return lambda: apply(self.plan, self.job, prefill="coded")

    def settings(self) -> dict[str, Any]:
        """The codec's settings, and who chose the bits."""
        return {**settings.shown(self.job.codec), "method": self.plan.method}

    def _bits(self) -> set[tuple[int, int]]:
        keep = self.plan.keep
        pairs = [(keep[name].int(), keep[f"{name[:-1]}v"].int()) for name in keep if name.endswith(".k")]
        return {pair for k, v in pairs for pair in zip(k.tolist(), v.tolist(), strict=True)}


def entry(
    language: LanguageModel, name: str, codec: Codec, method: Any, keep: str | None = None, num_tokens: int = 2048
) -> Entry:
    """Plan `codec` for the model with `method`, which has a `plan(job)`."""
    job = KvJob.of(language.model, codec, keep, num_tokens, language.encode)
    return Entry(name, job, method.plan(job))


def rows(
    language: LanguageModel, entries: list[Entry], windows: Tensor, text_name: str, protocol: Protocol, track: Track
) -> list[dict[str, Any]]:
    """One result per entry, with the keys that docs/json.md describes. `windows` [windows, window] are token ids of the
    text called `text_name`."""
    labels = [one.label for one in entries]
    if len(set(labels)) < len(labels):
        raise SettingError(f"two entries are alike: {', '.join(labels)}")
    caches = {one.label: one.make for one in entries}
    parts = [
        measure.sizes(language, caches, protocol),
        measure.speed(language, caches, protocol, track),
        measure.quality(language, windows, caches, protocol, track),
        measure.recall(language, caches, protocol, track),
    ]
    about = {"text": text_name, "windows": len(windows), "window": protocol.window, "model": language.name}
    results = []
    for one in entries:
        result: dict[str, Any] = {"codec": one.codec, "label": one.label, "settings": one.settings()}
        for part in parts:
            result |= part[one.label]
        results.append(result | about)
    return results


def reference_row(row: dict[str, Any]) -> dict[str, Any]:
    """The plain cache as a row of its own, from what `row` was compared with; bytes as if held in bfloat16."""
    contexts = row["bytes_per_token"]
    return {
        "codec": REFERENCE,
        "label": REFERENCE,
        "ppl": row["ppl_plain"],
        "ppl_ratio": 1.0,
        "kl": 0.0,
        "top1": 1.0,
        "passkey": row["passkey_plain"],
        "bytes_per_token": dict.fromkeys(contexts, row["bytes_per_token_bf16"]),
        "bytes_ratio": 1.0,
        "tokens_per_second": row.get("tokens_per_second_plain"),
    }


def report(title: str, kind: str, results: list[dict[str, Any]], provenance: dict[str, Any]) -> Report:
    """Table, plots and notes of a comparison; the plain cache is the first row."""
    first = results[0]
    shown = [reference_row(first), *results]
    contexts = [tokens for tokens in first["bytes_per_token"] if tokens not in ("1024", "4096")]  # plots show all
    columns = [
        Column("label", "cache"),
        Column("ppl", "perplexity", ".3f"),
        Column("ppl_ratio", "ratio to plain", ".4f"),
        Column("kl", "KL divergence", ".4f"),
        Column("top1", "top-1 agreement", ".1%"),
        Column("passkey", "passkeys found", ".0%"),
        *(Column(f"bytes_per_token.{tokens}", f"bytes/token at {_short(tokens)}", ",.0f") for tokens in contexts),
        Column("bytes_ratio", f"share of bf16 at {_short(first['bytes_ratio_context'])}", ".1%"),
        Column("tokens_per_second", "tokens/s", ".1f"),
    ]
    best = min(results, key=lambda row: (row["ppl_ratio"] > 1.02, row["bytes_ratio"]))
    headline = (
        f"{best['label']} holds a token in {best['bytes_ratio']:.1%} of the bytes of bf16 "
        f"and reads {best['text']} with {best['ppl_ratio'] - 1:+.1%} perplexity."
    )
    return Report(
        title=title,
        kind=kind,
        rows=shown,
        columns=columns,
        headline=headline,
        plots=plots(shown),
        notes=notes(first),
        provenance=provenance,
    )


def plots(shown: list[dict[str, Any]]) -> list[Plot]:
    """Quality against bytes per token, and bytes against context length."""
    at = str(shown[1]["bytes_ratio_context"])
    points = [Series(row["label"], [row["bytes_per_token"][at]], [row["kl"]], [row["label"]]) for row in shown[1:]]
    lines = [
        Series(
            row["label"],
            [int(tokens) for tokens in row["bytes_per_token"]],
            [held * int(tokens) / 2**20 for tokens, held in row["bytes_per_token"].items()],
        )
        for row in shown
    ]
    return [
        Plot(
            "Quality against size",
            f"bytes per token at {_short(at)} tokens",
            "KL divergence from plain (nats)",
            points,
            kind="scatter",
            log_y=True,
            caption="Left is smaller, down is closer to the plain cache.",
        ),
        Plot(
            "Size against context",
            "context (tokens)",
            "cache of one sequence (MiB)",
            lines,
            log_x=True,
            log_y=True,
            caption="Bytes of the real tensors: codes, scales, sums, sinks and the open block. Plain counted in bf16.",
        ),
    ]


def notes(row: dict[str, Any]) -> list[str]:
    """What a reader must know to judge the numbers."""
    return [
        f"Perplexity, KL divergence (nats) and top-1 agreement: {row['windows']} windows of {row['window']} tokens of "
        f"{row['text']}, {row['predictions']:,} predictions, read through the cache: every closed block that a query "
        "sees is codes. The standard error of the ratio over windows is "
        f"{row['ppl_ratio_error']:.4f} for {row['label']}.",
        "Bytes per token: real tensors of a filled cache divided by its tokens, everything counted. The plain cache "
        "is counted in bfloat16, whatever the model computes in.",
        "Tokens per second: greedy decoding of one sequence after "
        f"{row.get('speed_context', '–')} tokens, median step, caches taking turns.",
    ]


def _usual(chosen: Any, setting: Field) -> Any:
    """What a setting would be if only the others were given."""
    try:
        return getattr(replace(chosen, **{setting.name: setting.default}), setting.name)
    except SettingError:  # it goes with another setting that was changed
        return setting.default


def _short(tokens: str | int) -> str:
    count = int(tokens)
    return f"{count // 1024}k" if count >= 1024 and count % 1024 == 0 else str(count)
