"""Turn a plan into a model: checked against the dense one with masks, and written whole or not at all."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from thrifty.errors import ModelError, SettingError
from thrifty.files import new_folder
from thrifty.moe import model_type as tomoe
from thrifty.moe import standard
from thrifty.moe.experts import PackedMlp
from thrifty.moe.masking import check, masked, router_of, to_device, token_mask_of
from thrifty.moe.sites import found
from thrifty.plan import Plan

Layout = Literal["standard", "tomoe"]
LAYOUTS: tuple[Layout, ...] = ("standard", "tomoe")
TOLERANCE = 1e-3
"""Largest difference of logits between masked and exported, as a share of the largest logit, in float32."""
_TIE = 1e-5
_SEQUENCES = ((1, 64), (2, 48), (8, 16))
"""Rows and tokens of the random token sequences on which both are compared."""


@dataclass(frozen=True)
class Difference:
    """How far the exported model is from the masked one: of the logits, in float32, over `positions` positions."""

    largest: float
    largest_logit: float
    positions: int

    @property
    def is_small(self) -> bool:
        """Whether it is no more than rounding."""
        return self.largest <= TOLERANCE * self.largest_logit


def check_model(model: Any, layout: Layout) -> None:
    """Raise `ModelError` where the layout cannot hold experts of `model`, whatever the plan."""
    if layout == "standard":
        standard.check_model(model)
    else:
        tomoe.classes(model.config.model_type)


def apply(plan: Plan, model: Any, layout: Layout = "standard") -> Any:
    """The model that `plan` asks for, in eval mode, on the device and in the type of `model`, which stays as it is.

    Raises `SettingError` where the plan does not fit the model or the layout, and `ModelError` where the result does
    not compute what the dense model with masks computes.
    """
    return applied(plan, model, layout)[0]


def applied(plan: Plan, model: Any, layout: Layout = "standard") -> tuple[Any, Difference]:
    """As `apply`, with the difference that was found."""
    made = build(plan, model, layout)
    difference = compare(plan, model, made)
    if not difference.is_small:
        raise ModelError(
            f"the exported model differs from the masked one by {difference.largest:.3g} in logits up to "
            f"{difference.largest_logit:.3g}; nothing is written; please report this with the plan"
        )
    return made, difference


def build(plan: Plan, model: Any, layout: str = "standard") -> Any:
    """As `apply`, without the comparison."""
    check(plan, found(model))
    if layout not in LAYOUTS:
        raise SettingError(f"layout {layout}; use one of {', '.join(LAYOUTS)}")
    return (standard if layout == "standard" else tomoe).build(plan, model)


def compare(plan: Plan, model: Any, made: Any, seed: int = 0) -> Difference:
    """Logits of `made` against those of `model` with the masks of `plan`, both in float32, on random tokens.

    Where two experts tie within rounding, or two channels of which a token keeps one, which one is taken is open: a row
    is compared up to its first such token.
    """
    dense, made = (_in_float32(one) for one in (model, made))
    generator = torch.Generator().manual_seed(seed)
    device = next(dense.parameters()).device
    rounded = _rounded(plan, model, made)
    largest, largest_logit, positions = 0.0, 0.0, 0
    for rows, length in _SEQUENCES:
        tokens = torch.randint(0, model.config.vocab_size, (rows, length), generator=generator).to(device)
        with torch.inference_mode(), masked(dense, rounded), _Ties(rounded, dense, rows, length) as ties:
            wanted = dense(input_ids=tokens, use_cache=False).logits
            count = ties.compared()
        with torch.inference_mode():
            got = made(input_ids=tokens, use_cache=False).logits
        is_compared = (torch.arange(length)[None] < count[:, None]).to(device)
        gap = (got - wanted).abs().amax(-1)[is_compared]
        finite = bool(gap.isfinite().all()) and bool(wanted.isfinite().all())
        largest = max(largest, float(gap.max()) if len(gap) else 0.0) if finite else float("inf")
        largest_logit = max(largest_logit, float(wanted.abs().max()))
        positions += int(is_compared.sum())
    if positions < sum(rows * length for rows, length in _SEQUENCES) // 8:
        largest = float("inf")  # experts tie nearly everywhere: nothing has been shown
    return Difference(largest, largest_logit, positions)


def save(model: Any, folder: Path | str, tokenizer: Any = None) -> None:
    """Write `model` and its tokenizer as a folder that appears whole or not at all.

    Raises `OutputError` where the folder is there already, cannot be written to, or the disk is full.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)


def load(folder: Path | str, dtype: torch.dtype | None = None, device: str = "cpu", has_copies: bool = False) -> Any:
    """Load a folder of either layout, with experts that run as `thrifty.moe.experts` runs them.

    `has_copies`: hold each expert of the tomoe layout as matrices of its own as well, so that long prompts run faster
    on a GPU; `bytes_of_copies` says how much memory that takes. The standard layout has such matrices already.
    Raises `ModelError` where it cannot be loaded, and `SettingError` where its experts cannot be copied.
    """
    import transformers

    from thrifty.moe.stock_experts import IMPLEMENTATION, register_experts

    transformers.utils.logging.disable_progress_bar()
    tomoe.register()
    register_experts()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"cannot load {folder}: {str(error).splitlines()[0]}") from error
    if hasattr(model.config, "num_local_experts") or hasattr(model.config, "num_experts"):
        model.set_experts_implementation(IMPLEMENTATION)
    nn.Module.to(model, torch.device(device)).eval()
    for module in model.modules() if has_copies else ():
        if isinstance(module, PackedMlp) and module.shape.num_experts > 1:
            module.copy_experts()
    return model


def bytes_of_copies(model: Any) -> int:
    """How much memory the copies of experts take that `load(..., has_copies=True)` made."""
    mlps = [module for module in model.modules() if isinstance(module, PackedMlp)]
    copies = [copy for mlp in mlps for copy in (mlp.copied_gate_up, mlp.copied_down) if copy is not None]
    return sum(copy.numel() * copy.element_size() for copy in copies)


def _in_float32(model: Any) -> Any:
    if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return model
    return copy.deepcopy(model).float()


def _rounded(plan: Plan, model: Any, made: Any) -> Plan:
    """The plan with its routers as the exported model holds them: stock classes keep them in the model's type."""
    if getattr(made.config, "model_type", "").startswith(tomoe.PREFIX):
        return plan
    dtype = next(model.parameters()).dtype
    evidence = {name: value.to(dtype).float() if name.endswith(".router") else value
                for name, value in plan.evidence.items()}  # fmt: skip
    return Plan(plan.method, plan.keep, evidence)


class _Ties:
    """Watches the choices of a masked model: `compared` says up to which token of each row no two experts tied, and no
    channel that a token keeps with one that it drops."""

    def __init__(self, plan: Plan, model: Any, rows: int, length: int) -> None:
        self._first = torch.full((rows,), length)
        self._shape = (rows, length)
        self._handles: list[Any] = []
        self._set: list[Callable[[], Any]] = []
        for site in found(model):
            device = site.up.weight.device
            router = router_of(plan, site) if site.name in plan.keep else None
            if router is not None:
                self._watch(site.mlp, lambda x: x.float(), router.to(device), 1)
            mask = token_mask_of(plan, site)
            if mask is not None:
                mask = to_device(mask, device)
                self._watch(site.attention.module, mask.features, mask.up, mask.count)

    def _watch(self, module: nn.Module, features: Callable[[Tensor], Tensor], rows: Tensor, count: int) -> None:
        """Look for ties where `module` takes the `count` largest of `rows` times the features of its input."""

        def look(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self._look(features(inputs[0] if inputs else keywords["hidden_states"]), rows, count)

        self._set.append(lambda: module.register_forward_pre_hook(look, with_kwargs=True))

    def __enter__(self) -> "_Ties":
        self._handles = [set_hook() for set_hook in self._set]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _look(self, features: Tensor, rows: Tensor, count: int) -> None:
        best = (features @ rows.T).topk(count + 1, dim=-1).values
        scale = features.norm(dim=-1) * rows.norm(dim=-1).max()
        is_tie = (best[..., -2] - best[..., -1] <= _TIE * scale).view(self._shape).cpu()
        first = torch.where(is_tie.any(1), is_tie.int().argmax(1), self._shape[1])
        self._first = torch.minimum(self._first, first)

    def compared(self) -> Int[Tensor, " rows"]:
        return self._first
