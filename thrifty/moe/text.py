"""Text to learn from: files, folders or known texts as windows of tokens, and never the text that is measured on."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from thrifty import data
from thrifty.errors import DataError
from thrifty.llm import LanguageModel

SUFFIXES = (".txt", ".txt.gz")
SHINGLE = 13
"""Words that must agree in a row for two texts to share a passage (as in GPT-3's check of its training data)."""
MOST_SHARED = 0.01
HELD_OUT = 10
"""Every tenth window of each text is held out of training: for choosing, never for the final numbers."""


@dataclass(frozen=True)
class Corpus:
    """Windows of tokens to learn from, one tensor [windows, window] for each text.

    Batches take turns over the texts, so that a short text counts as much as a long one; within a text every window
    comes once before any comes twice. What a step sees follows from the seed and the number of the step alone, so a
    training that was interrupted goes on with what it would have seen.
    """

    names: tuple[str, ...]
    texts: tuple[Int[Tensor, "_ window"], ...]
    held_out: Int[Tensor, "_ window"]
    seed: int = 0

    @property
    def window(self) -> int:
        """Tokens of a window."""
        return self.held_out.shape[1]

    @property
    def num_tokens(self) -> int:
        """Tokens that can be learnt from, held-out ones left out."""
        return sum(text.numel() for text in self.texts)

    def places(self, step: int, size: int) -> list[tuple[int, int]]:
        """Where the windows of one step are: the number of the text, and of the window in it."""
        return [self._place(step * size + slot) for slot in range(size)]

    def batch(self, step: int, size: int) -> Int[Tensor, "size window"]:
        """The windows of one step."""
        return torch.stack([self.texts[which][index] for which, index in self.places(step, size)])

    def first(self, count: int) -> Int[Tensor, "_ window"]:
        """The first `count` windows that training would see, for calibration: fewer where there are fewer."""
        return self.batch(0, min(count, sum(len(text) for text in self.texts)))

    def _place(self, slot: int) -> tuple[int, int]:
        which, position = slot % len(self.texts), slot // len(self.texts)
        count = len(self.texts[which])
        epoch, index = divmod(position, count)
        return which, _order(count, hash((self.seed, which, epoch)) % 2**63)[index]


def corpus(
    language: LanguageModel, texts: Sequence[tuple[str, str]], window: int, seed: int = 0, num_held_out: int = 16
) -> Corpus:
    """Cut `texts` (names and contents) into windows of `window` tokens.

    Raises `DataError` where a text is shorter than two windows: one to learn from and one to hold out.
    """
    kept, held = [], []
    for name, text in texts:
        ids = torch.tensor(language.encode(text), dtype=torch.long)
        count = len(ids) // window
        if count < 2:
            raise DataError(
                f"{name} has {len(ids)} tokens; training needs at least two windows of {window}: "
                "give a longer --text or a smaller --window"
            )
        windows = ids[: count * window].view(count, window)
        is_held = torch.zeros(count, dtype=torch.bool)
        is_held[HELD_OUT - 1 :: HELD_OUT] = True
        is_held[-1] |= count < HELD_OUT
        kept.append(windows[~is_held])
        held.append(windows[is_held])
    longest = max(len(windows) for windows in held)
    turns = [windows[place] for place in range(longest) for windows in held if place < len(windows)]
    return Corpus(tuple(name for name, _ in texts), tuple(kept), torch.stack(turns[:num_held_out]), seed)


def read(names: Sequence[str]) -> list[tuple[str, str]]:
    """The texts called `names`: known ones, `.txt` or `.txt.gz` files, folders of those, or `hf:NAME` (`hf:NAME:SPLIT`)
    for a data set of the library `datasets` with a column `text`.

    Raises `DataError` for what is no text.
    """
    texts = []
    for name in names:
        if name.startswith("hf:"):
            texts.append((name, _hugging_face(name.removeprefix("hf:"))))
        elif Path(name).expanduser().is_dir():
            texts.append((name, _folder(Path(name).expanduser())))
        else:
            texts.append((name, data.text(name)))
    return texts


def usual() -> tuple[list[tuple[str, str]], tuple[str, str]]:
    """Texts to learn from and the text to measure on where none was asked for: WikiText-2's validation part and the
    books, measured on WikiText-2's test part; where these are not here, Python's help pages, the last quarter held back
    for measuring."""
    names = [name for name in ("wikitext-2-valid", "books") if data.is_here(name)]
    measured, text = data.default_text()
    if names and measured != "python-topics":
        return read(names), (measured, text)
    paragraphs = data.text("python-topics").split("\n\n")
    cut = len(paragraphs) * 3 // 4
    held = set(paragraphs[cut:])
    learnt = "\n\n".join(one for one in paragraphs[:cut] if one not in held)  # the help pages repeat themselves
    return [("python-topics (first three quarters)", learnt)], (
        "python-topics (last quarter)",
        "\n\n".join(paragraphs[cut:]),
    )


def check_apart(learnt: Sequence[tuple[str, str]], measured: tuple[str, str]) -> None:
    """Raise `DataError` where a text to learn from holds passages of the text that is measured on."""
    rows = measured[1].split()
    passages = {hash(tuple(rows[start : start + SHINGLE])) for start in range(len(rows) - SHINGLE + 1)}
    for name, text in learnt:
        words = text.split()
        starts = range(0, len(words) - SHINGLE + 1, SHINGLE)
        shared = sum(hash(tuple(words[start : start + SHINGLE])) in passages for start in starts)
        possible = min(len(starts), max(1, len(passages) // SHINGLE))
        if name == measured[0] or shared > MOST_SHARED * possible:
            raise DataError(
                f"{name} shares {min(1.0, shared / max(1, possible)):.0%} of its passages with {measured[0]}, "
                "which is measured on; learn from another text"
            )


@lru_cache(maxsize=64)
def _order(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def _folder(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.name.endswith(SUFFIXES))
    if not files:
        raise DataError(f"{folder} holds no {' or '.join(SUFFIXES)} file; name a folder with texts")
    return "\n\n\n".join(data.text(file) for file in files)


def _hugging_face(name: str) -> str:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(f"hf:{name} needs the library datasets; run: pip install datasets") from error
    path, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(path, split=split or "train")
        return "\n".join(rows["text"])
    except Exception as error:  # datasets raises many kinds; each means that there is no text to be had
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"hf:{name} cannot be read as a text: {first}; name a data set with a column text") from error
