"""Batches hold the images they say, moved and mirrored as drawn, the same for the same seed and epoch."""

import torch

from thrifty.prune.batches import Batches, memory_order, mixed, normalised
from thrifty.prune.images import Images, Split
from thrifty.prune.run import Run
from thrifty.prune.unpruned import Unpruned

CPU = torch.device("cpu")


def some(count: int = 20, is_mirrored: bool = True) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 6, 5, 3), generator=generator, dtype=torch.uint8)
    split = Split(pixels, torch.arange(count) % 4)
    return Images("some", split, split, tuple("abcd"), shift=2, is_mirrored=is_mirrored)


def test_an_image_that_is_not_moved_is_the_image() -> None:
    found = some()
    batches = Batches.of(found, 8, 0, CPU)
    draw = torch.tensor([[3, 2, 2, 0, 0, 0], [7, 2, 2, 1, 0, 0]])
    inputs, labels = batches.take(draw)
    plain = torch.cat([inputs for inputs, _ in batches.plain(found.train)])
    assert torch.equal(inputs[0], plain[3])
    assert torch.equal(inputs[1], plain[7].flip(-1))
    assert labels.tolist() == [3, 3]


def test_a_moved_image_has_a_black_border() -> None:
    found = some()
    batches = Batches.of(found, 8, 0, CPU)
    inputs, _ = batches.take(torch.tensor([[3, 0, 4, 0, 0, 0]]))  # two pixels down, two to the left
    plain = next(batches.plain(found.train))[0][3]
    assert torch.equal(inputs[0, :, 2:, :-2], plain[:, :-2, 2:])
    black = normalised(torch.zeros(1, 1, 1, 3, dtype=torch.uint8), batches.mean, batches.spread)[0]
    assert torch.equal(inputs[0, :, :2], black.expand(3, 2, 5))


def test_a_hole_is_a_square_around_its_middle_cut_off_at_the_border() -> None:
    found = some()
    whole, holed = (Batches.of(found, 8, 0, CPU, cutout=side) for side in (0, 3))
    draw = torch.tensor([[3, 2, 2, 0, 2, 1], [7, 2, 2, 1, 5, 4]])
    inputs, _ = holed.take(draw)
    missing = torch.zeros(2, 6, 5, dtype=torch.bool)
    missing[0, 1:4, 0:3] = missing[1, 4:6, 3:5] = True
    assert torch.equal(inputs, whole.take(draw)[0].masked_fill(missing[:, None], 0.0))


def test_the_middle_of_a_hole_may_be_anywhere_and_changes_nothing_else() -> None:
    draw = Batches.of(some(400), 8, 0, CPU, cutout=3).draw(0)
    assert [set(column.tolist()) for column in draw[:, 4:].unbind(1)] == [set(range(6)), set(range(5))]
    assert torch.equal(draw, Batches.of(some(400), 8, 0, CPU).draw(0))


def test_images_are_of_mean_zero_and_spread_one_in_the_order_of_the_device() -> None:
    found = some(200)
    inputs, _ = next(Batches.of(found, 8, 0, CPU).plain(found.train))
    assert inputs.is_contiguous(memory_format=memory_order(inputs.device))
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-4
    assert (inputs.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_every_image_comes_once_in_an_epoch_and_epochs_differ() -> None:
    batches = Batches.of(some(24), 8, 0, CPU)
    first, second = batches.draw(0), batches.draw(1)
    assert sorted(first[:, 0].tolist()) == list(range(24))
    assert not torch.equal(first, second)
    assert torch.equal(batches.draw(0), first)
    assert not torch.equal(Batches.of(some(24), 8, 1, CPU).draw(0), first)


def test_only_images_of_the_pool_come_and_an_epoch_stays_as_long() -> None:
    batches = Batches.of(some(24), 8, 0, CPU)
    draw = batches.draw(0, torch.arange(10))
    assert len(draw) == 24
    counts = draw[:, 0].bincount(minlength=24)
    assert counts[10:].sum() == 0
    assert set(counts[:10].tolist()) <= {2, 3}


def test_digits_are_never_mirrored_and_never_moved_too_far() -> None:
    draw = Batches.of(some(is_mirrored=False), 8, 0, CPU).draw(0)
    assert (draw[:, 3] == 0).all()
    assert draw[:, 1:3].min() >= 0
    assert draw[:, 1:3].max() <= 4


def test_fewer_images_than_a_batch_make_one_batch() -> None:
    batches = Batches.of(some(5), 100, 0, CPU)
    assert (batches.size, batches.num_batches) == (5, 1)


def test_held_out_images_and_the_rest_are_all_images() -> None:
    found = some(40)
    held, rest = Batches.of(found, 8, 0, CPU).held_out(found.train, 0.1)
    assert len(held) == 4
    assert sorted([*held.tolist(), *rest.tolist()]) == list(range(40))


def test_neighbouring_numbers_give_seeds_far_apart() -> None:
    seeds = {mixed(seed, number) for seed in range(50) for number in range(-4, 50)}
    assert len(seeds) == 50 * 54


def test_on_a_cpu_images_and_network_are_in_the_plain_order(made_job) -> None:
    with Run(made_job, Unpruned()) as run:
        inputs, _ = run.batches.take(run.batches.draw(0)[:4])
        assert inputs.is_contiguous()
        assert all(one.is_contiguous() for one in run.model.parameters())
    assert memory_order(torch.device("cuda")) == torch.channels_last
