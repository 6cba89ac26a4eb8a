"""Labelled images to train on, whole in memory: CIFAR, scikit-learn's digits, or a folder with a subfolder a class.

Every image is red, green and blue, one byte a colour, in the order rows, columns, colours.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from thrifty import data
from thrifty.errors import DataError, SettingError

NAMES = ("digits", "cifar10", "cifar100")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_TEST_NAMES = ("test", "val", "valid", "validation")
_CIFAR_SIDE = 32


@dataclass(frozen=True)
class Split:
    """Images and the number of the class of each."""

    pixels: UInt8[Tensor, "images height width colours"]
    labels: Int[Tensor, " images"]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)

    def take(self, chosen: Tensor) -> "Split":
        """Only the images with these numbers."""
        return Split(self.pixels[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Images:
    """A data set of images: what is trained on, what is tested on, and how a training image may be varied.

    `shift` is by how many pixels a crop may move to either side; `is_mirrored` says whether left and right may be
    swapped (not where an image would get another meaning, as a digit does).
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    shift: int = 4
    is_mirrored: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Colours, height and width: what a network is given, without the batch."""
        height, width, colours = self.train.pixels.shape[1:]
        return colours, height, width

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each colour over the training images, of pixels between 0 and 1."""
        pixels = self.train.pixels.reshape(-1, self.train.pixels.shape[-1])
        counts = torch.stack([torch.bincount(pixels[:, colour], minlength=256) for colour in range(pixels.shape[1])])
        values = torch.arange(256, dtype=torch.float64) / 255
        share = counts.double() / len(pixels)
        mean = share @ values
        variance = (share @ values.square() - mean.square()).clamp_min(1e-6)
        return mean.float(), variance.sqrt().float()


def load(name: str, num_train: int | None = None, side: int = 32) -> Images:
    """Load `digits`, `cifar10`, `cifar100` or a folder of images (made `side` x `side`); `num_train` takes only the
    first so many training images of CIFAR or a folder.

    Raises `DataError` where there is no such data set, no image, or only one class.
    """
    if name == "digits":
        return _digits()
    if name in NAMES:
        train_file, test_file = data.find(name)
        train, test = _cifar(train_file, num_train), _cifar(test_file)
        return Images(name, train, test, tuple(map(str, range(int(test.labels.max()) + 1))))
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no data set and no folder {name!r}; use {', '.join(NAMES)}, or a folder of images")
    return _folder(folder, num_train, side)


def halves(split: Split, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The numbers of the images in a random `share` of the split, and of the rest; at least one image in each."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    count = min(max(round(share * len(split)), 1), len(split) - 1)
    return order[:count].sort().values, order[count:].sort().values


def _digits() -> Images:
    """1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, 1998); a fifth of them is for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SettingError("the digits come with scikit-learn; run: pip install scikit-learn") from None
    pixels, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy(np.round(np.asarray(pixels) * (255 / 16)).astype(np.uint8))  # 0 to 16 in the original
    whole = Split(grey.view(-1, 8, 8, 1).repeat(1, 1, 1, 3), torch.from_numpy(np.asarray(labels)).long())
    test, train = halves(whole, 0.2, seed=0)
    return Images("digits", whole.take(train), whole.take(test), tuple("0123456789"), shift=1, is_mirrored=False)


def _cifar(path: Path, count: int | None = None) -> Split:
    """The first `count` images of a packed file.

    The pack holds, for each place and image, by how much a colour plane (green, red minus green, blue minus green)
    differs from the median edge prediction of LOCO-I (Weinberger et al., 2000), modulo 256.
    """
    side = _CIFAR_SIDE
    try:
        with np.load(path) as file:
            number, labels = int(file["n"]), file["y"]
            raw = np.frombuffer(zlib.decompress(file["z"].tobytes()), np.uint8).reshape(3, side, side, number)
    except (OSError, KeyError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as packed images ({error}); fetch the file again") from error
    planes = raw[..., : number if count is None else min(count, number)].copy()
    for row in range(side):
        for column in range(side):
            planes[:, row, column] += _predicted(planes, row, column)
    planes[[1, 2]] += planes[0]
    pixels = np.ascontiguousarray(planes[[1, 0, 2]].transpose(3, 1, 2, 0))
    return Split(torch.from_numpy(pixels), torch.from_numpy(labels[: len(pixels)].astype(np.int64)))


def _predicted(planes: np.ndarray, row: int, column: int) -> np.ndarray:
    """What LOCO-I expects at a place from its neighbours to the left, above, and above left, which are restored."""
    if row == 0 and column == 0:
        return np.zeros_like(planes[:, 0, 0])
    if row == 0 or column == 0:
        return planes[:, row, column - 1] if column else planes[:, row - 1, column]
    left, above = planes[:, row, column - 1], planes[:, row - 1, column]
    low, high = np.minimum(left, above), np.maximum(left, above)
    plane = left.astype(np.int16) + above - planes[:, row - 1, column - 1]
    return np.clip(plane, low, high).astype(np.uint8)


def _folder(folder: Path, num_train: int | None, side: int) -> Images:
    """`FOLDER/train/CLASS/*` and `FOLDER/test/CLASS/*`, or `FOLDER/CLASS/*`, of which a fifth is for testing."""
    train_folder = folder / "train"
    test_folder = next((folder / name for name in _TEST_NAMES if (folder / name).is_dir()), None)
    if train_folder.is_dir() and test_folder is not None:
        classes = _classes(train_folder)
        parts = [_read(where, classes, side) for where in (train_folder, test_folder)]
        train, test = parts
    else:
        classes = _classes(folder)
        whole = _read(folder, classes, side)
        chosen, rest = halves(whole, 0.2, seed=0)
        train, test = whole.take(rest), whole.take(chosen)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:num_train]
    return Images(str(folder), train.take(order), test, classes)


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(one.name for one in folder.iterdir() if one.is_dir() and _files(one)))
    if not names:
        raise DataError(f"{folder} holds no images; it needs a subfolder for each class with {', '.join(SUFFIXES[:3])}")
    if len(names) == 1:
        raise DataError(
            f"{folder} holds images of one class only, {names[0]}; give a subfolder for each of two or more"
        )
    return names


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _read(folder: Path, classes: tuple[str, ...], side: int) -> Split:
    found = [(path, number) for number, name in enumerate(classes) for path in _files(folder / name)]
    if len(found) < 2:
        raise DataError(f"{folder} holds {len(found)} images of {', '.join(classes)}; at least 2 are needed")
    pixels = np.stack([_pixels(path, side) for path, _ in found])
    return Split(torch.from_numpy(pixels), torch.tensor([number for _, number in found]))


def _pixels(path: Path, side: int) -> np.ndarray:
    """The middle square of an image file, `side` x `side`."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise SettingError("image files are read with Pillow; run: pip install pillow") from None
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.fit(image.convert("RGB"), (side, side)), dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); remove it or repair it") from error
