"""What the command does, as a function: text chosen, folder written, numbers returned."""

from dataclasses import replace
from pathlib import Path

import pytest

from thrifty.errors import DataError, ModelError, SettingError
from thrifty.llm import LanguageModel
from thrifty.moe import run as running
from thrifty.moe.methods.cluster import Cluster
from thrifty.moe.run import Asked, run, texts_of
from thrifty.plan import Plan
from thrifty.progress import silent


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    (tmp_path / "learn.txt").write_text(" ".join(f"learn{number % 97}" for number in range(3000)))
    (tmp_path / "measure.txt").write_text(" ".join(f"measure{number % 89}" for number in range(900)))
    learn, measure = str(tmp_path / "learn.txt"), str(tmp_path / "measure.txt")
    return Asked(0.5, texts=(learn,), measured=measure, window=64, calibration=8, has_speed=False)


class Tokens:
    """A tokenizer that can be saved."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [2 + ord(letter) % 95 for letter in text]}

    def save_pretrained(self, folder: object) -> None:
        Path(str(folder), "tokenizer.json").write_text("{}")


def test_one_call_gives_a_folder_a_plan_and_numbers(asked: Asked, language: LanguageModel, tmp_path: Path) -> None:
    reader = LanguageModel("tiny", language.model, Tokens())
    done = run(reader, Cluster(4), asked, None, tmp_path / "out", False, tmp_path / "plan", silent)
    assert (tmp_path / "out" / "config.json").exists()
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert Plan.load(tmp_path / "plan").method == repr(Cluster(4))
    assert done.rows[0]["label"] == "cluster 50%"
    assert done.rows[0]["max_abs_difference"] < 1e-3
    assert "learn.txt" in done.notes[0]


def test_an_export_that_differs_is_not_written(asked, language, tmp_path: Path, monkeypatch) -> None:
    from thrifty.errors import ModelError

    def differs(*_: object) -> None:
        raise ModelError("the exported model differs from the masked one")

    monkeypatch.setattr(running, "applied", differs)
    with pytest.raises(ModelError, match="differs"):
        run(language, Cluster(4), asked, None, tmp_path / "out", False, None, silent)
    assert not (tmp_path / "out").exists()


def test_texts_are_the_named_ones_and_must_be_apart(asked: Asked) -> None:
    learnt, measured = texts_of(asked)
    assert learnt[0][0].endswith("learn.txt")
    assert measured[0].endswith("measure.txt")
    with pytest.raises(DataError, match="measured on"):
        texts_of(Asked(0.5, texts=(asked.measured or "",), measured=asked.measured))


def test_a_batch_that_processes_cannot_share_is_refused(asked, language, tmp_path, monkeypatch) -> None:
    from thrifty.moe.train import Team

    monkeypatch.setattr(running.Team, "here", staticmethod(lambda: Team(3, 0)))
    with pytest.raises(SettingError, match="3 processes"):
        run(language, Cluster(4), asked, None, tmp_path / "out", False, None, silent)


@pytest.mark.parametrize(
    ("name", "said"), [("windows", "windows=0; use 1 or more"), ("window", "window=0; use 2 or more")]
)
def test_measuring_on_nothing_is_refused(name: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Asked(0.5, **{name: 0})


@pytest.mark.parametrize(
    ("family", "changes"), [("Phi", {}), ("Llama", {"mlp_bias": True}), ("Llama", {"attention_bias": True})]
)
def test_what_no_stock_class_can_hold_is_refused_before_any_training(family, changes, asked, tiny, tmp_path) -> None:
    reader = LanguageModel("tiny", tiny(family, **changes), Tokens())
    with pytest.raises(ModelError, match="--layout tomoe"):
        run(reader, Untrained(), asked, None, tmp_path / "out", False, None, silent)


def test_healing_of_no_step_is_refused_before_any_training(asked, language, tmp_path) -> None:
    with pytest.raises(SettingError, match="steps=0"):
        run(
            language,
            Untrained(),
            replace(asked, heal="lora", heal_steps=0),
            None,
            tmp_path / "out",
            False,
            None,
            silent,
        )


class Untrained:
    """A method that must not be asked."""

    def plan(self, job: object) -> Plan:
        pytest.fail("it trains")
