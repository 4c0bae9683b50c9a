"""CIFAR-100 in both official layouts, in small files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_cifar import pickled

from unfool.data import cifar
from unfool.data.cifar import cifar100

N = 5
FINE, COARSE = np.array([99, 0, 7, 3, 50], np.uint8), np.array([1, 2, 3, 4, 19], np.uint8)
PIXELS = (np.arange(N * 3072) * 11 % 253).astype(np.uint8).reshape(N, 3072)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cifar, "_IMAGES", N)
    monkeypatch.setattr(cifar, "_TRAIN_100", 2 * N)


def binary(folder: Path) -> None:
    folder.mkdir(parents=True)
    records = np.concatenate([COARSE[:, None], FINE[:, None], PIXELS], axis=1)
    (folder / "test.bin").write_bytes(records.tobytes())
    (folder / "train.bin").write_bytes(records.tobytes() * 2)


def python(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, times in (("test", 1), ("train", 2)):
        table = {
            b"data": np.tile(PIXELS, (times, 1)),
            b"fine_labels": FINE.tolist() * times,
            b"coarse_labels": COARSE.tolist() * times,
        }
        (folder / name).write_bytes(pickled(table))


@pytest.mark.parametrize("inside", [".", "cifar100", "official"])
@pytest.mark.parametrize(("write", "official"), [(binary, "binary"), (python, "python")])
def test_both_layouts_give_fine_labels_and_pixels(tmp_path, inside, write, official):
    place = tmp_path / "data"
    write(place / (f"cifar-100-{official}" if inside == "official" else inside))
    data = cifar100(place)
    assert data.labels.tolist() == FINE.tolist()
    assert torch.equal(data.images.flatten(1), torch.from_numpy(PIXELS))
    assert (len(data.classes), data.classes[0], data.classes[99]) == (100, "apple", "worm")
    assert len(cifar100(place, "train")) == 2 * N


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"CIFAR-100 .*test\.bin.*download: true"):
        cifar100(tmp_path)
    binary(tmp_path / "cifar100")
    file = tmp_path / "cifar100" / "test.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"test\.bin has 15369 bytes instead of 15370"):
        cifar100(tmp_path)
    file.write_bytes(bytes([0, 100]) + bytes(3072) + bytes(4 * 3074))
    with pytest.raises(ValueError, match=r"labels from 0 to 99.*CIFAR-100"):
        cifar100(tmp_path)
