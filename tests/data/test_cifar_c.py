"""CIFAR-10-C, from files in its layout."""

import numpy as np
import pytest

from unfool.data.cifar_c import cifar10_c


def write(folder, kind="fog", shape=(50_000, 32, 32, 3), dtype=np.uint8):
    """Write sparse files of the official size, with one nonzero pixel per severity."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(folder / f"{kind}.npy", "w+", dtype, shape)
    images[::10_000, 1, 2, 0] = np.arange(1, 6)[: len(images[::10_000])]
    labels = np.tile(np.arange(10_000) % 10, 5).astype(np.uint8)
    np.save(folder / "labels.npy", labels)


@pytest.mark.parametrize("inside", ["", "CIFAR-10-C"])
def test_severity_selects_ten_thousand_consecutive_images(tmp_path, inside):
    write(tmp_path / inside)
    for severity in (1, 5):
        data = cifar10_c(tmp_path, "fog", severity)
        assert len(data) == 10_000
        image, label = data[0]
        assert image.shape == (3, 32, 32)
        assert float(image[0, 1, 2]) == pytest.approx(severity / 255)
        assert label == 0
        assert data[13][1] == 3


def test_invalid_options_and_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="kind must be one of gaussian_noise"):
        cifar10_c(tmp_path, "rain")  # pyright: ignore
    with pytest.raises(ValueError, match="severity must be from 1 to 5, not"):
        cifar10_c(tmp_path, "fog", 6)
    with pytest.raises(FileNotFoundError, match=r"fog.npy and labels.npy .* --data"):
        cifar10_c(tmp_path, "fog")
    write(tmp_path, shape=(100, 32, 32, 3))
    with pytest.raises(ValueError, match="fetch it again"):
        cifar10_c(tmp_path, "fog")
