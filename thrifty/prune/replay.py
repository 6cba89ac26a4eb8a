"""Work on a GPU that is captured once and replayed: many small kernels for the price of one launch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_EAGER_CALLS = 4  # before a capture, so that all libraries and optimisers have made their buffers


class Replay:
    """A function of tensors. Its first calls run as they are, the next is captured as a CUDA graph, and from then on it
    is replayed with new values in the tensors that it was captured with.

    The function must do the same every time, wait for no value, and take tensors that keep their shapes. What it
    returns is overwritten by the next call. Elsewhere than on a GPU it simply runs.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device) -> None:
        """Nothing is run yet."""
        self._function, self._is_cuda = function, device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Forget what was captured, since tensors that the function works on are others now."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: tuple[Tensor, ...] = ()
        self._result: Any = None
        self._eager_calls = 0

    def __call__(self, *given: Tensor) -> Any:
        """What the function returns."""
        if not self._is_cuda:
            return self._function(*given)
        if self._graph is None and self._eager_calls < _EAGER_CALLS:
            return self._run(*given)
        if self._graph is None:
            self._capture(given)
        for static, new in zip(self._given, given, strict=True):
            static.copy_(new)
        assert self._graph is not None
        self._graph.replay()
        return self._result

    def _run(self, *given: Tensor) -> Any:
        self._eager_calls += 1
        side = torch.cuda.Stream()  # what is captured must have run on a stream of its own before
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            result = self._function(*given)
        torch.cuda.current_stream().wait_stream(side)
        return result

    def _capture(self, given: tuple[Tensor, ...]) -> None:
        self._given = tuple(one.clone() for one in given)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = self._function(*self._given)


def uncached_autocast(device: torch.device) -> torch.autocast:
    """The autocast that is on now, without its cache: what a graph holds must cast weights anew in every replay."""
    kind = device.type
    enabled = torch.is_autocast_enabled(kind)
    return torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=enabled, cache_enabled=False)
