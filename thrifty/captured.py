"""Work that is done many times alike, recorded once as a CUDA graph: launching thousands of small kernels one by one
takes a GPU's host longer than the kernels take."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

EAGER_CALLS = 3
"""So many times the work runs as it is before it is recorded: libraries set themselves up in their first calls."""


class Captured(Generic[T]):
    """Calls `work`; on a CUDA device it is recorded at the fourth call and from then on replayed.

    What changes from call to call must be in tensors that are written in place before, and in `generators`, which may
    be seeded anew before each call. `work` must read nothing on the host. What it returns are the same tensors at every
    replay, with new values: copy what is to be kept. Graphs that take turns may share the memory `pool`.
    """

    def __init__(
        self,
        work: Callable[[], T],
        device: torch.device,
        *,
        generators: Sequence[torch.Generator] = (),
        is_recorded: bool = True,
        pool: Any = None,
    ) -> None:
        """Prepare; `is_recorded=False` calls `work` as it is, as every other device does."""
        self.work, self.generators, self.pool = work, generators, pool
        self.device = device
        self.is_recorded = is_recorded and device.type == "cuda"
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: T

    def __call__(self) -> T:
        """Do the work once."""
        if not self.is_recorded:
            return self.work()
        with torch.cuda.device(self.device):
            return self._recorded()

    def _recorded(self) -> T:
        if self._graph is None and self._calls < EAGER_CALLS:
            self._calls += 1
            return self._aside()
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            for generator in self.generators:
                self._graph.register_generator_state(generator)
            with torch.cuda.graph(self._graph, pool=self.pool):
                self._result = self.work()
        self._graph.replay()
        return self._result

    def _aside(self) -> T:
        side = torch.cuda.Stream()  # what is recorded must have run on a stream of its own before
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            result = self.work()
        torch.cuda.current_stream().wait_stream(side)
        return result
