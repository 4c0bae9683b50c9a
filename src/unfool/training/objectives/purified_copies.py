"""Train a classifier on purified copies of its images and on the clean images.

A purifier changes images in ways that a classifier of clean images has never seen. FT-CADIS fine-tunes
smoothed classifiers for the same reason.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfool.data import fetch
from unfool.data.subset import choose_indices
from unfool.noise import Noise
from unfool.protocols import Classifier, Dataset
from unfool.ranges import Count, ShareBelowOne, checked_dataclass
from unfool.training.image_cache import CachedImages, fill_cache
from unfool.training.objectives.cross_entropy import CrossEntropy

# what the copies depend on
OPTIONS = ("denoiser", "purifier", "copies", "images", "seed")


@checked_dataclass
class PurifiedCopies:
    """Cross-entropy on purified copies and on the images they were made from, one of each.

    `with_purified_copies` makes the purified copies; this object only computes the loss.

    Attributes:
        denoiser: The denoiser of the purifier.
        purifier: Makes the copies.
        copies: Copies of each image, each with its own noise.
        images: How many images of the data set are used, chosen by `seed`; None for all.
        smoothing: See `CrossEntropy`.
        seed: Seed of the purifier's noise and of the choice of images.
    """

    denoiser: Any
    purifier: Any
    copies: Count = 1
    images: Count | None = None
    smoothing: ShareBelowOne = 0.0
    seed: int = 0

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,)."""
        return CrossEntropy(self.smoothing)(model, x, y, noise)


class CleanAndPurified:
    """A data set of clean images, followed by the same number of purified ones.

    Args:
        data: Holds the clean images.
        indices: Which images of `data`; copy i x len(indices) + j is made from `indices[j]`.
        purified: The purified images.
    """

    def __init__(self, data: Dataset, indices: Sequence[int], purified: CachedImages) -> None:
        self.data, self.indices, self.purified = data, indices, purified
        self.classes = data.classes

    def __len__(self) -> int:
        return 2 * len(self.purified)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index < len(self.purified):
            return self.data[self.indices[index % len(self.indices)]]
        return self.purified[index - len(self.purified)]

    def facts(self) -> dict[str, object]:
        """How many copies there are, and how far purification moves an image."""
        moved = self.purified.column("moved").double()
        return {
            "images": len(self.purified),
            "moved_mean": round(float(moved.mean()), 5),
            "key": self.purified.folder.name,
        }


def with_purified_copies(
    data: Dataset,
    objective: PurifiedCopies,
    asked: Mapping[str, Any],
    home: Path,
    device: str = "cpu",
    quiet: bool = False,
) -> CleanAndPurified:
    """Clean images and their purified copies, the latter from disk as far as they are there.

    Args:
        data: Clean images with labels.
        objective: Says what purifies them, and how often.
        asked: The checked part of a spec that it was built from.
        home: Holds a folder for each such set.
        device: Where to purify.
        quiet: Show no progress.

    Raises:
        SpecError: There are not so many images.
        ValueError: A file is damaged, or the purifier changes the shape of images.
    """
    indices = choose_indices(
        len(data), objective.images, objective.seed, stream="images", option="objective.images"
    )
    size = len(indices) * objective.copies

    def make(numbers: range) -> dict[str, Tensor]:
        return purify_block(data, indices, numbers, objective, device)

    options = {key: asked.get(key) for key in OPTIONS}
    folder = fill_cache(
        home, data, indices, size, make, [objective.denoiser], options,
        doing="purifying", device=device, quiet=quiet,
    )  # fmt: skip
    return CleanAndPurified(data, indices, CachedImages(folder, size, data.classes))


@torch.no_grad()
def purify_block(
    data: Dataset, indices: Sequence[int], numbers: range, objective: PurifiedCopies, device: str
) -> dict[str, Tensor]:
    """Copies of these numbers: images in float16, labels, and how far each moved (root mean square).

    They are cut to [0, 1], as those of a data set are, though a defense does not do so.
    """
    which = [indices[number % len(indices)] for number in numbers]
    x, y = (part.to(device) for part in fetch(data, which))
    pairs = [(index, number // len(indices)) for index, number in zip(which, numbers, strict=True)]
    keys = [Noise.of(objective.seed, [i]).child("purified", copy).keys[0] for i, copy in pairs]
    if isinstance(objective.purifier, nn.Module):
        objective.purifier.eval().requires_grad_(False)
    pure = objective.purifier(x, Noise(tuple(keys)))
    if pure.shape != x.shape:
        raise ValueError(
            f"the purifier must return images of the shape {tuple(x.shape)} that it was given, and "
            f"returned {tuple(pure.shape)}"
        )
    moved = (pure - x).square().flatten(1).mean(1).sqrt()
    return {"images": pure.clamp(0, 1).half(), "labels": y, "moved": moved}
