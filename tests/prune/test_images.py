"""Images come in whole, split without overlap, and what is wrong with a folder is told."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from thrifty import data
from thrifty.errors import DataError
from thrifty.prune import images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of red and four of blue, 12 x 10 pixels."""
    image = pytest.importorskip("PIL.Image")
    for name, colour, count in (("red", (255, 0, 0), 6), ("blue", (0, 0, 255), 4)):
        (tmp_path / name).mkdir()
        for number in range(count):
            image.new("RGB", (12, 10), colour).save(tmp_path / name / f"{number}.png")
    return tmp_path


def pack(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write images (n, 32, 32, 3) as the packed files hold them, by the definition of the median edge predictor."""
    red, green, blue = (pixels[..., colour].astype(int).transpose(1, 2, 0) for colour in range(3))
    planes = np.stack([green, red - green, blue - green]) % 256
    residuals = np.zeros_like(planes)
    for row in range(32):
        for column in range(32):
            left = planes[:, row, column - 1] if column else None
            above = planes[:, row - 1, column] if row else None
            guess = 0
            if left is not None and above is not None:
                plane = left + above - planes[:, row - 1, column - 1]
                guess = np.median([left, above, plane], axis=0).astype(int)
            elif left is not None or above is not None:
                guess = left if left is not None else above
            residuals[:, row, column] = (planes[:, row, column] - guess) % 256
    packed = np.frombuffer(zlib.compress(residuals.astype(np.uint8).tobytes()), np.uint8)
    np.savez(path, z=packed, n=len(pixels), y=labels.astype(np.uint8), lossy=np.zeros(0, np.int32))


def test_packed_images_are_read_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    (tmp_path / "cifar10").mkdir()
    wanted = {}
    for name, count in (("train", 7), ("test", 3)):
        wanted[name] = chance.integers(0, 256, (count, 32, 32, 3)), chance.integers(0, 10, count)
        wanted[name][1][0] = 9
        pack(tmp_path / "cifar10" / f"{name}.npz", *wanted[name])
    monkeypatch.setenv("THRIFTY_DATA", str(tmp_path))
    found = images.load("cifar10")
    for name, split in (("train", found.train), ("test", found.test)):
        assert np.array_equal(split.pixels.numpy(), wanted[name][0])
        assert np.array_equal(split.labels.numpy(), wanted[name][1])
    assert len(images.load("cifar10", num_train=5).train) == 5
    assert found.shape == (3, 32, 32)
    assert len(found.classes) == 10


@pytest.mark.slow
def test_the_stored_cifar_is_the_known_one() -> None:
    if not data.is_here("cifar10"):
        pytest.skip("cifar10 is not here: let THRIFTY_DATA name a folder that holds it")
    mean, spread = images.load("cifar10").moments()
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert spread.tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-4)


def test_digits_are_split_without_overlap() -> None:
    pytest.importorskip("sklearn")
    found = images.load("digits")
    assert len(found.train) + len(found.test) == 1797
    assert found.shape == (3, 8, 8)
    train = {tuple(image.flatten().tolist()) for image in found.train.pixels}
    same = sum(tuple(image.flatten().tolist()) in train for image in found.test.pixels)
    assert same == 0  # the data set itself holds no image twice
    assert torch.equal(images.load("digits").test.labels, found.test.labels)


def test_a_folder_is_read_by_class_in_the_middle_square(folder: Path) -> None:
    found = images.load(str(folder), side=8)
    assert found.classes == ("blue", "red")
    assert (len(found.train), len(found.test)) == (8, 2)
    for split in (found.train, found.test):
        for pixels, label in zip(split.pixels, split.labels, strict=True):
            assert pixels.shape == (8, 8, 3)
            assert (pixels[..., 2 if label == 0 else 0] == 255).all()


def test_a_folder_may_bring_its_own_test_images(folder: Path) -> None:
    for part in ("train", "val"):
        (folder / part).mkdir()
    for name in ("red", "blue"):
        (folder / name).rename(folder / "train" / name)
        (folder / "val" / name).mkdir()
        for number in range(2):
            path = folder / "train" / name / f"{number}.png"
            path.rename(folder / "val" / name / path.name)
    found = images.load(str(folder))
    assert (len(found.train), len(found.test)) == (6, 4)


@pytest.mark.parametrize(
    ("remove", "said"),
    [(("red", "blue"), "holds no images"), (("red",), "one class only, blue")],
)
def test_a_folder_without_enough_is_refused_in_one_line(folder: Path, remove: tuple[str, ...], said: str) -> None:
    for name in remove:
        for path in (folder / name).iterdir():
            path.unlink()
    with pytest.raises(DataError, match=said):
        images.load(str(folder))


def test_a_file_that_is_no_image_is_named(folder: Path) -> None:
    (folder / "red" / "0.png").write_text("not an image")
    with pytest.raises(DataError, match=r"red/0\.png cannot be read as an image"):
        images.load(str(folder))


def test_what_is_neither_data_set_nor_folder_is_refused() -> None:
    with pytest.raises(DataError, match="digits, cifar10, cifar100, or a folder"):
        images.load("cifar11")


def test_moments_are_those_of_the_training_images() -> None:
    pixels = torch.randint(0, 256, (20, 4, 4, 3), dtype=torch.uint8)
    split = images.Split(pixels, torch.zeros(20, dtype=torch.int64))
    mean, spread = images.Images("some", split, split, ("a", "b")).moments()
    exact = pixels.double() / 255
    assert torch.allclose(mean.double(), exact.mean((0, 1, 2)), atol=1e-6)
    assert torch.allclose(spread.double(), exact.std((0, 1, 2), correction=0), atol=1e-6)
