"""The built-in models have the sizes that papers report."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from thrifty.prune import models


@pytest.mark.parametrize(
    ("name", "shortcut", "flops", "parameters"),
    [
        ("resnet18", "projection", 555_422_720, 11_173_962),
        ("resnet56", "projection", 125_747_840, 855_770),
        ("resnet56", "padding", 125_485_696, 853_018),
        ("resnet20", "padding", 40_551_040, 269_722),
        ("resnet8", "projection", 12_501_632, 78_042),
    ],
)
def test_sizes_are_the_published_ones(name, shortcut, flops, parameters):
    model = getattr(models, name)(shortcut=shortcut).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * flops
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_models_take_images_of_other_sizes_and_channels():
    assert models.resnet8(num_classes=7, num_channels=1)(torch.randn(2, 1, 8, 8)).shape == (2, 7)
