"""Data sets held in memory, and data sets in .npz files.

Images and labels are checked when the data set is created, not in the middle of a run.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unfool.argument_checks import check_channels_first
from unfool.runtime.files import raise_system_error

MOST_CLASSES = 2**20  # without names; otherwise one damaged label could exhaust the memory


class Arrays:
    """A data set of two tensors in memory.

    Args:
        images: (N, C, H, W), uint8 from 0 to 255 or float32 in [0, 1]; stored unchanged.
        labels: (N,), int64, from 0 to `len(classes) - 1`.
        classes: The name of each class.

    Raises:
        ValueError: A shape, type, or value is not as described above.
    """

    classes: Sequence[str]

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        check_images(images)
        _check_labels(labels, len(images), len(classes))
        self.images, self.labels, self.classes = images, labels, classes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].contiguous()
        if image.dtype == torch.uint8:
            image = image.float() / 255
        return image, int(self.labels[index])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width


def npz(path: Path, images: str = "images", labels: str = "labels") -> Arrays:
    """Read a data set from an .npz file.

    Args:
        path: The file. Its array `classes` has the class names; if it is missing, classes are named
            by the numbers from 0 to the highest label.
        images: The name of the array of images: (N, H, W, C), (N, C, H, W) or (N, H, W) with 1 or
            3 channels, uint8, or floating point in [0, 1].
        labels: The name of the array of labels: (N,), integers.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or an array is missing or not as described above.
    """
    path = Path(path)
    arrays = read(path, (images, labels, "classes"))
    for name in (images, labels):
        if name not in arrays:
            raise ValueError(
                f"{path} has no array {name!r}: name the arrays to read with `images` and `labels`"
            )
    y = arrays[labels]
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"{path}: labels must be whole numbers, not {y.dtype}")
    highest = int(y.max(initial=0))
    if "classes" not in arrays and highest >= MOST_CLASSES:
        raise ValueError(
            f"{path}: the highest label is {highest}, which cannot be a class number: number the "
            "classes from 0, or add an array `classes` with the names of that many classes"
        )
    names = [str(name) for name in arrays.get("classes", np.arange(highest + 1)).ravel()]
    if duplicate := next((name for name, count in Counter(names).items() if count > 1), None):
        raise ValueError(
            f"{path}: two classes are called {duplicate!r}: give each class its own name"
        )
    try:
        return Arrays(
            channels_first(arrays[images]),
            torch.from_numpy(y.astype(np.int64)),
            tuple(names),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays `names` of an .npz file, without those that the file lacks.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: name an .npz file of images and labels")
    try:
        with open(path, "rb") as opened:
            if opened.read(2) != b"PK":  # numpy would suggest loading the file as a pickle
                raise ValueError("it is not an archive")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names if name in file}
    except Exception as error:  # a damaged archive or a lack of memory can raise any exception
        raise_system_error(error)
        why = (
            "it holds Python objects"
            if "allow_pickle" in str(error)
            else "it is damaged, or not an .npz file"
        )
        raise ValueError(
            f"{path} cannot be read as an .npz file of plain numbers ({why}): save it with "
            "numpy.savez"
        ) from error


def channels_first(x: np.ndarray) -> Tensor:
    """Convert images (N, H, W, C), (N, C, H, W) or (N, H, W) to (N, C, H, W), uint8 or float32.

    The result shares the memory of `x`, unless `x` has another floating point type than float32.

    Raises:
        ValueError: The images do not have 1 or 3 channels, or have another type.
    """
    if np.issubdtype(x.dtype, np.floating):
        x = x.astype(np.float32, copy=False)
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4:
        first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
        if first == last:
            raise ValueError(f"images {x.shape} must have 1 or 3 channels, second or last")
        x = x if first else x.transpose(0, 3, 1, 2)
    if x.dtype != np.uint8 and x.dtype != np.float32:
        raise ValueError(f"images must be uint8 or floating point, not {x.dtype}")
    return torch.from_numpy(x)


def check_images(images: Tensor) -> None:
    """Check that `images` is a tensor (N, C, H, W) of uint8, or of float32 in [0, 1].

    Raises:
        ValueError: The shape, type, or values are not as described, or there are no images.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must be (N, C, H, W) and at least one, not {tuple(images.shape)}")
    check_channels_first(images.shape)
    if images.dtype == torch.uint8:
        return
    if images.dtype != torch.float32:
        raise ValueError(f"images must be uint8 or float32, not {images.dtype}")
    if images.isnan().any():
        raise ValueError("images must not hold NaN")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise ValueError(f"float images must lie in [0, 1], not from {low:.4g} to {high:.4g}")


def _check_labels(labels: Tensor, count: int, classes: int) -> None:
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(f"labels must be (N,) int64, not {tuple(labels.shape)} {labels.dtype}")
    if len(labels) != count:
        raise ValueError(
            f"each image needs one label, and there are {count} images and {len(labels)} labels"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels of {classes} classes must go from 0 to {classes - 1}, not from {low} to {high}"
        )
