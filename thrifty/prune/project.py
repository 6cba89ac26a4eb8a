"""All parts of all groups at once: how large they are, and making those smaller that are to go.

A part holds what makes it and what follows it (its filter, its normalisation) as one vector g. Where all of it is 0,
the part does nothing. Here is the proximal step of ATO (Wu et al., CVPR 2024, section 3.3), g <- g max(0, 1 - amount /
|g|), as a few operations on flat tensors, however many layers there are. `drop` and `shorten` are the cheapest: what is
to go is written out element by element only when it changes, and `replay` makes of each step one launch on a GPU.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.prune.coupling import Group, Slice
from thrifty.prune.layout import Layout
from thrifty.replay import Replay


class Projection:
    """The parts of a network, ready to be measured and scaled together. Holds good until a tensor changes its shape."""

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        """Find the parameters of every part of `groups`."""
        self.layout = Layout.of(groups)
        parameters = dict(model.named_parameters())
        first, owners = 0, {}
        for group in groups:
            for one in group.slices:
                if (one.role != "reads" or group.leaks) and one.tensor in parameters:
                    rows = owners.setdefault((one.tensor, one.dim), {})
                    rows.update(_rows(one, first))
            first += group.size
        self.device = next(iter(parameters.values())).device
        self.parameters = [parameters[name] for name, _ in owners]
        self._dims = [dim for _, dim in owners]
        part_of_row = [
            torch.tensor([rows.get(row, first) for row in range(one.shape[dim])], dtype=torch.int32)
            for (_, dim), rows, one in zip(owners, owners.values(), self.parameters, strict=True)
        ]
        self._part_of_row = torch.cat(part_of_row).to(self.device)
        self._part_of_element = torch.cat(
            [
                rows.repeat_interleave(one.numel() // len(rows))
                for rows, one in zip(part_of_row, self.parameters, strict=True)
            ]
        ).to(self.device)
        rows = torch.tensor([one.numel() // len(own) for one, own in zip(self.parameters, part_of_row, strict=True)])
        counts = torch.tensor([len(own) for own in part_of_row])
        self._row_sizes = rows.repeat_interleave(counts).to(self.device)
        self._factors = torch.ones(len(self._part_of_element), device=self.device)
        self._share, self._one = torch.zeros((), device=self.device), torch.ones((), device=self.device)
        self._dropped: Tensor | None = None
        self._shorten = Replay(self._shortened, self.device, is_recorded=False)
        self._find_views()

    def replay(self) -> None:
        """On a GPU, replay `shorten` from a CUDA graph from now on."""
        self._shorten = Replay(self._shortened, self.device)

    @torch.no_grad()
    def norms(self) -> Float[Tensor, " parts"]:
        """The Euclidean length of every part."""
        self._check_views()
        flat = self._flat(self.parameters) if self._others else self._views
        return self._inner(flat, flat).clamp_min(0).sqrt()

    @torch.no_grad()
    def dots(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Float[Tensor, " parts"]:
        """For every part the inner product of two lists of tensors that are shaped as `parameters` are."""
        return self._inner(self._flat(left), self._flat(right))

    def _inner(self, left: list[Tensor], right: list[Tensor]) -> Float[Tensor, " parts"]:
        products = torch._foreach_mul(left, right)  # pyright: ignore[reportPrivateImportUsage]
        flat = torch.cat([one.float() for one in products])
        rows = torch.segment_reduce(flat, "sum", lengths=self._row_sizes, unsafe=True)
        parts = torch.zeros(self.layout.num_parts + 1, device=self.device)
        return parts.index_add_(0, self._part_of_row, rows)[:-1]

    @torch.no_grad()
    def scale(self, factor: Float[Tensor, " parts"]) -> None:
        """Multiply every part in place by its factor."""
        self._check_views()
        self._spread(factor, 1.0, self._factors)
        self._multiply()

    def _multiply(self) -> None:
        torch._foreach_mul_(self._views, self._pieces(self._factors))  # pyright: ignore[reportPrivateImportUsage]
        for one, dim, place in self._others:
            one.mul_(_as(self._split(self._factors)[place], one, dim))

    @torch.no_grad()
    def drop(self, kept: Float[Tensor, " parts"]) -> None:
        """Say which parts are to go (those with 0) when `shorten` is called."""
        if self._dropped is None:
            self._dropped = torch.zeros_like(self._factors)
        self._spread(1 - kept, 0.0, self._dropped)

    @torch.no_grad()
    def shorten(self, share: float) -> None:
        """Every part that is to go loses this share of its length; with 1 it is exactly 0."""
        if self._dropped is None:
            return
        self._check_views()
        self._share.fill_(share)
        self._shorten()

    @torch.no_grad()
    def _shortened(self) -> None:
        """The work of `shorten`, with the share in its tensor."""
        assert self._dropped is not None
        torch.addcmul(self._one, self._dropped, self._share, value=-1, out=self._factors)
        self._multiply()

    def _spread(self, values: Float[Tensor, " parts"], elsewhere: float, out: Tensor) -> None:
        """Write the value of its part for each element, and another where an element belongs to none."""
        whole = torch.nn.functional.pad(values.to(out.dtype), (0, 1), value=elsewhere)
        torch.index_select(whole, 0, self._part_of_element, out=out)

    def _check_views(self) -> None:
        if any(one.data_ptr() != place for one, place in zip(self.parameters, self._places, strict=True)):
            self._find_views()

    def _find_views(self) -> None:
        """Where memory has the order of the elements, a parameter is used flat; the others are used as they are."""
        self._places = [one.data_ptr() for one in self.parameters]
        flat = self._flat(self.parameters)
        is_view = [view.data_ptr() == place for view, place in zip(flat, self._places, strict=True)]
        self._views = [view for view, is_one in zip(flat, is_view, strict=True) if is_one]
        self._viewed = [number for number, is_one in enumerate(is_view) if is_one]
        rest = [number for number, is_one in enumerate(is_view) if not is_one]
        self._others = [(self.parameters[number], self._dims[number], number) for number in rest]
        self._shorten.reset()

    def _split(self, elements: Tensor) -> tuple[Tensor, ...]:
        """A piece for each parameter."""
        return elements.split([one.numel() for one in self.parameters])

    def _pieces(self, elements: Tensor) -> list[Tensor]:
        """The pieces that go with `_views`."""
        pieces = self._split(elements)
        return [pieces[number] for number in self._viewed]

    def shrink(self, amount: Float[Tensor, " parts"], norms: Float[Tensor, " parts"] | None = None) -> None:
        """The proximal step: every part becomes shorter by its amount, and 0 where it is no longer than that."""
        lengths = self.norms() if norms is None else norms
        self.scale((1 - amount / lengths.clamp_min(1e-8)).clamp_min(0))

    def _flat(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor row after row along the dimension that its parts lie on; a view where memory has that order."""
        return [_flat(one.detach(), dim) for one, dim in zip(tensors, self._dims, strict=True)]


def _rows(one: Slice, first: int) -> dict[int, int]:
    """The number of the part to which each position of the slice belongs."""
    return {int(row): first + part for part, rows in enumerate(one.index.tolist()) for row in rows}


def _as(piece: Tensor, like: Tensor, dim: int) -> Tensor:
    """A flat piece in the shape of the tensor that it goes with."""
    return piece.view(like.movedim(dim, 0).shape).movedim(0, dim)


def _flat(tensor: Tensor, dim: int) -> Tensor:
    moved = tensor.movedim(dim, 0)
    is_outer = moved.dim() > 0 and all(moved.stride(0) >= stride for stride in moved.stride())
    if is_outer and torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return moved.reshape(-1)
