"""A part of a data set: which images it holds, and a hash of what is in them."""

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
    """`images` of the numbers 0 .. size - 1, chosen by `seed`, in order; all of them if None.

    Args:
        size: Of the data set.
        images: How many to choose.
        seed: Of the choice.
        labels: Of all images. With them, classes are taken in turn, so that their numbers differ by one
            at most while none runs out. A choice lies in every larger one of the same seed.
        stream: Another name makes another choice with the same seed.
        option: What an error message calls `images`.

    Raises:
        SpecError: There are not so many.
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
        before: Counter[int] = Counter()
        turn: dict[int, int] = {}
        for place in order:
            turn[place] = before[labels[place]]
            before[labels[place]] += 1
        order = sorted(order, key=turn.__getitem__)
    return sorted(order[:images])


def labels_of(data: Any) -> list[int] | None:
    """The labels of all images, where a data set has them at hand as `labels` or `targets`."""
    for owner in (data, getattr(data, "data", None)):
        for name in ("labels", "targets"):
            found = getattr(owner, name, None)
            if found is not None and hasattr(found, "__len__") and len(found) == len(data):
                return [int(label) for label in found]
    return None


def hash_images(data: Dataset, indices: Sequence[int]) -> "hashlib._Hash":
    """The sha256 of the images and labels at `indices`, to which more can be added.

    Raises:
        SpecError: A label is not that of a class.
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
