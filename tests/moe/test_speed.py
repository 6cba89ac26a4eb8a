"""Tokens per second: of every model, phase and batch; the slower model is the slower one."""

import time
from typing import Any

import torch

from thrifty.moe.speed import tokens_per_second


class Slow(torch.nn.Module):
    """A model that waits before it answers."""

    def __init__(self, inner: Any, seconds: float) -> None:
        super().__init__()
        self.inner, self.seconds = inner, seconds
        self.config, self.device = inner.config, inner.device

    def forward(self, **inputs: Any) -> Any:
        time.sleep(self.seconds)
        return self.inner(**inputs)


def test_a_model_that_waits_is_slower_in_every_phase_and_batch(tiny) -> None:
    models = {"quick": tiny(), "slow": Slow(tiny(), 0.05)}
    rates = tokens_per_second(models, batches=(1, 3), prompt=8, new=3, rounds=2)
    for phase in ("prefill", "decode"):
        for size in ("1", "3"):
            assert rates["slow"][phase][size] < 0.7 * rates["quick"][phase][size]
    assert rates["slow"]["decode"]["1"] < 1 / 0.05 + 1


def test_models_take_turns(tiny) -> None:
    order: list[str] = []

    class Named(Slow):
        def forward(self, **inputs: Any) -> Any:
            order.append("a" if self.seconds == 0 else "b")
            return self.inner(**inputs)

    models = {"a": Named(tiny(), 0.0), "b": Named(tiny(), 1.0)}
    tokens_per_second(models, batches=(1,), prompt=4, new=1, rounds=2)
    assert order == list("aabb") * 3
