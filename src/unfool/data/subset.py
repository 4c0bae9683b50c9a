"""Subsets of a data set: the choice of images, and a hash of their contents."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from unfool.data import fetch
from unfool.errors import SpecError
from unfool.noise import permutation
from unfool.protocols import Dataset


def choose_indices(
    size: int,
    images: int | None,
    seed: int,
    *,
    labels: Sequence[int] | None = None,
    stream: str = "subset",
    option: str = "images",
) -> list[int]:
    """Choose `images` indices of a data set at random, and return them in ascending order.

    Args:
        size: The number of images in the data set.
        images: How many indices to choose; None returns all.
        seed: The seed of the choice. A subset lies in every larger subset with the same seed.
        labels: The labels of all images. If given, classes take turns, so their counts differ by at
            most one until a class runs out of images.
        stream: The name of the random stream; another name gives another choice.
        option: The name of `images` in error messages.

    Raises:
        SpecError: `images` is larger than `size`.
    """
    if images is None:
        return list(range(size))
    if images > size:
        raise SpecError(
            f"{option} is {images}, and the data set has {size} images: ask for fewer, or set it "
            "to null for all"
        )
    order = permutation(size, seed, stream)
    if labels is not None:
        seen: Counter[int] = Counter()
        turn: dict[int, int] = {}
        for index in order:
            turn[index] = seen[labels[index]]
            seen[labels[index]] += 1
        order = sorted(order, key=turn.__getitem__)
    return sorted(order[:images])


def labels_of(data: Any) -> list[int] | None:
    """Return the labels of all images if `data` or `data.data` has `labels` or `targets`."""
    for owner in (data, getattr(data, "data", None)):
        for name in ("labels", "targets"):
            labels = getattr(owner, name, None)
            if labels is not None and hasattr(labels, "__len__") and len(labels) == len(data):
                return [int(label) for label in labels]
    return None


def hash_images(data: Dataset, indices: Sequence[int]) -> "hashlib._Hash":
    """Return a SHA-256 of the images and labels at `indices`, which the caller can update further.

    Raises:
        SpecError: A label is not the index of a class.
    """
    digest = hashlib.sha256()
    for first in range(0, len(indices), 256):
        x, y = fetch(data, indices[first : first + 256])
        if int(y.min()) < 0 or int(y.max()) >= len(data.classes):
            raise SpecError(
                f"the data set names {len(data.classes)} classes, and its labels go from "
                f"{int(y.min())} to {int(y.max())}: number the labels from 0, one for each class"
            )
        digest.update(x.numpy().tobytes() + y.numpy().tobytes())
    return digest
