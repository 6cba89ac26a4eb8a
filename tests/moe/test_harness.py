"""lm-eval's harness on a model in memory: the bundled tasks are whole, and what cannot be had is told in one line."""

import json

import pytest

from thrifty.errors import DataError, SettingError
from thrifty.moe import harness

pytest.importorskip("lm_eval")
FILES = sorted(harness.FOLDER.glob("*.jsonl"))


@pytest.fixture
def pair(folder):
    from thrifty import llm

    loaded = llm.load(folder)
    return loaded.model, loaded.tokenizer


def test_every_bundled_task_is_found_by_the_name_of_the_group() -> None:
    names = {task.config.task for task in harness.find(["thrifty_smoke"])}
    assert names == {f"thrifty_{file.stem}" for file in FILES}
    assert len(names) >= 3


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_bundled_items_are_many_and_differ(file) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) >= 60
    assert len({json.dumps(row) for row in rows}) == len(rows)
    for row in rows:
        assert "choices" not in row or len(set(row["choices"])) == 4 > row["answer"]
        assert "word" not in row or row["word"].lower() in row["text"].lower()


def test_a_model_is_scored_with_standard_errors_and_stays_as_it_was(pair) -> None:
    model, tokenizer = pair
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = harness.scores(model, tokenizer, harness.find(["thrifty_facts", "thrifty_agreement"]))
    assert set(found) == {"thrifty_facts", "thrifty_agreement"}
    for row in found.values():
        assert 0 <= row["acc"] <= 1
        assert 0 < row["acc_stderr"] < 0.1
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_a_model_that_knows_the_answers_scores_above_one_that_does_not(pair, monkeypatch) -> None:
    """Scores are those of lm-eval: a model in which only right answers are likely gets everything right."""
    from lm_eval.models.huggingface import HFLM

    def knows(self: object, requests: list, **_: object) -> list[tuple[float, bool]]:
        rows = [(request.doc, request.args[1].strip()) for request in requests]
        return [(0.0 if doc["choices"][doc["answer"]] == said else -9.0, False) for doc, said in rows]

    monkeypatch.setattr(HFLM, "loglikelihood", knows)
    assert harness.scores(*pair, harness.find(["thrifty_facts"]))["thrifty_facts"]["acc"] == 1


@pytest.mark.slow  # lm-eval reads all its tasks
def test_a_task_that_nobody_knows_is_refused_with_those_that_are_bundled() -> None:
    with pytest.raises(SettingError, match="no task 'nonsense'; bundled: thrifty_agreement"):
        harness.find(["nonsense"])


@pytest.mark.slow  # lm-eval reads all its tasks
def test_a_task_of_the_hub_without_the_hub_is_one_line(monkeypatch) -> None:
    import datasets

    def away(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'someone/something' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", away)
    with pytest.raises(DataError, match=r"Hub.*go online, or use bundled tasks: thrifty_") as refused:
        harness.find(["hellaswag"])
    assert "\n" not in str(refused.value)


def test_without_lm_eval_it_is_told_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(SettingError, match=r"pip install 'thrifty\[eval\]'"):
        harness.find(["thrifty_facts"])
