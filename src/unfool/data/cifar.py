"""CIFAR-10 (Krizhevsky, 2009), from the official files in the binary or the python layout.

Pickles of the python layout are read without running anything that is in them.
"""

import os
import pickle
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy._core import multiarray

from unfool.data.arrays import Arrays
from unfool.data.download import Split, check_split, fetch_file, find
from unfool.runtime.files import raise_system_error

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"

_INSIDE = (".", "cifar10", "cifar-10-batches-bin", "cifar-10-batches-py")
_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_IMAGES = 10_000  # in each file
_PIXELS = 3 * 32 * 32
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2
_PICKLE_BYTES = 31_035_500  # of a file in the python layout, to a few hundred


def cifar10(folder: Path, split: Split = "test", download: bool = False) -> Arrays:
    """CIFAR-10: 50,000 train or 10,000 test images (3, 32, 32) of ten classes.

    Args:
        folder: Holds the official files (data_batch_1.bin ... or data_batch_1 ...), directly or in
            `cifar10`, `cifar-10-batches-bin` or `cifar-10-batches-py`.
        split: `"train"` or `"test"`.
        download: Fetch the binary layout (170 MB) into `folder` if files are missing.

    Raises:
        FileNotFoundError: Files are missing and not to be fetched, or cannot be fetched.
        ValueError: A file is damaged or not what it should be.
    """
    check_split(split)
    folder, names = Path(folder), _FILES[split]
    sets = [[f"{name}.bin" for name in names], names]
    try:
        files = find("CIFAR-10", folder, _INSIDE, sets)
    except FileNotFoundError:
        if not download:
            raise
        _download(folder)
        files = find("CIFAR-10", folder, ("cifar-10-batches-bin",), sets)
    parts = [_binary(file) if file.suffix == ".bin" else _python(file) for file in files]
    images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([numbers for _, numbers in parts])
    return Arrays(torch.from_numpy(images), torch.from_numpy(labels), CLASSES)


def _binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3072) and labels (N,) of a file of records: a label byte, then the pixels."""
    expected, found = _IMAGES * (1 + _PIXELS), file.stat().st_size
    if found != expected:
        raise ValueError(
            f"{file} has {found} bytes instead of {expected}: it is truncated or not CIFAR-10; "
            "fetch it again"
        )
    records = np.fromfile(file, np.uint8).reshape(_IMAGES, 1 + _PIXELS)
    return records[:, 1:], _labels(file, records[:, 0].astype(np.int64))


def _python(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3072) and labels (N,) of a pickled table with `data` and `labels`."""
    try:
        with file.open("rb") as source:
            table = _Unpickler(source, encoding="latin1").load()
        pixels, labels = table["data"], np.asarray(table["labels"], dtype=np.int64)
    except Exception as error:  # a damaged pickle may raise anything
        raise_system_error(error)
        raise ValueError(
            f"{file} cannot be read ({error}): it has {file.stat().st_size} bytes instead of about "
            f"{_PICKLE_BYTES} and is truncated or not CIFAR-10; fetch it again"
        ) from error
    shape = (_IMAGES, _PIXELS)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != shape:
        raise ValueError(f"{file} does not hold {_IMAGES} CIFAR-10 images; fetch it again")
    return pixels, _labels(file, labels)


def _labels(file: Path, labels: np.ndarray) -> np.ndarray:
    if labels.shape != (_IMAGES,) or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise ValueError(
            f"{file} must hold {_IMAGES} labels from 0 to {len(CLASSES) - 1} and does not: it is "
            "damaged or not CIFAR-10; fetch it again"
        )
    return labels


class _Unpickler(pickle.Unpickler):
    """Reads plain values and numpy arrays; whatever else a pickle asks for is refused."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if name == "_reconstruct" and module in _MULTIARRAY:
            return multiarray._reconstruct  # pyright: ignore[reportAttributeAccessIssue]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no data")


def _download(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
        archive = Path(scratch) / "cifar-10-binary.tar.gz"
        fetch_file(URL, MD5, archive)
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        target = folder / "cifar-10-batches-bin"
        target.mkdir(exist_ok=True)
        for file in (Path(scratch) / target.name).iterdir():
            os.replace(file, target / file.name)
