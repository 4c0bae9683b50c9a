"""Data sets: images in [0, 1] with labels, accessed by index.

Nothing is downloaded unless the user asks: files are read from the folder that the user names.
"""

from collections.abc import Iterable
from operator import index
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unfool.argument_checks import NORMALIZED, check_labels
from unfool.lazy import lazy_exports
from unfool.protocols import Dataset

if TYPE_CHECKING:
    from unfool.data.arrays import Arrays as Arrays
    from unfool.data.arrays import npz as npz
    from unfool.data.celeba import celeba_hq as celeba_hq
    from unfool.data.cifar import cifar10 as cifar10
    from unfool.data.cifar import cifar100 as cifar100
    from unfool.data.cifar_c import cifar10_c as cifar10_c
    from unfool.data.folder import Folder as Folder
    from unfool.data.hub_table import huggingface as huggingface
    from unfool.data.imagenet_folders import imagenet as imagenet
    from unfool.data.imagenet_folders import tiny_imagenet as tiny_imagenet
    from unfool.data.sample import cifar10_sample as cifar10_sample
else:  # only at run time, so that type checkers see just the names imported above
    # `digits` and `mnist` have the names of their modules, so only `unfool` exports them.
    __getattr__, __dir__, __all__ = lazy_exports(__name__, "fetch")


def fetch(data: Dataset, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Return the images and labels of `data` at `indices` as a batch.

    Returns:
        Images (B, C, H, W) in [0, 1], float32, and labels (B,), int64.

    Raises:
        ValueError: No index was given, the images differ in size, or the data set does not return
            float32 images in [0, 1] with labels from 0 to `len(data.classes)` - 1.
    """
    images, labels = [], []
    for number in indices:
        image, label = data[int(number)]
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"image {number} is {_size(image)}, and the first of its batch is "
                f"{_size(images[0])}: set `size` so that all images of the data set get one size"
            )
        images.append(image)
        labels.append(label)
    if not images:
        raise ValueError("a batch needs at least one index")
    x = torch.stack(images)
    if x.ndim != 4 or x.dtype != torch.float32 or not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(
            "a data set must give float32 images (C, H, W) in [0, 1]; this one gave "
            f"{x.dtype} {tuple(x.shape[1:])} from {x.min():.4g} to {x.max():.4g}; {NORMALIZED}"
        )
    y = torch.tensor([_label(label) for label in labels], dtype=torch.int64)
    check_labels(y, len(x), len(data.classes))
    return x, y


def _label(label: object) -> int:
    try:
        return index(label)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise ValueError(
            f"a data set must give labels that are whole numbers, not {label!r}"
        ) from error


def _size(image: Tensor) -> str:
    return "x".join(str(side) for side in image.shape)
