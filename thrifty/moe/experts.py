"""An MLP whose experts share one set of stored channels, and how tokens run through it: top-1, routing weight 1.

The weights of a channel are one row of `gate`, `up` and `down` (d numbers each), so an expert is some runs of rows
(`thrifty.moe.packing`). Three ways to run:
- a CPU: a kernel in C++ works on the rows of each token's expert where they lie (`thrifty.moe.native_kernel`);
- a GPU: kernels in Triton read the rows of an expert while they multiply (`thrifty.moe.kernels`);
- else, and wherever gradients are wanted: tokens are sorted by expert, the common channels are one product for all
  tokens, and the runs of an expert are put side by side once for all of its tokens.
In between, where experts would get a handful of tokens each, all tokens run through all stored channels and masks do
the rest: that costs what the dense MLP costs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from thrifty.errors import SettingError
from thrifty.moe import native_kernel
from thrifty.moe.grouped import Copies
from thrifty.moe.packing import Run, common_of, runs_of
from thrifty.moe.whole import run_whole
from thrifty.native_build import has_triton

MASKED_BELOW = {"cpu": 6, "cuda": 128}
"""Tokens for each expert below which masks are faster than sorted tokens, as measured by benchmarks/moe_speed.py."""
KERNEL_NAMES = {"SiLU": "silu", "SiLUActivation": "silu", "NewGELUActivation": "gelu", "GELUTanh": "gelu"}
"""The activations that kernels know, by the class of the module."""


@dataclass(frozen=True)
class Shape:
    """What a layer's MLP is made of; all that a checkpoint's configuration has to say about it."""

    num_experts: int
    stored: int
    has_gate: bool
    has_bias: bool
    has_out_bias: bool
    is_routed: bool


class PackedMlp(nn.Module):
    """The MLP of one layer as experts over shared channels: a drop-in for the dense one.

    `source` is the MLP whose choice of expert this one follows (pre-gating), else it has a router of its own, or one
    expert for all tokens.
    """

    members: Tensor
    copied_gate_up: Tensor | None
    copied_down: Tensor | None

    def __init__(self, shape: Shape, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        """Make room for the weights; `width` is d."""
        super().__init__()
        self.shape = shape
        self.activation = activation
        self.up = nn.Parameter(torch.empty(shape.stored, width))
        self.down = nn.Parameter(torch.empty(shape.stored, width))
        self.gate = nn.Parameter(torch.empty(shape.stored, width)) if shape.has_gate else None
        self.up_bias = nn.Parameter(torch.empty(shape.stored)) if shape.has_bias else None
        has_gate_bias = shape.has_bias and shape.has_gate
        self.gate_bias = nn.Parameter(torch.empty(shape.stored)) if has_gate_bias else None
        self.out_bias = nn.Parameter(torch.empty(width)) if shape.has_out_bias else None
        self.router = nn.Parameter(torch.empty(shape.num_experts, width)) if shape.is_routed else None
        self.register_buffer("members", torch.ones(shape.num_experts, shape.stored, dtype=torch.uint8))
        self.register_buffer("copied_gate_up", None, persistent=False)
        self.register_buffer("copied_down", None, persistent=False)
        self.choice: Tensor | None = None
        self._source: tuple[PackedMlp, ...] = ()
        self._runs: Runs | None = None
        self._table: Any = None

    def follow(self, source: "PackedMlp") -> None:
        """Use the expert that `source`, an earlier layer, chose for each token."""
        self._source = (source,)  # in a tuple, so that it does not become a submodule

    def copy_experts(self) -> None:
        """From now on hold each expert as matrices of its own as well: long prompts on a GPU run faster, for as much
        memory again as all experts have channels. Weights that change later do not reach the copies. Raises
        `SettingError` where experts have biases or no gate."""
        if self.gate is None or self.up_bias is not None:
            raise SettingError("experts without a gate, or with biases, cannot be copied; load them without copies")
        copies = Copies.of(self)
        self.copied_gate_up, self.copied_down = copies.gate_up, copies.down

    @property
    def runs(self) -> "Runs":
        """Where each expert's channels are; read from `members` at first use."""
        if self._runs is None:
            self._runs = Runs.of(self.members)
        return self._runs

    @property
    def table(self) -> Any:
        """The channels of each expert by number, for kernels that gather; read from `members` at first use."""
        if self._table is None or self._table.widths.device != self.members.device:
            from thrifty.moe.kernels.many import Table

            self._table = Table.of(self.members)
        return self._table

    def forward(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens d"]:
        """Each token through its expert."""
        if not x.is_cuda:
            return self._run(x)
        with torch.cuda.device(x.device):  # Triton launches on the current GPU, which need not be this layer's
            return self._run(x)

    def _run(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens d"]:
        tokens = x.reshape(-1, x.shape[-1])
        choice = self._source[0].choice if self._source else None
        name = KERNEL_NAMES.get(type(self.activation).__name__)
        is_few = len(tokens) <= native_kernel.FEW_TOKENS or not suits_masks(self, tokens)
        fast = native_kernel.run(self, tokens, choice, name) if name and is_few else None
        if fast is not None:
            out, self.choice = fast
            return out.view(x.shape)
        if name and suits_decoding(self, tokens):
            from thrifty.moe.kernels.single import run_single

            out, self.choice = run_single(self, tokens.contiguous(), choice, name)
            return out.view(x.shape)
        if choice is None and self.router is not None:
            choice = choose(self.router, tokens)
        self.choice = choice
        return run(self, tokens, choice).view(x.shape)


@dataclass(frozen=True)
class Runs:
    """`common` channels come first and belong to every expert; `own` are the runs of each expert after them."""

    common: int
    own: list[list[Run]]

    @staticmethod
    def of(members: Tensor) -> "Runs":
        """Read from the mask of members, (experts, stored)."""
        common = common_of(members.bool())
        return Runs(common, runs_of(members.bool(), common))


def choose(router: Float[Tensor, "experts d"], x: Float[Tensor, "tokens d"]) -> Int[Tensor, " tokens"]:
    """The expert of each token, computed in float32 also under autocast."""
    if x.is_cuda and has_triton() and not torch.is_grad_enabled():
        from thrifty.moe.kernels.few import route

        return route(x.contiguous(), router)
    with torch.autocast(x.device.type, enabled=False):
        return linear(x.float(), router.float()).argmax(-1)


def run(
    mlp: PackedMlp, x: Float[Tensor, "tokens d"], choice: Int[Tensor, " tokens"] | None
) -> Float[Tensor, "tokens d"]:
    """Each token through the expert `choice` names; None: all through the only expert."""
    name = KERNEL_NAMES.get(type(mlp.activation).__name__)
    is_plain = x.dtype == mlp.up.dtype and not torch.is_grad_enabled()
    if choice is not None and name and x.is_cuda and is_plain and has_triton():
        return _run_kernels(mlp, x.contiguous(), choice, name)
    if choice is None:
        out = _part(mlp, x, [(0, mlp.shape.stored)])
    elif suits_masks(mlp, x):
        out = run_masked(mlp, x, choice)
    else:
        out = run_sorted(mlp, x, choice)
    return out if mlp.out_bias is None else out + mlp.out_bias


def suits_decoding(mlp: PackedMlp, x: Float[Tensor, "tokens d"]) -> bool:
    """Whether this is one token, and the kernels for it are there."""
    is_plain = x.is_cuda and x.dtype == mlp.up.dtype and not torch.is_grad_enabled()
    return len(x) == 1 and is_plain and has_triton()


def suits_masks(mlp: PackedMlp, x: Float[Tensor, "tokens d"]) -> bool:
    """Whether there are too few tokens for each expert to be worth sorting them."""
    return len(x) < MASKED_BELOW.get(x.device.type, 0) * mlp.shape.num_experts


def run_masked(
    mlp: PackedMlp, x: Float[Tensor, "tokens d"], choice: Int[Tensor, " tokens"]
) -> Float[Tensor, "tokens d"]:
    """In PyTorch, all stored channels for every token, and those that its expert lacks set to zero."""
    hidden = _hidden(mlp, x, [(0, mlp.shape.stored)])
    return hidden.masked_fill(mlp.members[choice] == 0, 0.0) @ mlp.down


def _run_kernels(mlp: PackedMlp, x: Tensor, choice: Tensor, activation: str) -> Tensor:
    from thrifty.moe.kernels.few import MOST_TOKENS, run_few
    from thrifty.moe.kernels.many import run_many

    if len(x) <= MOST_TOKENS:
        return run_few(mlp, x, choice, activation)
    if suits_masks(mlp, x):
        return masked_in_kernels(mlp, x, choice, activation)
    if mlp.copied_gate_up is not None and mlp.copied_down is not None:
        out = run_whole(x, choice, mlp.copied_gate_up, mlp.copied_down, activation)
        return out if mlp.out_bias is None else out + mlp.out_bias
    return run_many(mlp, x, choice, mlp.table, activation)


def masked_in_kernels(mlp: PackedMlp, x: Tensor, choice: Tensor, activation: str) -> Tensor:
    """As `run_masked`, with activation and masks in one pass on a GPU."""
    from thrifty.moe.kernels.act import gated

    gate = None if mlp.gate is None else linear(x, mlp.gate, mlp.gate_bias)
    hidden = gated(gate, linear(x, mlp.up, mlp.up_bias), activation, choice, mlp.members)
    out = hidden @ mlp.down
    return out if mlp.out_bias is None else out + mlp.out_bias


def run_sorted(
    mlp: PackedMlp, x: Float[Tensor, "tokens d"], choice: Int[Tensor, " tokens"]
) -> Float[Tensor, "tokens d"]:
    """In PyTorch, tokens sorted by expert: works everywhere, and gradients flow through it."""
    runs = mlp.runs
    order = choice.argsort(stable=True)
    counts = torch.bincount(choice, minlength=mlp.shape.num_experts).tolist()
    rows = zip(x[order].split(counts), runs.own, strict=True)
    own = [_part(mlp, tokens, spans) if len(tokens) and spans else torch.zeros_like(tokens) for tokens, spans in rows]
    out = torch.empty_like(x) if not torch.is_grad_enabled() else torch.zeros_like(x)
    out = out.index_copy(0, order, torch.cat(own))
    return out + _part(mlp, x, [(0, runs.common)]) if runs.common else out


def _part(mlp: PackedMlp, x: Float[Tensor, "tokens d"], spans: list[Run]) -> Float[Tensor, "tokens d"]:
    """What the channels in `spans` add to the output."""
    return _hidden(mlp, x, spans) @ _rows(mlp.down, spans)


def _hidden(mlp: PackedMlp, x: Float[Tensor, "tokens d"], spans: list[Run]) -> Float[Tensor, "tokens channels"]:
    raised = linear(x, _rows(mlp.up, spans), _rows(mlp.up_bias, spans))
    if mlp.gate is None:
        return mlp.activation(raised)
    return mlp.activation(linear(x, _rows(mlp.gate, spans), _rows(mlp.gate_bias, spans))) * raised


def _rows(weight: Any, spans: list[Run]) -> Any:
    """The rows of `spans` side by side; a view where there is one span."""
    if weight is None or len(spans) == 1:
        return None if weight is None else weight[spans[0][0] : spans[0][1]]
    return torch.cat([weight[first:last] for first, last in spans])
