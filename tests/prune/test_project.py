"""All parts at once, measured and scaled as one by one."""

import copy

import pytest
import torch
from conftest import fresh
from torch.utils._python_dispatch import TorchDispatchMode

from thrifty.prune.coupling import coupling_of
from thrifty.prune.gating import zero
from thrifty.prune.job import PruneJob
from thrifty.prune.models import ResNet, resnet8
from thrifty.prune.project import Projection


def one_by_one(job: PruneJob, group, part: int) -> torch.Tensor:
    """What makes and follows a part, as one vector."""
    parameters = dict(job.model.named_parameters())
    pieces = [
        parameters[one.tensor].detach().index_select(one.dim, one.index[part]).flatten()
        for one in group.slices
        if one.role != "reads" and one.tensor in parameters
    ]
    return torch.cat(pieces)


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["rows", "channels_last"])
def laid(request, made_job: PruneJob) -> PruneJob:
    """The job with its network in either order of memory."""
    job = fresh(made_job)
    job.model.to(memory_format=request.param)
    return job


def test_norms_are_those_of_the_parts(laid: PruneJob) -> None:
    norms = Projection(laid.model, laid.groups).norms()
    expected = [one_by_one(laid, group, part).norm() for group in laid.groups for part in range(group.size)]
    assert torch.allclose(norms, torch.stack(expected), rtol=1e-5)


def test_a_factor_scales_its_part_and_nothing_else(laid: PruneJob) -> None:
    projection = Projection(laid.model, laid.groups)
    group, number = laid.groups[1], laid.groups[0].size + 3
    before = copy.deepcopy(laid.model.state_dict())
    factor = torch.ones(projection.layout.num_parts)
    factor[number] = 0.5
    vector = one_by_one(laid, group, 3)
    projection.scale(factor)
    assert torch.equal(one_by_one(laid, group, 3), vector / 2)
    projection.scale(1 / factor)
    assert all(torch.equal(tensor, before[name]) for name, tensor in laid.model.state_dict().items())


def test_scaling_by_zero_is_zeroing_what_makes_and_follows(laid: PruneJob) -> None:
    projection = Projection(laid.model, laid.groups)
    keep = {group.name: (torch.arange(group.size) % 3 > 0).float() for group in laid.groups}
    other = copy.deepcopy(laid.model)
    zero(other, laid.groups, keep)
    projection.scale(projection.layout.flat(keep))
    norms = Projection(laid.model, laid.groups).norms()
    assert torch.equal(norms > 0, projection.layout.flat(keep) > 0)
    inputs = torch.randn(2, 3, 8, 8)
    assert torch.allclose(laid.model.eval()(inputs), other.eval()(inputs), atol=1e-6)


def test_shortening_what_goes_is_scaling_it_and_ends_at_exactly_zero(laid: PruneJob) -> None:
    other = fresh(laid)
    other.model.to(memory_format=torch.channels_last)
    short, scaled = Projection(laid.model, laid.groups), Projection(other.model, other.groups)
    kept = (torch.arange(short.layout.num_parts) % 3 > 0).float()
    short.shorten(0.5)  # nothing is to go yet
    short.drop(kept)
    for remaining in (4, 3, 2):
        short.shorten(1 / remaining)
        scaled.scale(1 - (1 - kept) / remaining)
    pairs = zip(laid.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.allclose(one, same, rtol=1e-6) for one, same in pairs)
    short.shorten(1.0)
    assert torch.equal(short.norms() > 0, kept > 0)


@pytest.mark.parametrize("name", ["resnet8", "deeper"])
def test_the_number_of_launches_does_not_grow_with_the_network(name: str) -> None:
    model = resnet8() if name == "resnet8" else ResNet([4, 4, 4], [8, 16, 24])
    groups = coupling_of(model, (torch.randn(2, 3, 32, 32),), is_tried=False).prunable(residual=True)
    projection = Projection(model, groups)
    kept = torch.ones(projection.layout.num_parts)
    projection.drop(kept)
    for call, most in ((lambda: projection.shorten(0.1), 3), (lambda: projection.drop(kept), 4),
                       (lambda: projection.scale(kept), 3), (projection.norms, 12)):  # fmt: skip
        with Launches() as launches:
            call()
        assert launches.count <= most


class Launches(TorchDispatchMode):
    """Counts the operators that are no views."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        alias = function._schema.returns[0].alias_info if function._schema.returns else None
        self.count += alias is None or alias.is_write
        return function(*args, **(kwargs or {}))


@pytest.mark.gpu
def test_a_projection_on_a_gpu_is_that_on_a_cpu(laid: PruneJob) -> None:
    other = copy.deepcopy(laid.model).cuda()
    here, there = Projection(laid.model, laid.groups), Projection(other, laid.groups)
    kept = (torch.arange(here.layout.num_parts) % 3 > 0).float()
    there.replay()
    for one, mask in ((here, kept), (there, kept.cuda())):
        one.drop(mask)
        for number in range(8):  # the first ones eager, one recorded, the rest replayed
            one.shorten(0.02 * number)
        one.shrink(torch.full_like(mask, 0.1))
    assert torch.allclose(here.norms(), there.norms().cpu(), rtol=1e-4)
    pairs = zip(laid.model.parameters(), other.parameters(), strict=True)
    assert all(torch.allclose(one, same.cpu(), atol=1e-5) for one, same in pairs)


def test_the_proximal_step_shortens_by_its_amount_and_stops_at_zero(laid: PruneJob) -> None:
    projection = Projection(laid.model, laid.groups)
    before = projection.norms()
    amount = torch.linspace(0, 2 * float(before.max()), len(before))
    projection.shrink(amount)
    assert torch.allclose(projection.norms(), (before - amount).clamp_min(0), atol=1e-4)


def test_inner_products_are_those_of_the_parts(made_job: PruneJob) -> None:
    job = fresh(made_job)
    projection = Projection(job.model, job.groups)
    other = [torch.randn_like(one) for one in projection.parameters]
    ones = projection.dots(projection.parameters, other)
    with torch.no_grad():
        for one, drawn in zip(projection.parameters, other, strict=True):
            one.add_(drawn)
    summed = projection.norms().square()
    with torch.no_grad():
        for one, drawn in zip(projection.parameters, other, strict=True):
            one.sub_(drawn)
    expected = (summed - projection.norms().square() - projection.dots(other, other)) / 2
    assert torch.allclose(ones, expected, atol=1e-2)


def test_a_transposed_convolution_has_its_parts_along_its_second_dimension() -> None:
    model = torch.nn.Sequential(
        torch.nn.ConvTranspose2d(3, 6, 2, 2), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Conv2d(6, 4, 1)
    )
    coupling = coupling_of(model, (torch.randn(2, 3, 4, 4),))
    projection = Projection(model, coupling.prunable())
    expected = sum(one.detach().square().sum() for one in (*model[0].parameters(), *model[1].parameters()))
    assert projection.norms().square().sum() == pytest.approx(float(expected), rel=1e-5)
    projection.scale(torch.tensor([0.0, 1, 1, 1, 1, 1]))
    assert (model[0].weight[:, 0] == 0).all()
    assert (model[0].weight[:, 1:] != 0).all()


@pytest.mark.slow
def test_a_projection_takes_little_of_a_training_step() -> None:
    import time

    model = resnet8()
    groups = coupling_of(model, (torch.randn(2, 3, 32, 32),), is_tried=False).prunable()
    projection = Projection(model, groups)
    ones, x = torch.ones(projection.layout.num_parts), torch.randn(64, 3, 32, 32)
    times = {"step": [], "projection": []}
    for _ in range(5):
        start = time.perf_counter()
        model(x).sum().backward()
        times["step"].append(time.perf_counter() - start)
        start = time.perf_counter()
        projection.scale(ones)
        times["projection"].append(time.perf_counter() - start)
    assert min(times["projection"]) < 0.03 * min(times["step"])
