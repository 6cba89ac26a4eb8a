"""Work on a GPU that is recorded once as a CUDA graph and replayed: many small kernels for the price of one launch."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
EAGER_CALLS = 4
"""So many calls run as they are before one is recorded: libraries and optimisers make their buffers in them."""


class Replay(Generic[T]):
    """A function of tensors. On a GPU its first calls run as they are, the next is recorded, and from then on that is
    replayed, with new values in the tensors it was recorded with. Elsewhere it is simply called.

    The function must do the same every time and wait for no value. What changes from call to call are the tensors
    given to it, others that are written in place, and `generators`, which may be seeded anew before each call. What it
    returns is overwritten by the next call. Functions that take turns may share the memory `pool`.
    """

    def __init__(
        self,
        function: Callable[..., T],
        device: torch.device,
        *,
        generators: Sequence[torch.Generator] = (),
        is_recorded: bool = True,
        pool: Any = None,
    ) -> None:
        """Nothing is run yet; with `is_recorded=False` a GPU runs the function as every other device does."""
        self._function, self._device, self._generators, self._pool = function, device, generators, pool
        self.is_recorded = is_recorded and device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Forget what was recorded, since tensors that the function works on are others now."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: tuple[Tensor, ...] = ()
        self._result: Any = None
        self._eager_calls = 0

    def __call__(self, *given: Tensor) -> T:
        """What the function returns."""
        if not self.is_recorded:
            return self._function(*given)
        with torch.cuda.device(self._device):
            if self._graph is None and self._eager_calls < EAGER_CALLS:
                return self._run(*given)
            if self._graph is None:
                self._graph = self._recorded(given)
            for static, new in zip(self._given, given, strict=True):
                static.copy_(new)
            self._graph.replay()
            return self._result

    def _run(self, *given: Tensor) -> T:
        self._eager_calls += 1
        side = torch.cuda.Stream()  # what is recorded must have run on a stream of its own before
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            result = self._function(*given)
        torch.cuda.current_stream().wait_stream(side)
        return result

    def _recorded(self, given: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        self._given = tuple(one.clone() for one in given)
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self._pool):
            self._result = self._function(*self._given)
        return graph


def uncached_autocast(device: torch.device) -> torch.autocast:
    """The autocast that is on now, without its cache: what a graph holds must cast weights anew in every replay."""
    kind = device.type
    enabled = torch.is_autocast_enabled(kind)
    return torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=enabled, cache_enabled=False)
