"""Train a classifier on purified copies of its images and on the clean images.

A purifier changes images in ways that a classifier trained on clean images has never seen. FT-CADIS
fine-tunes smoothed classifiers for the same reason.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfool.batching import BatchLimit, in_parts
from unfool.data import fetch
from unfool.data.subset import choose_indices
from unfool.noise import Noise
from unfool.protocols import Classifier, Dataset
from unfool.ranges import Count, ShareBelowOne, checked_dataclass
from unfool.training.image_cache import BLOCK, CachedImages, fill_cache
from unfool.training.objectives.cross_entropy import CrossEntropy

# options of the objective on which the copies depend
OPTIONS = ("denoiser", "purifier", "copies", "images", "seed")


@checked_dataclass
class PurifiedCopies:
    """Cross-entropy on purified copies and on their clean images, in equal numbers.

    `with_purified_copies` makes the purified copies; this object only computes the loss.

    Attributes:
        denoiser: The denoiser of the purifier.
        purifier: The purifier that makes the copies.
        copies: The number of copies of each image, each with its own noise.
        images: The number of images of the data set that are used, chosen by `seed`; None for all.
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
        indices: The images of `data` that are used; copy i x len(indices) + j is made from
            `indices[j]`.
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
        """The number of copies, and the mean distance by which purification moves an image."""
        moved = self.purified.column("moved").double()
        return {
            "images": len(self.purified),
            "moved_mean": round(float(moved.mean()), 5),
            "key": self.purified.folder.name,
        }


def with_purified_copies(
    data: Dataset,
    objective: PurifiedCopies,
    part: Mapping[str, Any],
    home: Path,
    device: str = "cpu",
    quiet: bool = False,
) -> CleanAndPurified:
    """Return clean images and their purified copies, computing the copies that are not yet on disk.

    Args:
        data: Clean images with labels.
        objective: Defines the purifier and the number of copies.
        part: The checked spec part from which `objective` was built.
        home: Folder that holds one subfolder for each set of images.
        device: Device on which the purifier runs.
        quiet: Show no progress.

    Raises:
        SpecError: The data set has too few images.
        ValueError: A file is damaged, or the purifier changes the shape of images.
    """
    indices = choose_indices(
        len(data), objective.images, objective.seed, stream="images", option="objective.images"
    )
    size = len(indices) * objective.copies

    limit = BatchLimit(BLOCK)

    def make(numbers: range) -> dict[str, Tensor]:
        return purify_block(data, indices, numbers, objective, device, limit)

    options = {key: part.get(key) for key in OPTIONS}
    folder = fill_cache(
        home, data, indices, size, make, [objective.denoiser, objective.purifier], options,
        doing="purifying", device=device, quiet=quiet,
    )  # fmt: skip
    return CleanAndPurified(data, indices, CachedImages(folder, size, data.classes))


@torch.no_grad()
def purify_block(
    data: Dataset,
    indices: Sequence[int],
    numbers: range,
    objective: PurifiedCopies,
    device: str,
    limit: BatchLimit,
) -> dict[str, Tensor]:
    """Make the copies `numbers`: images in float16, labels, and root-mean-square distances moved.

    The images are clipped to [0, 1] like those of a data set, although a defense does not do that.
    When memory runs out, the `limit` of the images in one call of the purifier is halved.
    """
    chosen = [indices[number % len(indices)] for number in numbers]
    x, y = (tensor.to(device) for tensor in fetch(data, chosen))
    pairs = [(index, number // len(indices)) for index, number in zip(chosen, numbers, strict=True)]
    keys = [Noise.of(objective.seed, [i]).child("purified", copy).keys[0] for i, copy in pairs]
    if isinstance(objective.purifier, nn.Module):
        objective.purifier.eval().requires_grad_(False)

    def purify(span: slice) -> Tensor:
        return objective.purifier(x[span], Noise(tuple(keys[span])))

    purified = torch.cat(in_parts(purify, len(x), limit))
    if purified.shape != x.shape:
        raise ValueError(
            f"the purifier must return images of the shape {tuple(x.shape)} that it was given, and "
            f"returned {tuple(purified.shape)}"
        )
    moved = (purified - x).square().flatten(1).mean(1).sqrt()
    return {"images": purified.clamp(0, 1).half(), "labels": y, "moved": moved}
