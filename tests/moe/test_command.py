"""`thrifty moe`: a folder and a report, or one clear line and nothing at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from thrifty.cli import main

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "mat", "hill", "under", "a", "tree", "and", "slept", "loudly"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("texts")
    for name, seed, count in (("learn", 1, 3000), ("measure", 2, 600)):
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(WORDS), (count,), generator=generator).tolist()
        (folder / f"{name}.txt").write_text(" ".join(WORDS[number] for number in chosen))
    return str(folder / "learn.txt"), str(folder / "measure.txt")


def asked(folder: Path, texts: tuple[str, str], *more: str) -> list[str]:
    return [
        "moe", str(folder), "--active", "0.5", "--text", texts[0], "--measure", texts[1], "--window", "64",
        "--steps", "4", "--calibration", "8", "--no-speed", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("layout", ["standard", "tomoe"])
def test_a_folder_is_written_that_predicts_what_was_measured(folder, texts, tmp_path, layout: str, capsys) -> None:
    main(asked(folder, texts, "-o", str(tmp_path / "out"), "--layout", layout, "--json", str(tmp_path / "r.json")))
    found = json.loads((tmp_path / "r.json").read_text())
    for key in ("active_ratio_blocks", "active_ratio_model", "params_total", "params_active", "ppl_dense", "ppl"):
        assert found[key] > 0
    assert found["ppl_ratio"] == pytest.approx(found["ppl"] / found["ppl_dense"])
    assert found["kl"] > 0
    assert found["max_abs_difference"] < 1e-3
    assert found["active_ratio_mlp"] == pytest.approx(0.5)
    assert not list(tmp_path.glob("*.training*"))
    if layout == "standard":
        made = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert made.config.model_type == "mixtral"
    assert "0.5" in capsys.readouterr().out or found


def test_attention_gives_its_share_of_one_budget(folder, texts, tmp_path, capsys) -> None:
    more = ["--of", "blocks", "--set", "attention=both", "--set", "num_experts=4", "-o", str(tmp_path / "out")]
    said = refused(asked(folder, texts, *more), capsys)
    assert "--layout tomoe" in said
    assert not list(tmp_path.iterdir())
    main(asked(folder, texts, *more, "--layout", "tomoe", "--json", str(tmp_path / "r.json")))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["active_ratio_blocks"] == pytest.approx(0.5, abs=0.005)
    assert found["max_abs_difference"] < 1e-3
    entries = json.loads((tmp_path / "out" / "config.json").read_text())["tomoe"]
    assert any(entry["pairs"] for entry in entries)
    assert any(entry["values"] for entry in entries)


def test_a_dry_run_tells_the_cost_and_writes_nothing(folder, tmp_path, capsys) -> None:
    main(["moe", str(folder), "--active", "0.5", "--dry-run", "--json", str(tmp_path / "r.json")])
    assert "standard" in capsys.readouterr().out
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert {row["layout"] for row in rows} == {"standard", "tomoe"}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_speed_is_measured_for_both_models(folder, texts, tmp_path) -> None:
    arguments = [one for one in asked(folder, texts) if one != "--no-speed"]
    main([*arguments, "-o", str(tmp_path / "out"), "--method", "wanda_sp", "--json", str(tmp_path / "r.json")])
    rates = json.loads((tmp_path / "r.json").read_text())["tokens_per_second"]
    for model in ("dense", "moe"):
        for phase in ("prefill", "decode"):
            assert set(rates[model][phase]) == {"1", "16"}
            assert min(rates[model][phase].values()) > 0


def test_healing_is_reported_beside_the_experts_it_heals(folder, texts, tmp_path) -> None:
    more = ["-o", str(tmp_path / "out"), "--heal", "lora", "--heal-steps", "20", "--json", str(tmp_path / "r.json")]
    main(asked(folder, texts, "--method", "wanda_sp", *more))
    before, after = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert "healed" in after["label"]
    assert "healed" not in before["label"]
    assert after["ppl_ratio"] != before["ppl_ratio"]


def test_tasks_of_lm_eval_are_scored_for_both_models(folder, texts, tmp_path) -> None:
    pytest.importorskip("lm_eval")
    more = ["-o", str(tmp_path / "out"), "--method", "wanda_sp", "--tasks", "thrifty_facts,thrifty_last_word"]
    main(asked(folder, texts, *more, "--json", str(tmp_path / "r.json")))
    found = json.loads((tmp_path / "r.json").read_text())["tasks"]
    assert set(found) == {"dense", "moe"}
    for scores in found.values():
        assert set(scores) == {"thrifty_facts", "thrifty_last_word"}
        assert scores["thrifty_facts"].keys() >= {"acc", "acc_stderr"}


def refused(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("active", ["0", "1.2", "-1"])
def test_a_budget_that_is_no_share_is_refused(folder, texts, tmp_path, active: str, capsys) -> None:
    arguments = asked(folder, texts, "-o", str(tmp_path / "out"))
    arguments[arguments.index("0.5")] = active
    assert "between 0 and 1" in refused(arguments, capsys)
    assert not list(tmp_path.iterdir())


def test_a_text_of_ten_words_is_refused(folder, texts, tmp_path, capsys) -> None:
    short = tmp_path / "short.txt"
    short.write_text("one two three four five six seven eight nine ten")
    said = refused(asked(folder, (str(short), texts[1]), "-o", str(tmp_path / "out")), capsys)
    assert "two windows of 64" in said
    assert not (tmp_path / "out").exists()


def test_learning_from_what_is_measured_is_refused(folder, texts, tmp_path, capsys) -> None:
    said = refused(asked(folder, (texts[1], texts[1]), "-o", str(tmp_path / "out")), capsys)
    assert "measured on" in said
    assert not (tmp_path / "out").exists()


def test_a_mixture_of_experts_and_an_encoder_are_refused(texts, tmp_path, folder, capsys) -> None:
    shape = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.MixtralConfig(intermediate_size=32, num_key_value_heads=2, num_local_experts=2, **shape)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "mixtral")
    encoder = transformers.BertConfig(intermediate_size=32, **shape)
    transformers.BertModel(encoder).save_pretrained(tmp_path / "bert")
    for name, said in (("mixtral", "mixture of 2 experts already"), ("bert", "bert")):
        for file in folder.glob("tokenizer*"):
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        assert said in refused(asked(tmp_path / name, texts, "-o", str(tmp_path / "out")), capsys)
    assert not (tmp_path / "out").exists()


def test_a_used_folder_is_kept_unless_told_otherwise(folder, texts, tmp_path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    arguments = asked(folder, texts, "-o", str(tmp_path / "out"), "--method", "magnitude")
    assert "already holds files" in refused(arguments, capsys)
    assert (tmp_path / "out" / "mine.txt").exists()
    main([*arguments, "--overwrite"])
    assert (tmp_path / "out" / "config.json").exists()
    assert not (tmp_path / "out" / "mine.txt").exists()


def test_without_a_folder_nothing_is_trained(folder, texts, capsys) -> None:
    assert "-o FOLDER" in refused(asked(folder, texts), capsys)


def test_an_interrupted_training_is_gone_on_with_or_started_over_only_when_told_to(
    folder, texts, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.moe import train

    arguments = asked(folder, texts, "-o", str(tmp_path / "out"), "--save-plan", str(tmp_path / "plan"))
    made = train.Recipe
    monkeypatch.setattr("thrifty.moe.learn.Recipe", lambda *values: made(*values, every=2))
    state, step = tmp_path / "out.training.safetensors", train._store

    def stop(*values: object) -> None:
        step(*values)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_store", stop)
    with pytest.raises(SystemExit):
        main(arguments)
    assert f"so far is in {state}; add --resume" in capsys.readouterr().err
    assert state.exists()
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(train, "_store", step)
    capsys.readouterr()
    assert "--resume" in refused(arguments, capsys)
    main([*arguments, "--resume"])
    assert (tmp_path / "out" / "config.json").exists()
    assert not state.exists()


def test_a_full_disk_leaves_nothing_half_written(folder, texts, tmp_path, capsys, monkeypatch) -> None:
    from safetensors import SafetensorError

    def full(self: object, place: object, **_: object) -> None:
        (Path(str(place)) / "config.json").write_text("{}")
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    said = refused(asked(folder, texts, "-o", str(tmp_path / "out"), "--method", "magnitude"), capsys)
    assert "No space left" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("sharing", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]], ids=["ddp", "fsdp"])
def test_two_processes_write_one_folder(sharing: list[str], folder, texts, tmp_path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    (tmp_path / "thrifty").write_text("from thrifty.cli import main\nmain()\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", *sharing, "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", "2", str(tmp_path / "thrifty")]
    more = ["-o", str(tmp_path / "out"), "--json", str(tmp_path / "r.json")]
    done = subprocess.run([*launch, *asked(folder, texts, *more)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "config.json").exists()
    assert json.loads((tmp_path / "r.json").read_text())["ppl_ratio"] > 0
    assert done.stdout.count("as a mixture of experts") == 1
