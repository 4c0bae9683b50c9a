"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), from the official files (binary or Python layout).

The Python layout consists of pickles, which are read without running any code in them.
"""

import os
import pickle
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy._core import multiarray

from unfool.data.arrays import Arrays
from unfool.data.download import Split, check_split, fetch_file, find_files
from unfool.runtime.downloads import allowed
from unfool.runtime.files import load_pickle, raise_system_error

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_NAMES_100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge "
    "bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud "
    "cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox "
    "girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree "
    "pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray "
    "road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel "
    "streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
CLASSES_100 = tuple(_NAMES_100.split())
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
URL_100 = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
MD5_100 = "03b5dce01913d631647c71ecec9e9cb8"

_SUBFOLDERS = (".", "cifar10", "cifar-10-batches-bin", "cifar-10-batches-py")
_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_SUBFOLDERS_100 = (".", "cifar100", "cifar-100-binary", "cifar-100-python")
_IMAGES = 10_000  # in each file of CIFAR-10, and in the test file of CIFAR-100
_TRAIN_100 = 50_000
_PIXELS = 3 * 32 * 32
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2
_PICKLE_BYTES = 31_035_500  # approximate size of a file in the Python layout


def cifar10(folder: Path, split: Split = "test", download: bool = False) -> Arrays:
    """CIFAR-10: 50,000 train or 10,000 test images (3, 32, 32) of ten classes.

    Args:
        folder: The folder with the official files (data_batch_1.bin ... or data_batch_1 ...),
            directly or in `cifar10`, `cifar-10-batches-bin` or `cifar-10-batches-py`.
        split: `"train"` or `"test"`.
        download: Fetch the binary layout (170 MB) into `folder` if files are missing.

    Raises:
        FileNotFoundError: Files are missing, and `download` is false or failed.
        ValueError: A file is damaged or has the wrong format.
    """
    check_split(split)
    folder, names = Path(folder), _FILES[split]
    sets = [[f"{name}.bin" for name in names], names]
    try:
        files = find_files("CIFAR-10", folder, _SUBFOLDERS, sets)
    except FileNotFoundError:
        if not (download or allowed()):
            raise
        _download(folder, URL, MD5, "cifar-10-batches-bin")
        files = find_files("CIFAR-10", folder, ("cifar-10-batches-bin",), sets)
    return _arrays(files, _Contents("CIFAR-10", _IMAGES, 1, "labels", CLASSES))


def cifar100(folder: Path, split: Split = "test", download: bool = False) -> Arrays:
    """CIFAR-100: 50,000 train or 10,000 test images (3, 32, 32) of a hundred classes (fine labels).

    Args:
        folder: The folder with the official file (train.bin or train, test.bin or test), directly
            or in `cifar100`, `cifar-100-binary` or `cifar-100-python`.
        split: `"train"` or `"test"`.
        download: Fetch the binary layout (169 MB) into `folder` if files are missing.

    Raises:
        FileNotFoundError: Files are missing, and `download` is false or failed.
        ValueError: A file is damaged or has the wrong format.
    """
    check_split(split)
    folder, sets = Path(folder), [[f"{split}.bin"], [split]]
    try:
        files = find_files("CIFAR-100", folder, _SUBFOLDERS_100, sets)
    except FileNotFoundError:
        if not (download or allowed()):
            raise
        _download(folder, URL_100, MD5_100, "cifar-100-binary")
        files = find_files("CIFAR-100", folder, ("cifar-100-binary",), sets)
    count = _TRAIN_100 if split == "train" else _IMAGES
    return _arrays(files, _Contents("CIFAR-100", count, 2, "fine_labels", CLASSES_100))


class _Contents(NamedTuple):
    """The contents of each file of a data set.

    Attributes:
        dataset: The name of the data set.
        images: The number of images in a file.
        label_bytes: The number of bytes before the pixels of a record; the last one is the label.
        key: The key of the labels in the Python layout.
        classes: The name of each class.
    """

    dataset: str
    images: int
    label_bytes: int
    key: str
    classes: Sequence[str]


def _arrays(files: Sequence[Path], contents: _Contents) -> Arrays:
    parts = [(_binary if file.suffix == ".bin" else _python)(file, contents) for file in files]
    images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([numbers for _, numbers in parts])
    return Arrays(torch.from_numpy(images), torch.from_numpy(labels), contents.classes)


def _binary(file: Path, contents: _Contents) -> tuple[np.ndarray, np.ndarray]:
    """Read pixels (N, 3072) and labels (N,) from records of label bytes followed by pixels."""
    record = contents.label_bytes + _PIXELS
    expected, size = contents.images * record, file.stat().st_size
    if size != expected:
        raise ValueError(
            f"{file} has {size} bytes instead of {expected}: it is truncated or not {contents.dataset}; "
            "fetch it again"
        )
    records = np.fromfile(file, np.uint8).reshape(contents.images, record)
    labels = records[:, contents.label_bytes - 1].astype(np.int64)
    return records[:, contents.label_bytes :], _labels(file, labels, contents)


def _python(file: Path, contents: _Contents) -> tuple[np.ndarray, np.ndarray]:
    """Read pixels (N, 3072) and labels (N,) from a pickled dictionary."""
    try:
        with file.open("rb") as source:
            table = load_pickle(_Unpickler(source, encoding="latin1"))
        pixels, labels = table["data"], np.asarray(table[contents.key], dtype=np.int64)
    except Exception as error:  # a damaged pickle can raise any exception
        raise_system_error(error)
        raise ValueError(
            f"{file} cannot be read ({error}): it has {file.stat().st_size} bytes instead of about "
            f"{contents.images * _PICKLE_BYTES // _IMAGES} and is truncated or not "
            f"{contents.dataset}; fetch it again"
        ) from error
    shape = (contents.images, _PIXELS)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != shape:
        raise ValueError(
            f"{file} does not hold {contents.images} {contents.dataset} images; fetch it again"
        )
    return pixels, _labels(file, labels, contents)


def _labels(file: Path, labels: np.ndarray, contents: _Contents) -> np.ndarray:
    last = len(contents.classes) - 1
    if labels.shape != (contents.images,) or labels.min() < 0 or labels.max() > last:
        raise ValueError(
            f"{file} must hold {contents.images} labels from 0 to {last} and does not: it is "
            f"damaged or not {contents.dataset}; fetch it again"
        )
    return labels


class _Unpickler(pickle.Unpickler):
    """An unpickler for plain values and NumPy arrays that refuses everything else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if name == "_reconstruct" and module in _MULTIARRAY:
            return multiarray._reconstruct  # pyright: ignore[reportAttributeAccessIssue]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is code and not data")


def _download(folder: Path, url: str, md5: str, subfolder: str) -> None:
    archive = folder / f".{subfolder}.tar.gz"  # kept next to the target, so a download can resume
    fetch_file(url, md5, archive)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        target = folder / subfolder
        target.mkdir(exist_ok=True)
        for file in (Path(scratch) / target.name).iterdir():
            os.replace(file, target / file.name)
    archive.unlink(missing_ok=True)
