"""The command line: results as files, and one clear line for everything that is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from thrifty import cli
from thrifty.plan import Plan

TEXT = "the grass is green " * 200
KEYS = {
    "codec", "settings", "ppl_plain", "ppl", "ppl_ratio", "kl", "top1", "passkey",
    "bytes_per_token", "bytes_ratio", "tokens_per_second",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that reads words."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=2048, initializer_range=0.2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(["<unk>", "the", "grass", "is", "green"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 800 words."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def thrifty(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command; return status, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["thrifty", *map(str, words)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def measured(thrifty, model: Path, text: Path):
    """Run `thrifty kv` on the tiny model with short windows."""

    def run(*words: object) -> tuple[int, str, str]:
        short = ("--window", 300, "--windows", 2, "--passkey-tokens", 400, "--text", text)
        return thrifty("kv", model, *short, *words)

    return run


def test_kv_writes_the_promised_keys_and_a_page(measured, tmp_path: Path) -> None:
    status, out, _ = measured("--set", "k_bits=4", "--json", tmp_path / "a" / "out.json", "--out", tmp_path / "page")
    assert status == 0
    assert "hack 4/2" in out
    row = json.loads((tmp_path / "a" / "out.json").read_text())
    assert row.keys() >= KEYS
    assert row["settings"]["k_bits"] == 4
    assert row["bytes_per_token"].keys() == {"512", "2048"}
    assert 0 < row["bytes_ratio"] < 1
    assert "hack 4/2" in (tmp_path / "page" / "report.html").read_text()


def test_several_codecs_are_compared_in_one_run(measured, tmp_path: Path) -> None:
    also = ("--also", "hack:layout=v1", "--also", "kivi:group=32,residual=64")
    status, _, _ = measured(*also, "--json", tmp_path / "out.json")
    assert status == 0
    labels = [row["label"] for row in json.loads((tmp_path / "out.json").read_text())["rows"]]
    assert labels == ["hack 2/2", "hack v1 2/2", "kivi residual=64 2/2"]
    assert measured("--also", "hack:layout=v2")[0] == 2


def test_the_same_command_gives_the_same_quality(measured, tmp_path: Path) -> None:
    rows = []
    for name in ("one", "two"):
        assert measured("--set", "rounding=stochastic", "--json", tmp_path / name)[0] == 0
        rows.append(json.loads((tmp_path / name).read_text()))
    assert rows[0]["ppl"] == rows[1]["ppl"]
    assert rows[0]["kl"] == rows[1]["kl"] > 0


def test_a_budget_chooses_the_bits_and_a_saved_plan_is_used_again(measured, tmp_path: Path) -> None:
    plan = tmp_path / "plan.safetensors"
    status, out, _ = measured("--keep", "40%", "--set", "skip_layers=0", "--save-plan", plan)
    assert status == 2
    status, out, _ = measured("--keep", "80%", "--set", "skip_layers=0", "--save-plan", plan)
    assert status == 0
    assert set(Plan.load(plan).keep["layers.0.k"].tolist()) == {16}
    again = measured("--plan", plan)
    assert again[0] == 0
    assert next(line for line in out.splitlines() if "hack" in line)[:30] in again[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--codec", "nope"], "hack, kivi, plain"),
        (["--method", "nope"], "uniform"),
        (["--set", "k_bits=5"], "use one of 2, 3, 4, 8"),
        (["--set", "partition=48"], "use one of 32, 64, 128"),
        (["--set", "bits=4"], "it has layout, k_bits"),
        (["--set", "k_bits"], "field=value"),
        (["--set", "sinks=many"], "a whole number"),
        (["--set", "sinks=-1"], "0 or more"),
        (["--set", "skip_layers=7"], "layers 0 to 1"),
        (["--keep", "0"], "budget 0"),
        (["--keep", "150%"], "150%"),
        (["--windows", "0"], "windows=0"),
        (["--windows", "some"], "not a valid integer"),
        (["--window", "9000"], "at most 2048"),
        (["--text", "absent.txt"], "absent.txt"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--nope"], "--nope"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_is_wrong_is_one_clear_line_and_status_2(measured, words, told: str) -> None:
    status, out, error = measured(*words)
    assert (status, out) == (2, "")
    assert error.count("\n") == 1
    assert told in error


@pytest.mark.parametrize("content", ["", "  \n ", "the grass"], ids=["empty", "blank", "short"])
def test_a_text_without_a_window_is_one_clear_line(measured, text: Path, content: str) -> None:
    text.write_text(content)
    status, _, error = measured()
    assert status == 2
    assert error.count("\n") == 1
    assert "window" in error


def test_a_folder_that_is_no_model_is_one_clear_line(thrifty, tmp_path: Path, text: Path) -> None:
    status, _, error = thrifty("kv", tmp_path, "--text", text)
    assert (status, error.count("\n")) == (2, 1)
    assert "no config.json" in error


def test_an_output_folder_is_refused_before_the_work_and_overwritten_only_if_asked(measured, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "mine.txt").write_text("mine")
    status, _, error = measured("--out", tmp_path / "page")
    assert status == 2
    assert "--overwrite" in error
    assert measured("--out", tmp_path / "page", "--overwrite")[0] == 0
    assert (tmp_path / "page" / "mine.txt").read_text() == "mine"


def test_every_command_writes_json(thrifty, measured, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    assert measured("--json", tmp_path / "kv.json")[0] == 0
    for words in (["methods"], ["data", "list"], ["data", "check", "python-topics"], ["data", "get", "python-topics"],
                  ["report", tmp_path / "kv.json"]):  # fmt: skip
        target.unlink(missing_ok=True)
        assert thrifty(*words, "--json", target)[0] == 0
        assert json.loads(target.read_text())


@pytest.mark.parametrize("words", ["methods", "data list", "data check", "data get python-topics", "report mine.json"])
def test_the_json_of_no_command_replaces_a_file_of_the_user(thrifty, monkeypatch, tmp_path: Path, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text("[1]")
    status, out, error = thrifty(*words.split(), "--json", "mine.json")
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert (tmp_path / "mine.json").read_text() == "[1]"


def test_a_report_is_not_written_over_the_results_it_shows(thrifty, tmp_path: Path) -> None:
    assert thrifty("methods", "--json", tmp_path / "a.json")[0] == 0
    before = (tmp_path / "a.json").read_text()
    status, _, error = thrifty("report", tmp_path / "a.json", "--json", tmp_path / "a.json")
    assert status == 2
    assert "would write over 'FILES...'" in error
    assert (tmp_path / "a.json").read_text() == before


def test_a_report_shows_results_of_files_and_refuses_others(thrifty, measured, tmp_path: Path) -> None:
    assert measured("--json", tmp_path / "kv.json")[0] == 0
    status, _, _ = thrifty("report", tmp_path / "kv.json", "--out", tmp_path / "page")
    assert status == 0
    assert (tmp_path / "page" / "report.html").is_file()
    (tmp_path / "text").write_text("no result")
    assert thrifty("report", tmp_path / "text")[0] == 2


def test_an_altered_data_set_is_told_and_ends_with_status_2(thrifty, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "wikitext-2-test.txt").write_text("other words")
    monkeypatch.setenv("THRIFTY_DATA", str(tmp_path))
    status, out, _ = thrifty("data", "check", "wikitext-2-test")
    assert status == 2
    assert "altered" in out


def test_ctrl_c_is_status_130_without_a_traceback(thrifty, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("thrifty.catalogue.names", interrupted)
    status, _, error = thrifty("methods")
    assert status == 130
    assert "Traceback" not in error


def test_a_part_that_is_not_installed_is_named_with_its_extra(thrifty, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers.models")

    monkeypatch.setattr("thrifty.catalogue.names", absent)
    status, _, error = thrifty("methods")
    assert (status, error.count("\n")) == (2, 1)
    assert "pip install 'thrifty[llm]'" in error


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = "import sys; sys.argv = ['thrifty', '--help']; from thrifty.cli import main; main(); "
    code += "assert not {'torch', 'transformers', 'matplotlib', 'rich'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kv" in done.stdout


def test_every_key_of_the_json_is_documented(measured, tmp_path: Path) -> None:
    assert measured("--json", tmp_path / "kv.json")[0] == 0
    documented = (Path(cli.__file__).parents[1] / "docs" / "json.md").read_text()
    missing = [key for key in json.loads((tmp_path / "kv.json").read_text()) if f"`{key}`" not in documented]
    assert not missing
