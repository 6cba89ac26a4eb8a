"""What each setting beyond the papers buys: ablations of `Hack` at the bytes of the published one, KIVI, and peers.

    python benchmarks/kv_quality.py [--device cuda] [--text wikitext-2-test] [--windows 1000] [--window 2048]
        [--batch 16] [--passkeys 1024 2048 4096] [--out results/kv_quality.jsonl] [--only LABEL ...]

One JSON line a row: `settings`, perplexity, its ratio to the plain cache, KL divergence and top-1 agreement as in
`thrifty kv --json`, every query reading what a token-by-token run would show it, windows in batches; bytes of a
filled cache. Settings were chosen on wikitext-2-valid; `Sensitivity` reads books. Transformers' `QuantizedCache`
(`kv_peers.py`) reads a window in pieces of as many tokens as it keeps uncoded, which is what it does token by token.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from kv_peers import Quantized
from torch import Tensor
from transformers import Cache, DynamicCache

from thrifty import data, llm
from thrifty.kv import compare, measure
from thrifty.kv.blocks import HeadShape
from thrifty.kv.codecs.ems import Ems
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.codecs.kivi import Kivi
from thrifty.kv.methods.sensitivity import Sensitivity
from thrifty.kv.methods.uniform import Uniform

NEW: dict[str, Any] = {"fit": "unbiased", "rotation": "all", "summation_elimination": False}
UNIFORM: dict[str, Any] = {
    "hack 2/2": Hack(),
    "hack 2/2, no sinks": Hack(sinks=0),
    "hack 2/2, blocks of 32": Hack(partition=32),
    "hack 2/2 + unbiased": Hack(fit="unbiased"),
    "hack 2/2 + rotation of values": Hack(rotation="values"),
    "hack 2/2 + rotation": Hack(rotation="all"),
    "hack 2/2 + both, no sums": Hack(**NEW),
    "kivi 2/2": Kivi(),
    "kivi 2/2, groups of 64": Kivi(group=64, residual=64),
    "hack 4/2": Hack(k_bits=4),
    "hack 4/2 + both, no sums": Hack(k_bits=4, **NEW),
    "kivi 4/2, groups of 64": Kivi(k_bits=4, group=64, residual=64),
    "hack 3/3 + both, no sums": Hack(k_bits=3, v_bits=3, **NEW),
    "hack 4/4": Hack(k_bits=4, v_bits=4),
    "hack 4/4 + both, no sums": Hack(k_bits=4, v_bits=4, **NEW),
    "kivi 4/4, groups of 64": Kivi(k_bits=4, v_bits=4, group=64, residual=64),
}
MERGED: dict[str, Any] = {  # fewer tokens at more bits: about as many bytes as 2/2, 4/2, 4/2, 4/4; and fewer
    "hack 4/4, half the tokens": Ems("finest"),
    "hack 4/4, three quarters of the tokens": Ems("finest", unit=256, kept=192),
    "hack 8/4, half the tokens": Ems("finest", k_bits=8),
    "hack 8/8, half the tokens": Ems("finest", k_bits=8, v_bits=8),
    "hack 4/2, half the tokens": Ems("balanced"),
    "hack 2/2, half the tokens": Ems("smallest"),
}
MIXED: dict[str, tuple[Literal["layer", "head"], Hack]] = {  # as many bytes as this published codec
    f"hack by {by} at the bytes of hack {codec.k_bits}/{codec.v_bits}": (by, codec)
    for codec in (Hack(), Hack(k_bits=4), Hack(k_bits=4, v_bits=4))
    for by in ("layer", "head")
}
PEERS: dict[str, Quantized] = {  # at the bytes of `smallest`, under and over `balanced`, at the bytes of `finest`
    "QuantizedCache quanto 2 bits": Quantized("quanto", 2),
    "QuantizedCache quanto 2 bits, groups of 32": Quantized("quanto", 2, group=32),
    "QuantizedCache quanto 2 bits, groups of 16": Quantized("quanto", 2, group=16),
    "QuantizedCache quanto 4 bits": Quantized("quanto", 4),
    "QuantizedCache hqq 2 bits": Quantized("hqq", 2),
    "QuantizedCache hqq 4 bits": Quantized("hqq", 4),
}


def entries(language: llm.LanguageModel, only: list[str]) -> dict[str, compare.Entry]:
    """The rows, each with a plan."""
    found = {}
    layers, heads, width = llm.attention_shape(language.model)
    for label in only or [*MIXED, *UNIFORM, *MERGED]:
        if label in MIXED:
            by, codec = MIXED[label]
            keep = str(layers * codec.bytes_per_token(HeadShape(heads, width), 2048))
            method = Sensitivity(by=by, text="books")
            found[label] = compare.entry(language, "hack", Hack(**NEW), method, keep)
        else:
            codec = (UNIFORM | MERGED)[label]
            found[label] = compare.entry(language, type(codec).__name__.lower(), codec, Uniform())
    return found


@torch.inference_mode()
def tally(
    model: Any,
    windows: Tensor,
    hidden: list[Tensor] | None,
    make: measure.MakeCache,
    batch: int,
    piece: int | None = None,
) -> Any:
    """(sums over predictions, last hidden states of each window); windows are read whole or `piece` by piece."""
    sums, states, head = measure.Tally(), [], model.get_output_embeddings().weight
    for start in range(0, len(windows), batch):
        ids, cache = windows[start : start + batch].to(model.device), make()
        pieces = ids.split(piece or ids.shape[1], dim=1)
        states += list(torch.cat([model.model(x, past_key_values=cache, use_cache=True)[0] for x in pieces], dim=1))
        for index in range(start, start + len(ids)):
            scores = (states[index][:-1] @ head.T).float().log_softmax(-1)
            plain = scores if hidden is None else (hidden[index][:-1] @ head.T).float().log_softmax(-1)
            target = windows[index, 1:, None].to(model.device)
            sums.loss.append(-scores.gather(1, target).mean().item())
            sums.divergence.append((plain.exp() * (plain - scores)).sum(-1).mean().item())
            sums.agreed += int((scores.argmax(-1) == plain.argmax(-1)).sum())
            sums.predictions += len(target)
    return sums, states


def measured(
    language: llm.LanguageModel,
    label: str,
    windows: Tensor,
    reference: tuple[measure.Tally, list[Tensor]],
    batch: int,
    protocol: measure.Protocol,
) -> dict[str, Any]:
    """The row called `label`: quality, bytes, and passkeys where the protocol has any."""
    peer = PEERS.get(label)
    if peer:
        make = partial(peer.make, language.model)
        row: dict[str, Any] = {"codec": "QuantizedCache", "label": label, "settings": peer.settings()}
        held = {str(tokens): peer.filled_bytes(language, tokens) / tokens for tokens in protocol.contexts}
        whole = 4 * math.prod(llm.attention_shape(language.model))
        row |= {"bytes_per_token": held, "bytes_per_token_bf16": whole}
        row |= {"bytes_ratio": held[str(protocol.window)] / whole, "bytes_ratio_context": protocol.window}
        protocol = replace(protocol, chunk=peer.residual)
    else:
        one = entries(language, [label])[label]
        make = one.make
        row = {"codec": one.codec, "label": label, "settings": one.settings()}
        row |= measure.sizes(language, {label: make}, protocol)[label]
        row["bits"] = {name: kept.tolist() for name, kept in one.plan.keep.items()}
    plain, hidden = reference
    found, _ = tally(language.model, windows, hidden, make, batch, protocol.chunk if peer else None)
    row |= found.row(plain) | {"losses": found.loss, "losses_plain": plain.loss}
    if protocol.passkey_tokens:
        row |= measure.recall(language, {label: make}, protocol)[label]
    return row


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--text", default="wikitext-2-test")
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--passkeys", type=int, nargs="*", default=[], help="lengths of prompts that hide a number")
    parser.add_argument("--out", type=Path, default=Path("results/kv_quality.jsonl"))
    arguments = parser.parse_args()
    start = time.perf_counter()
    language = llm.load(arguments.model, device=arguments.device)
    lengths = tuple(sorted({512, 2048, 8192, arguments.window}))
    protocol = measure.Protocol(
        arguments.windows,
        arguments.window,
        passkey_tokens=tuple(arguments.passkeys),
        contexts=lengths,
        ratio_context=arguments.window,
    )
    windows = measure.windows_of(language, data.text(arguments.text), arguments.text, protocol)

    def plain_cache() -> Cache:
        return DynamicCache(config=language.model.config)

    plain = tally(language.model, windows, None, plain_cache, arguments.batch)
    about = {"text": arguments.text, "windows": len(windows), "window": protocol.window, "model": language.name}
    about["command"] = " ".join(sys.argv)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for label in arguments.only or [*MIXED, *UNIFORM, *MERGED]:
        row = measured(language, label, windows, plain, arguments.batch, protocol) | about
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        shown = f"{row['ppl_ratio']:.4f} +- {row['ppl_ratio_error']:.4f}  KL {row['kl']:.4f}  {row['top1']:.1%}"
        if arguments.passkeys:
            shown += f"  passkeys {row['passkey']:.0%}, plain {row['passkey_plain']:.0%}"
        print(f"{label:42s} {row['bytes_ratio']:.2%}  {shown}  {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
