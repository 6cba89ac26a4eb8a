"""A cache for transformers' `generate` that holds keys and values in a codec, one codec a layer.

Rows of one length share their tensors (`RowGroup`), so a codec never sees padding: a left-padded row is coded
exactly as it would be alone, and rows that grow by different amounts part ways.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    Cache,
    CacheLayerMixin,
    get_layer_types_and_kwargs,
)

from thrifty.errors import ModelError, SettingError
from thrifty.kv import attention
from thrifty.kv.blocks import Blocks, ChunkCodec, Codec, encode, next_closing
from thrifty.kv.pages import PagedCodec, PagedRows

Prefill = Literal["exact", "coded"]
RECORDED_TOKENS = 128
"""What `crop` can take back without a trace while the past is recorded."""


@dataclass(frozen=True)
class RowGroup:
    """Rows of a batch that hold equally many tokens."""

    rows: list[int]
    blocks: Blocks


class CompressedLayer(CacheLayerMixin):
    """One layer's keys and values, held by `codec`.

    `update` only notes what came; `attend`, which transformers calls next through `thrifty.kv.attention`, knows the
    padding and stores it. `prefill="exact"` attends a chunk of several new tokens in full precision and codes it
    afterwards (as published); `"coded"` lets every query see what a token-by-token run would show it.
    """

    is_sliding = False
    is_croppable = True
    is_compileable = False

    def __init__(self, codec: Codec, prefill: Prefill = "exact") -> None:
        super().__init__()
        self.codec = codec
        self.prefill: Prefill = prefill
        self._groups: list[RowGroup] = []
        self._paged: PagedRows | None = None
        self._is_steady = False
        self.real: Bool[Tensor, "rows positions"] | None = None
        self.positions = 0
        self.batch_size = 0
        self.head_shape = (0, 0)
        self.record_past = False
        self._is_waiting = False

    @property
    def groups(self) -> list[RowGroup]:
        """The rows by length. Rows in pages leave them."""
        if self._paged is not None:
            self._groups = [RowGroup([row], blocks) for row, blocks in enumerate(self._paged.rows())]
        self._paged, self._is_steady = None, False
        return self._groups

    @groups.setter
    def groups(self, groups: list[RowGroup]) -> None:
        self._groups, self._paged, self._is_steady = groups, None, False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note the batch size, the (heads, channels of a head) and the device of the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.batch_size, self.head_shape = key_states.shape[0], (key_states.shape[1], key_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """Hand the new keys and values [rows, heads, new, d] on to thrifty's attention; no other can read the keys."""
        if self._is_waiting:
            raise ModelError(
                "the last keys were stored in a compressed cache but never attended: the model's attention is not "
                f"'{attention.NAME}'; make the cache with CompressedCache.of(model, codec)"
            )
        if key_states.shape[0] != self.batch_size or not self.is_initialized:
            if self.positions:
                raise ModelError(
                    f"the cache holds {self.batch_size} rows, the model was called with {key_states.shape[0]}; "
                    "use one cache per batch"
                )
            self.lazy_initialization(key_states, value_states)
        heads, head_dim = key_states.shape[1], key_states.shape[3]
        if (heads, head_dim) != self.head_shape:
            raise ModelError(
                "the cache holds {} heads of {} channels, ".format(*self.head_shape)
                + f"the model was called with {heads} of {head_dim}; use a cache with the model that filled it"
            )
        self._is_waiting = True
        return attention.NewKeys(key_states, self), value_states

    def attend(
        self,
        q: Float[Tensor, "rows q_heads new d"],
        k: Float[Tensor, "rows heads new d"],
        v: Float[Tensor, "rows heads new d"],
        real: Bool[Tensor, "rows new"] | None,
        scale: float,
    ) -> Float[Tensor, "rows q_heads new d"]:
        """Store the new tokens and attend from them; `real` tells padding (False) apart, None means no padding."""
        self._is_waiting = False
        new = k.shape[2]
        self._note(real, new)
        if new == 1 and (real is None or bool(real.all())) and self._is_in_pages(q):
            return self._attend_pages(q, k, v, scale)
        if real is None and len(self.groups) <= 1:
            blocks = self.groups[0].blocks if self.groups else self._empty(k, v)
            blocks, out = self._grow(blocks, q, k, v, scale)
            self.groups = [RowGroup(list(range(k.shape[0])), blocks)]
            return out
        real = torch.ones(k.shape[0], new, dtype=torch.bool) if real is None else real.cpu()
        out = torch.zeros_like(q)
        groups = []
        for group in self.groups or [RowGroup(list(range(k.shape[0])), self._empty(k, v))]:
            for part, count in self._split(group, real):
                groups.append(part)
                if count:
                    groups[-1] = self._grow_rows(part, count, q, k, v, real, scale, out)
        self.groups = groups
        self._is_steady = new == 1
        return out

    def store(self, k: Float[Tensor, "rows heads new d"], v: Float[Tensor, "rows heads new d"]) -> None:
        """Store new tokens of rows without padding; attend from none."""
        self.lazy_initialization(k, v)
        self._note(None, k.shape[2])
        rows = RowGroup(list(range(k.shape[0])), self._empty(k, v))
        groups = self.groups or [rows]
        self.groups = [RowGroup(g.rows, encode(self.codec, k[g.rows], v[g.rows], g.blocks)) for g in groups]

    @property
    def nbytes(self) -> int:
        """Bytes of the real tensors."""
        return self._paged.pages.nbytes if self._paged else sum(group.blocks.nbytes for group in self._groups)

    def get_seq_length(self) -> int:
        """Positions seen, padding included."""
        return self.positions

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(positions the mask must cover, offset)."""
        return self.positions + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def activate_past_recording(self) -> None:
        """From now on the last `RECORDED_TOKENS` tokens close with the next `crop` only, so that it takes back exactly
        what candidate tokens brought (assisted decoding)."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` positions. Inside the open block nothing else changes; a block that is
        cut returns to 16 bits as what its codes stand for."""
        if tokens_to_remove > 0:
            raise SettingError(f"crop({tokens_to_remove}): use a negative number of positions to forget")
        remove = min(-tokens_to_remove, self.positions)
        self.positions -= remove
        gone = None if self.real is None else self.real[:, self.positions :].sum(1).tolist()
        self.real = None if self.real is None else self.real[:, : self.positions]
        groups = []
        for group in self.groups:
            counts = [remove if gone is None else gone[row] for row in group.rows]
            for count in sorted(set(counts)):
                part = _rows_of(group, [index for index, one in enumerate(counts) if one == count])
                blocks = part.blocks
                blocks = blocks.crop(blocks.num_tokens - count, self.codec) if count else blocks
                groups.append(RowGroup(part.rows, blocks.close(self.codec) if blocks.num_tokens else blocks))
        self.groups = groups if self.positions else []

    def reset(self) -> None:
        """Forget everything."""
        self.__init__(self.codec, self.prefill)

    def restored(self, real: Tensor | None, positions: int, num_rows: int) -> None:
        """Go on from blocks that were put into `groups`: `real` positions, their number, and the batch size."""
        first = self.groups[0].blocks.k.open
        self.real, self.positions, self.batch_size = real, positions, num_rows
        self.head_shape = (first.shape[1], first.shape[3])
        self.dtype, self.device, self.is_initialized = first.dtype, first.device, True

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, copies side by side."""
        self.batch_select_indices(torch.arange(self.batch_size).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row i becomes what row `indices[i]` was."""
        if not self.groups:
            return
        chosen = indices.flatten().tolist() if indices.dtype != torch.bool else indices.nonzero().flatten().tolist()
        groups = []
        for group in self.groups:
            place = {row: index for index, row in enumerate(group.rows)}
            taken = [(new, place[old]) for new, old in enumerate(chosen) if old in place]
            if taken:
                index = torch.tensor([old for _, old in taken])
                groups.append(RowGroup([new for new, _ in taken], group.blocks.rows(index)))
        self.groups = groups
        self.batch_size = len(chosen)
        self.real = None if self.real is None else self.real[torch.tensor(chosen)]

    def offload(self) -> None:
        """Move everything to the CPU."""
        self._move(torch.device("cpu"))

    def prefetch(self) -> None:
        """Move everything back to the device of the model."""
        if self.is_initialized:
            self._move(self.device)

    def _is_in_pages(self, q: Tensor) -> bool:
        """Whether a step is done in pages: where rows of several lengths have taken steps undisturbed, so that moving
        them into pages, and out again when they are disturbed, pays."""
        if self._paged is not None or self.record_past or not self._is_steady or len(self._groups) < 2:
            return self._paged is not None and not self.record_past
        codec, held = self.codec, [group.blocks for group in self._groups]
        if not isinstance(codec, PagedCodec) or not codec.suits_pages(q, held):
            return False
        place = {row: (group, index) for group in self._groups for index, row in enumerate(group.rows)}
        rows = [group.blocks.rows(torch.tensor([index])) for _, (group, index) in sorted(place.items())]
        self._paged, self._groups = PagedRows(rows, codec), []
        return True

    def _attend_pages(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        assert self._paged is not None
        assert isinstance(self.codec, PagedCodec)
        self._paged.grow(k, v)
        return self.codec.attend_pages(q, self._paged.pages, scale)

    def _move(self, device: torch.device) -> None:
        self.groups = [RowGroup(g.rows, g.blocks.each(lambda t: t.to(device))) for g in self.groups]

    def _empty(self, k: Tensor, v: Tensor) -> Blocks:
        self.codec.check(k.shape[-1])
        return Blocks.empty(k, v, self.codec.dense_dtype(k.dtype))

    def _note(self, real: Tensor | None, new: int) -> None:
        if real is not None and not bool(real.all()) and self.real is None:
            self.real = torch.ones(self.batch_size, self.positions, dtype=torch.bool)
        if self.real is not None:
            fresh = torch.ones(self.batch_size, new, dtype=torch.bool) if real is None else real.cpu()
            self.real = torch.cat([self.real, fresh], 1)
        self.positions += new

    def _split(self, group: RowGroup, real: Bool[Tensor, "rows new"]) -> list[tuple[RowGroup, int]]:
        """Part the rows of a group by how many tokens each gets."""
        counts = real[group.rows].sum(1).tolist()
        if len(set(counts)) == 1:
            return [(group, counts[0])]
        return [
            (_rows_of(group, [index for index, one in enumerate(counts) if one == count]), count)
            for count in sorted(set(counts))
        ]

    def _grow_rows(
        self, group: RowGroup, count: int, q: Tensor, k: Tensor, v: Tensor, real: Tensor, scale: float, out: Tensor
    ) -> RowGroup:
        rows = torch.tensor(group.rows, device=k.device)
        where = real[group.rows].nonzero()[:, 1].view(len(group.rows), count).to(k.device)

        def take(x: Tensor) -> Tensor:
            return x[rows[:, None], :, where].transpose(1, 2)

        blocks, mixed = self._grow(group.blocks, take(q), take(k), take(v), scale)
        out[rows[:, None], :, where] = rearrange(mixed, "r h t d -> r t h d")
        return RowGroup(group.rows, blocks)

    def _grow(self, blocks: Blocks, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Blocks, Tensor]:
        """Append and attend, for rows without padding."""
        new = k.shape[2]
        if self.record_past or (self.prefill == "exact" and new > 1):
            mixed = self._attend_exact(blocks, q, k, v, scale)
            held_back = RECORDED_TOKENS if self.record_past else 0
            return blocks.append(k, v, self.codec).close(self.codec, held_back), mixed
        if new > 1 and isinstance(self.codec, ChunkCodec):
            done = self.codec.attend_chunk(q, blocks, k, v, scale)
            if done is not None:
                return done
        pieces, first = [], 0
        while first < new:
            span = next_closing(self.codec, blocks.num_tokens, blocks.num_tokens + new - first) - blocks.num_tokens
            piece = slice(first, first + span)
            blocks = encode(self.codec, k[:, :, piece], v[:, :, piece], blocks)
            pieces.append(self.codec.attend(q[:, :, piece], blocks, scale))
            first += span
        return blocks, torch.cat(pieces, 2)

    def _attend_exact(self, blocks: Blocks, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attend from a whole chunk whose own tokens are not coded yet."""
        if not blocks.num_tokens:
            attend = torch.nn.functional.scaled_dot_product_attention
            return attend(q, k, v, is_causal=k.shape[2] > 1, scale=scale, enable_gqa=True)
        pieces, piece = [], 256 if q.device.type == "cpu" else 2048  # tokens, for the memory that a codec may take
        for first in range(0, k.shape[2], piece):
            last = min(first + piece, k.shape[2])
            seen = blocks.append(k[:, :, :last], v[:, :, :last], self.codec)
            pieces.append(self.codec.attend(q[:, :, first:last], seen, scale))
        return torch.cat(pieces, 2)


def _rows_of(group: RowGroup, chosen: list[int]) -> RowGroup:
    if len(chosen) == len(group.rows):
        return group
    return RowGroup([group.rows[index] for index in chosen], group.blocks.rows(torch.tensor(chosen)))


class CompressedCache(Cache):
    """Pass it to `model.generate(..., past_key_values=cache)`. One cache serves one batch of conversations."""

    def __init__(self, layers: list[Any]) -> None:
        super().__init__(layers=layers)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Tensor]:
        """Hand new keys and values to their layer. Raises `ModelError` for a layer that the cache was not made for."""
        if layer_idx >= len(self.layers):
            raise ModelError(
                f"the cache was made for a model of {len(self.layers)} layers, this one has more; "
                "make the cache with CompressedCache.of(model, codec) for the model that uses it"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @staticmethod
    def of(
        model: PreTrainedModel,
        codec: Codec | list[Codec | None],
        prefill: Prefill = "exact",
        prepare: bool = True,
    ) -> "CompressedCache":
        """A cache for `model`: one codec for all full-attention layers, or a list with one for each layer.

        Sliding-window layers, and layers whose codec is None, keep the cache that transformers gives them. With
        `prepare` the model's attention is set to thrifty's, which is PyTorch's own wherever no compressed cache is
        in use. Raises `ModelError` naming what is not supported.
        """
        config = model.config.get_text_config(decoder=True)
        kinds, arguments = get_layer_types_and_kwargs(config)
        if isinstance(arguments, dict):  # as in transformers 5.17: one set of arguments for all layers
            arguments = [arguments] * len(kinds)
        codecs = codec if isinstance(codec, list) else [codec] * len(kinds)
        if "full_attention" not in kinds:
            raise ModelError(f"{type(model).__name__} has no layer of full attention: nothing would be compressed")
        if len(codecs) != len(kinds):
            raise SettingError(f"{len(codecs)} codecs for a model of {len(kinds)} layers; give one each")
        if prepare:
            attention.prepare(model)
        layers = []
        for kind, argument, one in zip(kinds, arguments, codecs, strict=True):
            if kind == "full_attention" and one is not None:
                layers.append(CompressedLayer(one, prefill))
            elif kind in ("full_attention", "sliding_attention", "chunked_attention", "dummy"):
                layers.append(DYNAMIC_LAYER_TYPE_MAPPING[kind](**argument))
            else:
                raise ModelError(
                    f"{type(model).__name__} has layers of type {kind}; a compressed cache supports full_attention, "
                    "and passes sliding_attention and chunked_attention through"
                )
        return CompressedCache(layers)

    @property
    def compressed(self) -> list[CompressedLayer]:
        """The layers that a codec holds."""
        return [layer for layer in self.layers if isinstance(layer, CompressedLayer)]

    @property
    def nbytes(self) -> int:
        """Bytes of the real tensors of all layers, those passed through included."""
        total = 0
        for layer in self.layers:
            if isinstance(layer, CompressedLayer):
                total += layer.nbytes
            else:
                held = (getattr(layer, name, None) for name in ("keys", "values"))
                total += sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor))
        return total
