"""Images in memory and in .npz files."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unfool.data.arrays import Arrays, npz

BYTES = (np.arange(2 * 5 * 4 * 3) % 256).astype(np.uint8).reshape(2, 5, 4, 3)
LABELS = np.array([1, 0])


def test_uint8_and_float_images_are_equal():
    images = torch.from_numpy(BYTES).permute(0, 3, 1, 2)
    y = torch.tensor([1, 0])
    by_byte, by_float = Arrays(images, y, "ab"), Arrays(images.float() / 255, y, "ab")
    assert len(by_byte) == 2
    assert by_byte.shape == by_float.shape == (3, 5, 4)
    for i in range(2):
        assert torch.equal(by_byte[i][0], by_float[i][0])
        assert by_byte[i][0].dtype == torch.float32
        assert by_byte[i][1] == by_float[i][1] == y[i]
    with pytest.raises(IndexError):
        by_byte[2]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 4, 4), torch.zeros(2).long(), r"\(N, C, H, W\)"),
        (torch.zeros(0, 1, 4, 4), torch.zeros(0).long(), "at least one"),
        (torch.zeros(2, 1, 4, 4).double(), torch.zeros(2).long(), "float64"),
        (torch.full((2, 1, 4, 4), torch.nan), torch.zeros(2).long(), "NaN"),
        (torch.full((2, 1, 4, 4), 255.0), torch.zeros(2).long(), "from 255 to 255"),
        (torch.full((2, 1, 4, 4), -0.5), torch.zeros(2).long(), "from -0.5"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(3).long(), "2 images and 3 labels"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2), "int64"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1).long(), r"\(N,\)"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([0, 2]), "0 to 1, not from 0 to 2"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([-1, 0]), "not from -1 to 0"),
    ],
)
def test_wrong_arrays_are_refused(images: Tensor, labels: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        Arrays(images, labels, "ab")


@pytest.mark.parametrize(
    "images",
    [BYTES, BYTES.transpose(0, 3, 1, 2), BYTES / 255, (BYTES / 255).astype(np.float32)],
    ids=["NHWC", "NCHW", "float64", "float32"],
)
def test_npz_accepts_every_layout(tmp_path: Path, images: np.ndarray):
    np.savez(tmp_path / "a.npz", images=images, labels=LABELS.astype(np.uint8))
    data = npz(tmp_path / "a.npz")
    expected = torch.from_numpy(BYTES[0]).permute(2, 0, 1).float() / 255
    assert torch.equal(data[0][0], expected)
    assert data[0][1] == 1
    assert list(data.classes) == ["0", "1"]


def test_npz_accepts_gray_images_array_names_and_class_names(tmp_path: Path):
    file = tmp_path / "a.npz"
    np.savez_compressed(file, x=BYTES[..., 0], y=LABELS, classes=["cat", "dog", "owl"])
    data = npz(file, images="x", labels="y")
    assert data.shape == (1, 5, 4)
    assert list(data.classes) == ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": BYTES}, "no array 'labels'"),
        ({"images": BYTES, "labels": LABELS / 2}, "whole numbers"),
        ({"images": BYTES, "labels": np.array([0, 1, 2])}, "2 images and 3 labels"),
        ({"images": BYTES, "labels": np.array([], np.int64)}, "2 images and 0 labels"),
        ({"images": BYTES.astype(np.int64), "labels": LABELS}, "int64"),
        ({"images": BYTES.astype(np.float32), "labels": LABELS}, r"\[0, 1\]"),
        ({"images": np.full((2, 4, 4), np.nan), "labels": LABELS}, "NaN"),
        ({"images": np.zeros((2, 5, 4, 2)), "labels": LABELS}, "1 or 3 channels"),
        ({"images": np.zeros((2, 3, 4, 3)), "labels": LABELS}, "1 or 3 channels"),
        ({"images": np.array([None, {}]), "labels": LABELS}, "plain numbers"),
    ],
)
def test_wrong_npz_is_refused(tmp_path: Path, content: dict[str, Any], message: str):
    file = tmp_path / "a.npz"
    np.savez(file, **content)
    with pytest.raises(ValueError, match=message) as told:
        npz(file)
    assert str(file) in str(told.value)


def test_missing_and_damaged_npz_are_refused(tmp_path: Path):
    file = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        npz(file)
    np.savez(file, images=BYTES, labels=LABELS)
    whole = file.read_bytes()
    for part in (b"", whole[:100], whole[:-10], b"not a zip", whole[:200] + whole[220:]):
        file.write_bytes(part)
        with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
            npz(file)
    np.save(tmp_path / "b.npy", BYTES)
    with pytest.raises(ValueError, match=r"b\.npy cannot be read"):
        npz(tmp_path / "b.npy")


@pytest.mark.parametrize("label", [2**20, 2**40, 2**62])
def test_huge_label_is_refused(tmp_path: Path, label: int):
    np.savez(tmp_path / "far.npz", images=BYTES, labels=np.array([0, label]))
    with pytest.raises(ValueError, match=rf"far\.npz: the highest label is {label}"):
        npz(tmp_path / "far.npz")


def test_duplicate_class_names_are_refused(tmp_path: Path):
    np.savez(tmp_path / "a.npz", images=BYTES, labels=LABELS, classes=np.array(["x", "y", "x"]))
    with pytest.raises(ValueError, match=r"a\.npz: two classes are called 'x'"):
        npz(tmp_path / "a.npz")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc of Linux")
def test_channels_last_images_are_held_in_memory_once(tmp_path: Path):
    size = (400, 224, 224, 3)
    np.savez(tmp_path / "a.npz", images=np.ones(size, np.uint8), labels=np.arange(400) % 10)
    code = (
        "import sys; from pathlib import Path; from unfool.data.arrays import npz\n"
        "def of(key): return int(open('/proc/self/status').read().split(key)[1].split()[0]) << 10\n"
        "Path('/proc/self/clear_refs').write_text('5')  # forget the peak of the imports\n"
        "before = of('VmRSS:')\n"
        "image, label = npz(Path(sys.argv[1]))[3]\n"
        "assert image.shape == (3, 224, 224) and image.is_contiguous() and label == 3\n"
        "print(of('VmHWM:') - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.npz")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    whole = math.prod(size)
    assert 0.9 * whole < int(told) < 1.3 * whole
