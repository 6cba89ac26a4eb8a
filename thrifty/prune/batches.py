"""Batches made on the device that trains: cropped at random places, mirrored, normalised, with a hole if asked for, in
the order of memory that suits the device.

What becomes of each image in an epoch (its order, its shift, whether it is mirrored, where the hole is) is drawn on the
CPU from the seed and the number of the epoch alone. So a run that is resumed sees the same images, on any device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.prune.images import Images, Split, halves

Draw = Int[Tensor, "images 6"]
"""For each image of a batch: its number, by how many rows and columns its crop is moved, whether it is mirrored, and
row and column of the middle of the hole."""


@dataclass(frozen=True)
class Batches:
    """The training images on a device, with a border around them, and how they are varied."""

    padded: Tensor
    labels: Tensor
    mean: Tensor
    spread: Tensor
    shift: int
    is_mirrored: bool
    size: int
    seed: int
    cutout: int = 0

    @staticmethod
    def of(images: Images, size: int, seed: int, device: torch.device, cutout: int = 0) -> "Batches":
        """Batches of `size` (or all images, where there are fewer) of the training split. `cutout` is the side, in
        pixels, of the square that each image misses (DeVries and Taylor, 2017, arXiv:1708.04552); it may lie partly
        beyond the border."""
        border = images.shift
        padded = torch.nn.functional.pad(images.train.pixels, (0, 0, border, border, border, border))
        mean, spread = (moment.to(device) for moment in images.moments())
        size = min(size, len(images.train))
        labels = images.train.labels.to(device)
        return Batches(padded.to(device), labels, mean, spread, border, images.is_mirrored, size, seed, cutout)

    @property
    def num_batches(self) -> int:
        """How many batches an epoch has: as many whole ones as all training images give."""
        return len(self.labels) // self.size

    def draw(self, epoch: int, pool: Int[Tensor, " chosen"] | None = None) -> Draw:
        """What the images of this epoch are; with a `pool` only those in it, some of them twice."""
        generator = torch.Generator().manual_seed(mixed(self.seed, epoch))
        pool = torch.arange(len(self.labels)) if pool is None else pool
        needed, rounds = self.num_batches * self.size, -(-self.num_batches * self.size // len(pool))
        order = torch.cat([pool[torch.randperm(len(pool), generator=generator)] for _ in range(rounds)])[:needed]
        return self.varied(order, generator).to(self.labels.device)

    def varied(self, chosen: Int[Tensor, " images"], generator: torch.Generator) -> Draw:
        """What becomes of these images, on the CPU."""
        moves = torch.randint(0, 2 * self.shift + 1, (len(chosen), 2), generator=generator)
        mirror = torch.randint(0, 2 if self.is_mirrored else 1, (len(chosen), 1), generator=generator)
        hole = [torch.randint(0, side, (len(chosen), 1), generator=generator) for side in self._sides]
        return torch.cat([chosen[:, None], moves, mirror, *hole], 1)

    @property
    def _sides(self) -> tuple[int, int]:
        """Height and width of an image without its border."""
        return self.padded.shape[1] - 2 * self.shift, self.padded.shape[2] - 2 * self.shift

    def take(self, draw: Draw) -> tuple[Float[Tensor, "images colours height width"], Int[Tensor, " images"]]:
        """The images and the labels of one batch. Waits for no value, so a CUDA graph can hold it."""
        number, down, right, mirror, *middle = draw.unbind(1)
        height, width = self._sides
        rows = down[:, None] + torch.arange(height, device=draw.device)
        columns = torch.arange(width, device=draw.device)
        columns = right[:, None] + torch.where(mirror[:, None] > 0, width - 1 - columns, columns)
        pixels = self.padded[number[:, None, None], rows[:, :, None], columns[:, None, :]]
        inputs = normalised(pixels, self.mean, self.spread)
        if self.cutout:
            rows, columns = (self._is_missing(one, side) for one, side in zip(middle, self._sides, strict=True))
            inputs.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0.0)
        return inputs, self.labels[number]

    def _is_missing(self, middle: Int[Tensor, " images"], side: int) -> Bool[Tensor, "images side"]:
        """Which rows or columns of each image the hole covers."""
        first = middle - self.cutout // 2
        place = torch.arange(side, device=middle.device)
        return (place >= first[:, None]) & (place < first[:, None] + self.cutout)

    def plain(
        self, split: Split, size: int = 500
    ) -> Iterator[tuple[Float[Tensor, "images colours height width"], Int[Tensor, " images"]]]:
        """All images of a split as they are, in order, for measuring."""
        for first in range(0, len(split), size):
            pixels = split.pixels[first : first + size].to(self.labels.device)
            labels = split.labels[first : first + size].to(self.labels.device)
            yield normalised(pixels, self.mean, self.spread), labels

    def held_out(self, split: Split, share: float) -> tuple[Tensor, Tensor]:
        """The numbers of a random `share` of the training images, and of the rest."""
        return halves(split, share, mixed(self.seed, -1))


def normalised(
    pixels: Tensor, mean: Float[Tensor, " colours"], spread: Float[Tensor, " colours"]
) -> Float[Tensor, "images colours height width"]:
    """Bytes in the order rows, columns, colours to floats of mean 0 and spread 1, in the device's `memory_order`."""
    inputs = ((pixels.float() / 255 - mean) / spread).permute(0, 3, 1, 2)
    return inputs.contiguous(memory_format=memory_order(pixels.device))


def memory_order(device: torch.device) -> torch.memory_format:
    """Channels last on a GPU, where it is faster; the plain order on a CPU, where the backward pass of torch 2.13's 1x1
    convolutions with a stride writes beyond its memory if channels come last."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def mixed(seed: int, number: int) -> int:
    """One seed for each pair of numbers: neighbours give streams that have nothing in common (splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ (value >> shift)) * factor % 2**64
    return (value ^ (value >> 31)) % 2**63
