"""The pass over the calibration windows shows each layer what it sees, once, and leaves nothing behind."""

import torch
from torch.nn.functional import linear

from thrifty.moe import calibrate
from thrifty.moe.job import MoeJob


def test_each_layer_is_looked_at_once_in_order_with_all_tokens(job: MoeJob) -> None:
    seen = []

    def look(site, x, h) -> None:
        seen.append(site.index)
        assert x.shape == (8 * 32, site.width)
        gate, up = linear(x, site.gate.weight), linear(x, site.up.weight)
        assert torch.allclose(h, site.activation(gate) * up, atol=1e-5)

    calibrate.visit(job, look)
    assert seen == [0, 1, 2]
    assert not any(module._forward_pre_hooks for module in job.model.modules())


def test_calibration_windows_are_those_of_training_and_never_held_out(job: MoeJob) -> None:
    windows = job.calibration_windows()
    assert torch.equal(windows, job.corpus.batch(0, 8))
    held = {tuple(row) for row in job.corpus.held_out.tolist()}
    assert not held & {tuple(row) for row in windows.tolist()}


def test_column_norms_are_those_of_the_down_projection(job: MoeJob) -> None:
    site = job.sites[1]
    assert torch.allclose(calibrate.column_norms(site), site.down.weight.square().sum(0).sqrt())
