"""MNIST's idx files: small ones, and the real ones if they are available."""

import gzip
import os
import struct
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch

from unfool.data import mnist as module
from unfool.data.mnist import mnist

PIXELS = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
LABELS = np.array([7, 2, 1, 0], np.uint8)
IMAGES = struct.pack(">4i", 2051, 4, 5, 6) + PIXELS.tobytes()
NUMBERS = struct.pack(">2i", 2049, 4) + LABELS.tobytes()


def write(folder: Path, ending: str = "", images: bytes = IMAGES, labels: bytes = NUMBERS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for start in ("train", "t10k"):
        for name, content in (("images-idx3", images), ("labels-idx1", labels)):
            packed = gzip.compress(content) if ending else content
            (folder / f"{start}-{name}-ubyte{ending}").write_bytes(packed)


@pytest.mark.parametrize("inside", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_every_layout_is_read(tmp_path: Path, ending: str, inside: str):
    write(tmp_path / inside, ending)
    for data in (mnist(tmp_path), mnist(tmp_path, "train")):
        assert len(data) == 4
        assert data.shape == (1, 5, 6)
        assert data[1][1] == 2
        assert torch.equal(data[3][0][0], torch.from_numpy(PIXELS[3]).float() / 255)
        assert list(data.classes) == list("0123456789")


def test_missing_files_and_unknown_split_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"MNIST .*UNFOOL_DATA"):
        mnist(tmp_path)
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte is missing"):
        mnist(tmp_path)
    assert len(mnist(tmp_path, "train")) == 4
    with pytest.raises(ValueError, match="'train' or 'test', not 'val'"):
        mnist(tmp_path, "val")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[:-1], "135 bytes .* instead of 136"),
        (IMAGES + b"0", "137 bytes .* instead of 136"),
        (IMAGES[:10], "10 bytes .* instead of 16"),
        (b"", "magic number 2051 .*none"),
        (NUMBERS, "magic number 2051 but with the bytes 00 00 08 01"),
        (struct.pack(">4i", 2051, 3, 5, 6) + bytes(90), "there are 3 images and 4"),
        (struct.pack(">4I", 2051, *[2**32 - 1] * 3), "16 bytes"),
    ],
)
def test_invalid_image_files_are_refused(tmp_path: Path, images: bytes, message: str):
    write(tmp_path, images=images)
    with pytest.raises(ValueError, match=f"t10k-images-idx3-ubyte.*{message}"):
        mnist(tmp_path)


def test_labels_out_of_range_are_refused(tmp_path: Path):
    write(tmp_path, labels=NUMBERS[:-1] + bytes([10]))
    with pytest.raises(ValueError, match="labels of 10 classes"):
        mnist(tmp_path)


def test_damaged_gz_is_refused(tmp_path: Path):
    write(tmp_path, ".gz")
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for part in (whole[:5], whole[:40], whole[:-1], b"no gz at all", whole[:30] + bytes(20)):
        file.write_bytes(part)
        with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz"):
            mnist(tmp_path)


def test_download_happens_only_on_request_and_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "source", ".gz")
    folder = tmp_path / "data"
    monkeypatch.setattr(module, "URL", (tmp_path / "source").as_uri() + "/")
    with pytest.raises(FileNotFoundError):
        mnist(folder)
    with pytest.raises(ValueError, match="not the official one"):
        mnist(folder, download=True)
    digests = {f.name: md5(f.read_bytes()).hexdigest() for f in (tmp_path / "source").iterdir()}
    monkeypatch.setattr(module, "MD5", digests)
    assert len(mnist(folder, download=True)) == 4
    assert len(list((folder / "mnist").iterdir())) == 2
    monkeypatch.setattr(module, "URL", (tmp_path / "nowhere").as_uri() + "/")
    assert len(mnist(folder, download=True)) == 4
    with pytest.raises(FileNotFoundError, match="could not download file:"):
        mnist(folder, "train", download=True)


def test_real_files_have_expected_sizes_and_first_labels():
    folder = os.environ.get("UNFOOL_DATA")
    if not folder:
        pytest.skip("set UNFOOL_DATA to a folder with MNIST to test on the real files")
    train, test = mnist(Path(folder), "train"), mnist(Path(folder), "test")
    for data, count, first in ((train, 60_000, 5), (test, 10_000, 7)):
        assert len(data) == count
        assert data.shape == (1, 28, 28)
        assert data[0][1] == first
