"""Text to learn from: windows in turns, a part held out, and never a passage of what is measured on."""

from pathlib import Path

import pytest
import torch

from thrifty import data
from thrifty.errors import DataError
from thrifty.llm import LanguageModel
from thrifty.moe import text
from thrifty.moe.text import Corpus


class Letters:
    """A tokenizer with one token for each character."""

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


@pytest.fixture
def reader() -> LanguageModel:
    return LanguageModel("letters", None, Letters())


def test_a_tenth_is_held_out_and_never_learnt_from(reader: LanguageModel) -> None:
    made = text.corpus(reader, [("a", "".join(chr(32 + i // 4) for i in range(400)))], 4)
    held = {tuple(row) for row in made.held_out.tolist()}
    learnt = {tuple(row) for row in made.texts[0].tolist()}
    assert len(held) == 10
    assert len(learnt) == 90
    assert not held & learnt


def test_every_window_comes_once_before_any_comes_twice(corpus: Corpus) -> None:
    seen = torch.cat([corpus.batch(step, 4) for step in range(20)])
    for half in seen.split(40):
        assert {tuple(row) for row in half.tolist()} == {tuple(row) for row in corpus.texts[0].tolist()}
    assert not torch.equal(seen[:40], seen[40:])


def test_a_short_text_counts_as_much_as_a_long_one() -> None:
    texts = (torch.zeros(2, 4, dtype=torch.long), torch.ones(50, 4, dtype=torch.long))
    batch = Corpus(("a", "b"), texts, texts[0]).batch(3, 10)
    assert batch.sum() == 5 * 4


def test_what_a_step_sees_follows_from_the_seed_and_the_step_alone(corpus: Corpus) -> None:
    again = Corpus(corpus.names, corpus.texts, corpus.held_out)
    later = again.batch(7, 3)
    assert torch.equal(corpus.batch(7, 3), later)
    other = Corpus(corpus.names, corpus.texts, corpus.held_out, seed=1)
    assert not torch.equal(other.batch(7, 3), later)


def test_a_text_of_ten_words_is_refused(reader: LanguageModel) -> None:
    with pytest.raises(DataError, match="two windows of 512"):
        text.corpus(reader, [("ten words", "one two three four five six seven eight nine ten")], 512)


def test_a_folder_is_its_texts_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_text("second")
    ((_, found),) = text.read([str(tmp_path)])
    assert found.split() == ["first", "second"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.txt"):
        text.read([str(tmp_path / "empty")])
    with pytest.raises(DataError, match="nothing-there"):
        text.read(["nothing-there"])


def words(start: int, count: int) -> str:
    return " ".join(f"word{number}" for number in range(start, start + count))


def test_what_is_measured_on_is_never_learnt_from() -> None:
    measured = ("measured", words(0, 2000))
    text.check_apart([("apart", words(5000, 2000))], measured)
    for learnt in (("measured", words(9000, 2000)), ("copy", words(0, 2000)), ("part", words(1500, 4000))):
        with pytest.raises(DataError, match="measured on"):
            text.check_apart([learnt], measured)


def test_a_few_common_phrases_are_no_overlap() -> None:
    learnt = words(50_000, 20_000) + " " + words(0, 30)
    text.check_apart([("mostly apart", learnt)], ("measured", words(0, 20_000)))


def test_the_usual_texts_are_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text.check_apart(*text.usual())
    monkeypatch.setenv("THRIFTY_DATA", str(tmp_path))
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path)
    learnt, measured = text.usual()
    assert "python-topics" in measured[0]
    text.check_apart(learnt, measured)


def test_a_data_set_of_the_hub_is_read_through_its_library(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text('{"text": "first row"}\n{"text": "second row"}\n')
    ((_, found),) = text.read([f"hf:{tmp_path}"])
    assert found.split() == ["first", "row", "second", "row"]
    with pytest.raises(DataError, match="cannot be read"):
        text.read([f"hf:{tmp_path / 'no-such-set'}"])
