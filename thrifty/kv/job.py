"""What is given when a cache is to be compressed: the model, the codec, and what a token may cost."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from thrifty.budget import Budget, read_amount
from thrifty.kv import attention, cost
from thrifty.kv.blocks import Codec, HeadShape
from thrifty.llm import attention_shape

Read = Callable[[str], list[int]]


@dataclass(frozen=True)
class KvJob:
    """A model whose cache is to be held by `codec` within `budget` (bytes per token at `num_tokens`).

    `read` turns a text into token ids, for methods that measure on a text."""

    model: PreTrainedModel
    codec: Codec
    num_layers: int
    shape: HeadShape
    budget: Budget
    has_limit: bool
    read: Read | None = None

    @staticmethod
    def of(
        model: PreTrainedModel, codec: Codec, keep: str | None = None, num_tokens: int = 2048, read: Read | None = None
    ) -> "KvJob":
        """A job for `model`. `keep` is a share of the 16-bit cache (`30%`) or bytes per token (`7000`); without it the
        codec's own bits are the budget. Raises `ModelError` where the model cannot use a compressed cache, and
        `SettingError` where the codec cannot hold heads of this size."""
        attention.check(model)
        num_layers, kv_heads, head_dim = attention_shape(model)
        codec.check(head_dim)
        shape = HeadShape(kv_heads, head_dim, 2)
        whole = 2.0 * 2 * num_layers * kv_heads * head_dim
        limit = whole if keep is None else read_amount(keep, whole)
        budget = Budget(cost.bytes_per_token(codec, shape, num_tokens), limit, "bytes per token")
        return KvJob(model, codec, num_layers, shape, budget, keep is not None, read)

    def part(self, layer: int, side: str) -> str:
        """The name of a part in a plan: `layers.3.k`."""
        return f"layers.{layer}.{side}"
