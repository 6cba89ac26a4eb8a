"""`thrifty kv`: a setting goes to the codec or the method that has it, and a measured plan keeps its budget.

tests/test_cli.py runs the command with what it has by default.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from click.testing import CliRunner

from thrifty.errors import SettingError
from thrifty.kv import command
from thrifty.plan import Plan

TEXT = "the grass is green " * 150
VOCABULARY = {word: number for number, word in enumerate(["<unk>", "the", "grass", "is", "green"])}
Thrifty = Callable[..., dict[str, Any]]


@pytest.fixture
def thrifty(tiny: Callable[..., Any], tmp_path: Path) -> Thrifty:
    """Run `thrifty kv` on a tiny model that reads words; return its JSON."""
    tiny(vocab_size=8).save_pretrained(tmp_path / "model")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)

    def run(*more: object) -> dict[str, Any]:
        short = ("--window", 300, "--windows", 1, "--passkey-tokens", 0, "--text", tmp_path / "text.txt")
        out = ("--json", tmp_path / "out.json")
        done = CliRunner().invoke(command.kv, [str(word) for word in (tmp_path / "model", *short, *out, *more)])
        if done.exception:
            raise done.exception
        return json.loads((tmp_path / "out.json").read_text().splitlines()[0])

    return run


@pytest.mark.parametrize("by", ["layer", "head"])
def test_sensitivity_plans_within_the_budget_and_its_saved_plan_is_used_again(
    thrifty: Thrifty, tmp_path: Path, by: str
) -> None:
    read = (f"text={tmp_path / 'text.txt'}", f"by={by}", "windows=1", "window=256")
    method = [word for setting in read for word in ("--set", setting)]
    row = thrifty("--method", "sensitivity", *method, "--keep", "24%", "--save-plan", tmp_path / "plan")
    plan = Plan.load(tmp_path / "plan")
    bits = [kept.tolist() for kept in plan.keep.values()]
    assert len(bits) == 4
    assert max(max(one) for one in bits) > 2
    if by == "layer":
        assert all(len(set(one)) == 1 for one in bits)
    # The budget is one of 2048 tokens; the bytes are those of the tensors of a filled cache.
    assert 0.22 * 2 * 2 * 2 * 64 * 2 < row["bytes_per_token"]["2048"] <= 0.24 * 2 * 2 * 2 * 64 * 2
    again = thrifty("--plan", tmp_path / "plan")
    same = ("ppl", "kl", "top1", "bytes_per_token")
    assert {name: row[name] for name in same} == {name: again[name] for name in same}


def test_codecs_that_wrap_others_are_measured_like_any(thrifty: Thrifty) -> None:
    row = thrifty("--codec", "ems", "--set", "inner=hack:partition=32", "--set", "kept=32", "--set", "unit=64")
    assert row["label"] == "ems hack:partition=32 unit=64 kept=32 2/2"
    assert row["ppl_ratio"] > 0


def test_passkeys_without_room_are_refused_before_anything_is_measured(
    thrifty: Thrifty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thrifty.kv.compare.entry", lambda *given: pytest.fail("a plan was made first"))
    with pytest.raises(SettingError, match="5 tokens has no room; use"):
        thrifty("--passkey-tokens", 5)


def test_a_setting_goes_to_the_one_that_has_it() -> None:
    codec, method = command._kv_choices("hack", "uniform", ("k_bits=4", "skip_layers=0,1"))
    assert codec.k_bits == 4
    assert method.skip_layers == (0, 1)


def test_a_setting_that_neither_has_lists_those_of_both() -> None:
    with pytest.raises(SettingError, match=r"k_bits.*Uniform has skip_layers"):
        command._kv_choices("hack", "uniform", ("bits=4",))


def test_another_codec_is_read_with_its_settings() -> None:
    name, codec, _ = command._also("kivi:group=64,residual=64", "uniform")
    assert (name, codec.group, codec.residual) == ("kivi", 64, 64)


def test_a_preset_stands_wherever_a_codec_does() -> None:
    codec, _ = command._kv_choices("balanced", "uniform", ("sinks=8",))
    assert (codec.k_bits, codec.v_bits, codec.rotation, codec.sinks) == (4, 2, "all", 8)
    name, other, _ = command._also("smallest:sinks=0", "uniform")
    assert (name, other.k_bits, other.sinks) == ("smallest", 2, 0)
