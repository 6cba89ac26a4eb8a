"""The latency table: exact at what was measured, monotone, differentiable, and right for real networks."""

import pytest
import torch
from torch import nn
from zoo import Inverted, Vit

from thrifty.errors import SettingError
from thrifty.prune import latency as latency_module
from thrifty.prune.apply import smaller
from thrifty.prune.cost import budget_of
from thrifty.prune.coupling import Extent, Group, coupling_of
from thrifty.prune.latency import Latency, latency_of, read_latency
from thrifty.prune.lengths import Lengths
from thrifty.prune.models import resnet8

CPU = torch.device("cpu")


def table():
    """One layer that makes the parts of a group out of three channels, in a millisecond for every part."""
    lengths = Lengths.of([Group("one", 9, ())], [Extent(3.0, {}), Extent(0.0, {"one": torch.ones(9).double()})])
    grid = torch.tensor([[3.0, 4, 5, 6, 7], [1, 3, 5, 7, 9]]).double()
    return Latency(1, lengths, grid, grid[1].expand(1, 5, 5).contiguous(), rest=2.0, share=0.5)


def test_between_measured_widths_it_is_linear():
    for count in range(1, 10):
        assert float(table()({"one": (torch.arange(9) < count).float()})) == pytest.approx(2 + 0.5 * count)


def test_it_has_a_gradient_for_every_part():
    keep = torch.full((9,), 0.7, requires_grad=True)
    table()({"one": keep}).backward()
    assert torch.allclose(keep.grad, torch.full((9,), 0.5))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(latency_module, "_ROUNDS", 1)


def counting(monkeypatch):
    """Replace the clock: a layer takes as many milliseconds as it has multiplications."""

    def multiplications(run):
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / 2e6

    monkeypatch.setattr(latency_module, "_milliseconds", multiplications)


def test_with_multiplications_for_a_clock_it_is_the_flops(monkeypatch):
    """Multiplications are linear in either width, so the interpolated table must be the exact count."""
    counting(monkeypatch)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), Inverted(8, 16, 12), nn.ConvTranspose2d(12, 8, 2), nn.Flatten(), nn.Linear(4608, 5)
    )
    coupling = coupling_of(model.eval(), (torch.randn(2, 3, 25, 25),), is_tried=False)
    found = latency_of(model, coupling, 4, CPU)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        keep = {
            g.name: (torch.rand(g.size, generator=generator) < 0.6).float() for g in coupling.prunable(residual=True)
        }
        for kept in keep.values():
            kept[0] = 1.0
        network = smaller(model, coupling, keep)
        expected = latency_module._milliseconds(lambda network=network: network(torch.randn(4, 3, 25, 25)))
        assert float(found(keep)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("model", [resnet8(), Vit()], ids=["resnet8", "vit"])
def test_it_is_the_measured_time_of_the_whole_network_and_never_falls_with_width(model, quick):
    coupling = coupling_of(model, (torch.randn(2, 3, 16, 16),), is_tried=False)
    found = latency_of(model, coupling, 8, CPU)
    groups = coupling.prunable(residual=True)
    times = [
        float(found({g.name: (torch.arange(g.size) < max(1, round(share * g.size))).float() for g in groups}))
        for share in (0.1, 0.3, 0.5, 0.8, 1.0)
    ]
    assert times == sorted(times)
    assert times[-1] == float(found({}))
    assert 0 < times[0] <= times[-1] < 1000


def test_budgets_of_time_are_read_and_measured(monkeypatch):
    counting(monkeypatch)
    model = resnet8()
    coupling = coupling_of(model, (torch.randn(2, 3, 16, 16),), is_tried=False)
    budget = budget_of("latency=60%@4", coupling, residual=True, model=model)
    assert budget.unit == "ms at batch 4"
    assert budget.limit == pytest.approx(0.6 * budget.spent({}))
    with pytest.raises(SettingError, match="this model cannot go below"):
        budget_of("latency=1%@4", coupling, model=model)


@pytest.mark.parametrize(("text", "limit", "batch"), [("5ms@32", 5.0, 32), ("0.5 ms", 0.5, 1), ("60%@8", 6.0, 8)])
def test_a_text_gives_a_limit_and_a_batch(text, limit, batch):
    found, size = read_latency(text)
    assert (found(10.0), size) == (pytest.approx(limit), batch)


@pytest.mark.parametrize("text", ["", "5", "0ms", "5ms@0", "5s@2", "ms@3", "-5ms"])
def test_a_text_that_makes_no_sense_is_refused(text):
    with pytest.raises(SettingError, match="use milliseconds or a share"):
        read_latency(text)


@pytest.mark.parametrize("text", ["11ms", "101%@3"])
def test_more_than_the_whole_is_refused(text):
    with pytest.raises(SettingError, match="takes only 10 ms"):
        read_latency(text)[0](10.0)
