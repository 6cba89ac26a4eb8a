"""Small versions of the architectures whose structure prune must understand, written from their papers' figures.

`ZOO` maps a name to how it is built, its example inputs, and the least number of groups (inner, and with residual
streams) that must be found in it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from thrifty.prune import models


def block(num_in, num_out, size=3, stride=1, groups=1, act=nn.ReLU):
    """Convolution, batch norm and activation."""
    layers = [nn.Conv2d(num_in, num_out, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(num_out)]
    return nn.Sequential(*layers, *([act()] if act else []))


class Head(nn.Module):
    """Mean over pixels and a linear classifier."""

    def __init__(self, width, num_classes=5):
        super().__init__()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.linear(x.mean((2, 3)))


class Excite(nn.Module):
    """Squeeze and excitation: channels scaled by a gate made from their means (Hu et al., 2018)."""

    def __init__(self, width, act=nn.ReLU, gate=nn.Sigmoid):
        super().__init__()
        self.squeeze = nn.Conv2d(width, width // 4, 1)
        self.act = act()
        self.excite = nn.Conv2d(width // 4, width, 1)
        self.gate = gate()

    def forward(self, x):
        return x * self.gate(self.excite(self.act(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """Expand, depthwise, (excite,) project: MobileNetV2, V3 and EfficientNet."""

    def __init__(self, num_in, wide, num_out, stride=1, act=nn.ReLU6, excite=None):
        super().__init__()
        self.body = nn.Sequential(
            block(num_in, wide, 1, act=act),
            block(wide, wide, 3, stride, groups=wide, act=act),
            excite(wide) if excite else nn.Identity(),
            block(wide, num_out, 1, act=None),
        )
        self.is_same = stride == 1 and num_in == num_out

    def forward(self, x):
        return x + self.body(x) if self.is_same else self.body(x)


def inverted_net(act, excite=None):
    """A stem, three inverted blocks, a wide last layer and the head."""
    return nn.Sequential(
        block(3, 8, 3, 2, act=act),
        Inverted(8, 16, 12, 1, act, excite),
        Inverted(12, 24, 12, 1, act, excite),
        Inverted(12, 32, 16, 2, act, excite),
        block(16, 24, 1, act=act),
        nn.Dropout(0.1),
        Head(24),
    )


class Bottleneck(nn.Module):
    """1x1, (grouped) 3x3, 1x1 and a shortcut: ResNet-50 and ResNeXt."""

    def __init__(self, num_in, inner, num_out, groups=1):
        super().__init__()
        self.conv1, self.conv2 = block(num_in, inner, 1), block(inner, inner, 3, groups=groups)
        self.conv3 = block(inner, num_out, 1, act=None)
        self.shortcut = block(num_in, num_out, 1, act=None) if num_in != num_out else nn.Identity()

    def forward(self, x):
        return functional.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x), inplace=True)


class DenseNet(nn.Module):
    """Every layer reads all before it (Huang et al., 2017)."""

    def __init__(self, growth=4, num_layers=3):
        super().__init__()
        self.stem, width = nn.Conv2d(3, 8, 3, 1, 1, bias=False), 8
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            inner = [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 12, 1, bias=False)]
            outer = [nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, growth, 3, 1, 1, bias=False)]
            self.layers.append(nn.Sequential(*inner, *outer))
            width += growth
        self.transition = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 12, 1), nn.AvgPool2d(2))
        self.norm, self.head = nn.BatchNorm2d(12), Head(12)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(functional.relu(self.norm(self.transition(torch.cat(features, 1)))))


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half are worked on, then all are shuffled (ShuffleNetV2, Ma et al., 2018)."""

    def __init__(self, width):
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(block(half, half, 1), block(half, half, 3, 1, half, None), block(half, half, 1))

    def forward(self, x):
        kept, worked = x.chunk(2, 1)
        x = torch.cat([kept, self.branch(worked)], 1)
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


class ConvNextBlock(nn.Module):
    """Depthwise 7x7, layer norm over channels, an inverted MLP, layer scale (Liu et al., 2022)."""

    def __init__(self, width):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.gamma = nn.LayerNorm(width), nn.Parameter(0.5 * torch.ones(width))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        inner = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.narrow(functional.gelu(self.wide(inner)))).permute(0, 3, 1, 2)


class Vgg(nn.Module):
    """Plain convolutions, a flattened map, two linear layers."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(block(3, 8), block(8, 12), nn.MaxPool2d(2), block(12, 16), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(16 * 16, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, 5))

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class UNet(nn.Module):
    """Down, up by a transposed convolution, joined to the way down (Ronneberger et al., 2015)."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = block(3, 8), block(8, 12), block(12, 16)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 12, 2, 2), nn.ConvTranspose2d(12, 8, 2, 2)
        self.join2, self.join1, self.last = block(24, 12), block(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(functional.max_pool2d(one, 2))
        low = self.up2(self.bottom(functional.max_pool2d(two, 2)))
        low = self.join2(torch.cat([two, low], 1))
        return self.last(self.join1(torch.cat([one, self.up1(low)], 1)))


class Attention(nn.Module):
    """Self-attention with one matrix for queries, keys and values; `fused` calls PyTorch's kernel."""

    def __init__(self, width, num_heads, fused):
        super().__init__()
        self.num_heads, self.head_dim, self.fused = num_heads, width // num_heads, fused
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class VitBlock(nn.Module):
    """Attention and an MLP, each after a layer norm."""

    def __init__(self, width, num_heads, fused):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, num_heads, fused)
        self.norm2, self.wide, self.narrow = nn.LayerNorm(width), nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(functional.gelu(self.wide(self.norm2(x))))


class Vit(nn.Module):
    """Patches, a class token, positions, blocks (Dosovitskiy et al., 2021)."""

    def __init__(self, fused=True, width=16, num_heads=4):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(VitBlock(width, num_heads, fused) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class TwoHeads(nn.Module):
    """One body, two outputs in a dictionary, an auxiliary one from the middle."""

    def __init__(self):
        super().__init__()
        self.body, self.top = nn.Sequential(block(3, 8), block(8, 12)), block(12, 16)
        self.box, self.label = Head(12, 4), nn.Sequential(Head(16, 6), nn.Softmax(-1))

    def forward(self, x):
        x = self.body(x)
        return {"box": self.box(x), "label": self.label(self.top(x))}


class Bare(nn.Module):
    """Parameters outside of layers: a weight matrix, a scale and a shift for each channel."""

    def __init__(self):
        super().__init__()
        self.stem = block(3, 8)
        self.scale, self.shift = nn.Parameter(torch.rand(1, 8, 1, 1)), nn.Parameter(torch.randn(8))
        self.mix, self.out = nn.Parameter(torch.randn(8, 12)), nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x) * self.scale + self.shift.view(1, -1, 1, 1)
        return self.out(torch.relu(x.mean((2, 3)) @ self.mix))


@torch.library.custom_op("thrifty_tests::swirl", mutates_args=())
def swirl(x: Tensor) -> Tensor:
    """An operator that nobody knows: channels in reverse order."""
    return x.flip(1).clone()


@swirl.register_fake
def _(x):
    return torch.empty_like(x)


class Odd(nn.Module):
    """A custom operator between two convolutions; the layers around are ordinary."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = block(3, 8), block(8, 8), block(8, 8)
        self.head = Head(8)

    def forward(self, x):
        return self.head(self.third(swirl(self.second(self.first(x)))))


class Grouped(nn.Module):
    """Group norms: eight groups of two channels, and one group of all."""

    def __init__(self):
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(8, 16)
        self.two, self.norm2 = nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(1, 16)
        self.head = Head(16)

    def forward(self, x):
        x = functional.silu(self.norm1(self.one(x)))
        return self.head(functional.silu(self.norm2(self.two(x))))


class Gated(nn.Module):
    """A gated linear unit, and activations that do not keep zero."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide = block(3, 8, act=nn.Sigmoid), nn.Conv2d(8, 24, 1)
        self.out = nn.Conv2d(12, 8, 1)
        self.head = Head(8)

    def forward(self, x):
        value, gate = self.wide(self.stem(x)).chunk(2, 1)
        return self.head(torch.exp(self.out(value * functional.gelu(gate))))


class Shared(nn.Module):
    """One layer used twice, one weight under two names."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.one, self.two = block(3, 8), nn.Conv2d(8, 8, 3, 1, 1), block(8, 8), block(8, 8)
        self.two[0].weight = self.one[0].weight
        self.wide, self.head = block(8, 12), Head(12)

    def forward(self, x):
        x = torch.relu(self.twice(torch.relu(self.twice(self.stem(x)))))
        return self.head(self.wide(self.two(self.one(x))))


class Windows(nn.Module):
    """Attention in shifted windows with a bias by distance and head (Swin, Liu et al., 2021)."""

    def __init__(self, width=16, num_heads=4):
        super().__init__()
        self.num_heads, self.qkv, self.out = num_heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(7, num_heads))
        self.register_buffer("distances", (torch.arange(4)[:, None] - torch.arange(4)).add(3).flatten())

    def forward(self, x):
        batch, length, width = x.shape
        x = torch.roll(x, 2, 1).reshape(batch * (length // 4), 4, width)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.distances].view(4, 4, -1).permute(2, 0, 1)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return torch.roll(self.out(mixed.transpose(1, 2).flatten(2)).reshape(batch, length, width), -2, 1)


class Swin(nn.Module):
    """Patches, windows, an MLP."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.windows = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), Windows()
        self.mlp, self.head = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)), nn.Linear(16, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.windows(self.norm(x))
        return self.head((x + self.mlp(x)).mean(1))


@dataclass(frozen=True)
class Animal:
    """A model of the zoo, and how many groups must be found in it: without, and with residual streams."""

    build: Callable[[], nn.Module]
    inner: int
    all: int
    size: int = 16

    @property
    def inputs(self):
        """Two images."""
        return (torch.randn(2, 3, self.size, self.size),)


def _convnext():
    return nn.Sequential(nn.Conv2d(3, 8, 2, 2), ConvNextBlock(8), ConvNextBlock(8), nn.Conv2d(8, 12, 2, 2), Head(12))


def _shuffle():
    return nn.Sequential(block(3, 16), ShuffleUnit(16), ShuffleUnit(16), block(16, 24, 1), Head(24))


def _bottlenecks(groups):
    stages = [Bottleneck(8, 16, 24, groups), Bottleneck(24, 16, 24, groups)]
    return nn.Sequential(block(3, 8), *stages, Head(24))


ZOO = {
    "resnet8": Animal(models.resnet8, 3, 6),
    "resnet20 with padding": Animal(lambda: models.resnet20(shortcut="padding"), 9, 10),
    "resnet18": Animal(lambda: models.ResNet([2, 2, 2, 2], [8, 16, 24, 32]), 8, 12),
    "resnet56": Animal(models.resnet56, 27, 30, size=8),
    "resnet50": Animal(lambda: _bottlenecks(1), 5, 6),
    "resnext": Animal(lambda: _bottlenecks(8), 3, 4),
    "resnext of few groups": Animal(lambda: _bottlenecks(2), 5, 6),
    "mobilenet v2": Animal(lambda: inverted_net(nn.ReLU6), 6, 7),
    "mobilenet v3": Animal(lambda: inverted_net(nn.Hardswish, lambda w: Excite(w, nn.ReLU, nn.Hardsigmoid)), 9, 10),
    "efficientnet": Animal(lambda: inverted_net(nn.SiLU, lambda w: Excite(w, nn.SiLU)), 9, 10),
    "densenet": Animal(DenseNet, 8, 8),
    "shufflenet v2": Animal(_shuffle, 4, 4),
    "convnext": Animal(_convnext, 3, 3),
    "vgg": Animal(Vgg, 4, 4),
    "u-net": Animal(UNet, 7, 7),
    "vit": Animal(Vit, 4, 4),
    "vit by hand": Animal(lambda: Vit(fused=False), 4, 4),
    "swin": Animal(Swin, 2, 2),
    "two heads": Animal(TwoHeads, 3, 3),
    "bare parameters": Animal(Bare, 2, 2),
    "custom operator": Animal(Odd, 2, 2),
    "group norm": Animal(Grouped, 1, 1),
    "gated": Animal(Gated, 3, 3),
    "shared": Animal(Shared, 2, 2),
}
