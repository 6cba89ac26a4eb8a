"""Residual networks for small images, as papers on pruning train them.

ResNet-20 and -56 are the CIFAR form of He et al. (2016, arXiv:1512.03385, section 4.2): three stages of 16, 32 and 64
channels. ResNet-18 is the ImageNet form of section 4.1 with a 3x3 stem and no pooling, as common for CIFAR.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Shortcut = Literal["projection", "padding"]


class Padding(nn.Module):
    """A shortcut without parameters: every second pixel, new channels of zeros on both sides (He et al., option A)."""

    def __init__(self, channels: int, stride: int) -> None:
        """`channels` are added in all."""
        super().__init__()
        self.added, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width), fewer pixels and more channels."""
        before = self.added // 2
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, num_in: int, num_out: int, stride: int, shortcut: Shortcut) -> None:
        """`stride` of the first convolution and of the shortcut."""
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)
        self.shortcut: nn.Module = nn.Identity()
        if (stride != 1 or num_in != num_out) and shortcut == "padding":
            self.shortcut = Padding(num_out - num_in, stride)
        elif stride != 1 or num_in != num_out:
            self.shortcut = nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, height, width) to (batch, out, height / stride, width / stride)."""
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages of residual blocks (all but the first halve the image), mean over pixels, one linear layer."""

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        num_classes: int = 10,
        num_channels: int = 3,
        shortcut: Shortcut = "projection",
    ) -> None:
        """`blocks` and `widths` of each stage; `num_channels` of the images."""
        super().__init__()
        self.stem = nn.Conv2d(num_channels, widths[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        width = widths[0]
        for stage, (count, wide) in enumerate(zip(blocks, widths, strict=True)):
            for number in range(count):
                layers.append(ResidualBlock(width, wide, 2 if stage > 0 and number == 0 else 1, shortcut))
                width = wide
        self.blocks = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, channels, height, width) to logits (batch, classes)."""
        x = functional.relu(self.norm(self.stem(x)))
        return self.classifier(torch.flatten(functional.adaptive_avg_pool2d(self.blocks(x), 1), 1))


def resnet8(num_classes: int = 10, num_channels: int = 3, shortcut: Shortcut = "projection") -> ResNet:
    """Three blocks of 16, 32 and 64 channels: small enough for 8x8 digits on a CPU."""
    return ResNet([1, 1, 1], [16, 32, 64], num_classes, num_channels, shortcut)


def resnet20(num_classes: int = 10, num_channels: int = 3, shortcut: Shortcut = "projection") -> ResNet:
    """Nine blocks; 0.27 M parameters, 41 M multiply-accumulates on a 32x32 image."""
    return ResNet([3, 3, 3], [16, 32, 64], num_classes, num_channels, shortcut)


def resnet56(num_classes: int = 10, num_channels: int = 3, shortcut: Shortcut = "projection") -> ResNet:
    """27 blocks; 0.86 M parameters, 126 M multiply-accumulates on a 32x32 image."""
    return ResNet([9, 9, 9], [16, 32, 64], num_classes, num_channels, shortcut)


def resnet18(num_classes: int = 10, num_channels: int = 3, shortcut: Shortcut = "projection") -> ResNet:
    """Eight blocks of 64 to 512 channels; 11.2 M parameters, 555 M multiply-accumulates on a 32x32 image."""
    return ResNet([2, 2, 2, 2], [64, 128, 256, 512], num_classes, num_channels, shortcut)
