"""Windows of a text, and sums over predictions."""

import math

import pytest

from thrifty.errors import DataError
from thrifty.llm import LanguageModel
from thrifty.perplexity import Tally, windows_of


class Letters:
    """A tokenizer with one token for each character, and no model."""

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


class NoModel:
    """A model that reads as much as it is given."""

    class config:
        @staticmethod
        def get_text_config() -> object:
            return object()


READER = LanguageModel("letters", NoModel(), Letters())


def test_windows_are_the_first_ones_and_do_not_overlap() -> None:
    windows = windows_of(READER, "abcdefghij", "text", 2, 4)
    assert ["".join(map(chr, row)) for row in windows.tolist()] == ["abcd", "efgh"]
    assert windows_of(READER, "abcdefghij", "text", 9, 4).shape == (2, 4)


def test_a_text_without_one_window_is_refused() -> None:
    with pytest.raises(DataError, match="my text has 3 tokens"):
        windows_of(READER, "abc", "my text", 1, 4)


def test_a_row_compares_with_the_reference_window_by_window() -> None:
    mine, reference = Tally([1.1, 2.3], [0.1, 0.3], 6, 8), Tally([1.0, 2.0])
    row = mine.row(reference, "dense")
    assert row["ppl_dense"] == pytest.approx(math.exp(1.5))
    assert row["ppl"] == pytest.approx(math.exp(1.7))
    assert row["ppl_ratio"] == pytest.approx(math.exp(0.2))
    assert row["ppl_ratio_error"] == pytest.approx(math.exp(0.2) * 0.1)
    assert row["kl"] == pytest.approx(0.2)
    assert row["top1"] == 0.75
