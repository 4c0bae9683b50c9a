"""Apply a defense to a user's images: the code that `classify`, `purify`, and the service share.

It decides on noise, image sizes, and votes, so all three give the same answers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unfool import spec as specs
from unfool.data import image_files
from unfool.data.folder import Folder
from unfool.defenses.purified_classifier import image_shape
from unfool.errors import SpecError
from unfool.evaluation.prepare import build_model
from unfool.evaluation.spec import check_model
from unfool.noise import Noise
from unfool.protocols import Classifier, Dataset
from unfool.spec import RawSpec

Shape = tuple[int, int, int]
Say = Callable[[str], None]
LARGE = 8  # times the model's height or width


class Loaded(NamedTuple):
    """The classifier of a spec, and what is known about its images and classes.

    Attributes:
        model: The classifier, behind its purifier if it has one.
        classes: The names of the classes; empty if the data set is not available.
        shape: The shape (C, H, W) of its images, or None if unknown.
        data: The data set of the spec, or None if it is not available.
    """

    model: Classifier
    classes: Sequence[str]
    shape: Shape | None
    data: Dataset | None

    def label(self, index: int) -> str:
        """Return the name of a class, or its number if it has no name."""
        return self.classes[index] if index < len(self.classes) else str(index)


class Tally(NamedTuple):
    """The vote on one image.

    Attributes:
        winner: The class with the most votes; in a tie, the lowest class.
        votes: The votes of the winner.
        undecided: Whether there is a tie.
        counts: The votes of each class.
    """

    winner: int
    votes: int
    undecided: bool
    counts: list[int]


def load_defended(table: RawSpec, folder: str | None, device: str) -> Loaded:
    """Load the classifier of a spec onto a device, with its classes and the shape of its images.

    Args:
        table: The spec.
        folder: The folder with the data sets.
        device: The device to compute on.

    Raises:
        SpecError: The spec is wrong, or its data set cannot be loaded from the given folder.
    """
    model = build_model(check_model(table), device)
    names, shape, data = _load_data(table, folder)
    shape = image_shape(getattr(model, "purifier", None)) or shape
    return Loaded(model, names, shape, data)


def noise_to_classify(seed: int | None, position: int, count: int) -> Noise:
    """Return noise for `count` images, the first at position `position` of all; fresh without a seed."""
    if seed is None:
        return Noise.fresh(count)
    return Noise.of(seed, range(position, position + count)).child("apply")


def noise_to_purify(seed: int | None, position: int, count: int) -> Noise:
    """Return noise like `noise_to_classify`, for a purifier without its classifier."""
    if seed is None:
        return Noise.fresh(count)
    return Noise.of(seed, range(position, position + count)).child("apply", "purify")


def tally(chosen: Tensor, classes: int = 0) -> list[Tally]:
    """Count the votes on each image.

    Args:
        chosen: The class that each draw chose, (B, draws).
        classes: The smallest number of classes to count.
    """
    rows, tallies = chosen.tolist(), []
    classes = max(classes, *(max(row) + 1 for row in rows))
    for row in rows:
        counts = [0] * classes
        for choice in row:
            counts[choice] += 1
        most = max(counts)
        tallies.append(Tally(counts.index(most), most, counts.count(most) > 1, counts))
    return tallies


def read_image_for_model(
    loaded: Loaded, file: Path | BinaryIO, name: str, say: Say, advice: str | None = None
) -> Tensor:
    """Read an image file as (1, C, H, W) in the shape that the classifier takes.

    If the data set is a `folder` with a `size`, the image is resized and cropped like its own images.
    Otherwise it is stretched, and `say` gets a message.

    Args:
        loaded: The classifier.
        file: The image file.
        name: Its name in messages.
        say: Receives messages to the user.
        advice: What to advise if the image is far too large to stretch; None stretches any.

    Raises:
        ValueError: The file is not an image, or the image is far too large.
    """
    data, shape = loaded.data, loaded.shape
    if isinstance(data, Folder) and data.size is not None:
        x = data.read(file, name)[None]
        if shape is None or x.shape[1:] == shape:
            return x
        if not isinstance(file, Path):
            file.seek(0)
    x = read_image(file, name, shape, say)
    if advice is not None:
        refuse_large(x, shape, name, advice)
    return resize_for_model(x, shape, say)


def read_image(file: Path | BinaryIO, name: str, shape: Shape | None, say: Say) -> Tensor:
    """Read an image file as (1, C, H, W) in its own size, in gray if the model takes gray images.

    Raises:
        ValueError: The file is not an image.
    """
    x, gray = image_files.read(file, name=name), shape is not None and shape[0] == 1
    if not gray:
        return x[None]
    if bool((x != x[:1]).any()):
        say(f"{name} loses its colors, because the model takes gray images only")
    if not isinstance(file, Path):
        file.seek(0)
    return image_files.read(file, gray=True, name=name)[None]


def array_to_images(array: np.ndarray | None, name: str) -> tuple[Tensor, bool]:
    """Convert an array (N, H, W, C), (N, C, H, W), or (N, H, W) to images (N, C, H, W).

    Args:
        array: uint8, or numbers in [0, 1].
        name: Its name in messages.

    Returns:
        The images, and whether its channels come last.

    Raises:
        ValueError: The array does not hold images.
    """
    is_numeric = array is not None and array.dtype.kind in "uif"
    if array is None or array.ndim not in (3, 4) or not is_numeric or not array.size:
        raise ValueError(
            f"{name} must hold an array `images` of shape (N, H, W, C) or (N, C, H, W)"
        )
    x = torch.from_numpy(array).float()
    x = x / 255 if array.dtype == np.uint8 else x
    x = x[:, None] if x.ndim == 3 else x
    channels_last = x.shape[1] not in (1, 3) and x.shape[3] in (1, 3)
    x = x.permute(0, 3, 1, 2).contiguous() if channels_last else x
    if x.shape[1] not in (1, 3):
        raise ValueError(
            f"{name}: images must have 1 or 3 channels, and these have the shape {array.shape}"
        )
    low, high = (float(end) for end in x.aminmax())  # NaN if any value is NaN
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{name}: images must be uint8, or floating point in [0, 1] without NaN")
    return x, channels_last


def images_to_array(x: Tensor, like: np.ndarray, channels_last: bool) -> np.ndarray:
    """Convert images (N, C, H, W) to the layout and type of the array `like` they came from."""
    x = x.permute(0, 2, 3, 1) if channels_last else x[:, 0] if like.ndim == 3 else x
    return ((x * 255).round().byte() if like.dtype == np.uint8 else x).numpy()


def resize_for_model(x: Tensor, shape: Shape | None, say: Say) -> Tensor:
    """Resize images to the shape that the model takes; report a change to `say`."""
    _report_resizing(x, shape, "what the model takes", say)
    return _resized(x, shape)


def resize_for_denoiser(x: Tensor, shape: Shape | None, say: Say) -> Tensor:
    """Resize images to the shape that the denoiser takes; report a change to `say`."""
    _report_resizing(x, shape, "what the denoiser takes, and back", say)
    return _resized(x, shape)


def resize_purified(pure: Tensor, shape: torch.Size) -> Tensor:
    """Resize purified images to the size and channels of `shape` (B, C, H, W)."""
    size, channels = shape[2:], shape[1]
    if pure.shape[2:] != size:
        pure = F.interpolate(pure, size=tuple(size), mode="bilinear", align_corners=False)
    if pure.shape[1] != channels:
        pure = pure.expand(-1, channels, -1, -1) if channels == 3 else pure.mean(1, keepdim=True)
    return pure.clamp(0, 1)


def refuse_large(x: Tensor, shape: Shape | None, name: str, advice: str) -> None:
    """Refuse an image that would lose most of its detail in the size that the model takes.

    Raises:
        ValueError: It is more than `LARGE` times as high or as wide as that size.
    """
    if shape is not None and max(x.shape[2] / shape[1], x.shape[3] / shape[2]) > LARGE:
        raise ValueError(
            f"{name} is {x.shape[3]} x {x.shape[2]} pixels, and the model takes {shape[2]} x "
            f"{shape[1]}, so little of the image would remain: choose a spec whose model takes "
            f"larger images, or {advice}"
        )


def _load_data(
    table: RawSpec, folder: str | None
) -> tuple[Sequence[str], Shape | None, Dataset | None]:
    """Return a spec's classes, image shape, and data set; empty values if it cannot be loaded.

    Raises:
        SpecError: A folder is given, but the data set cannot be loaded from it.
    """
    try:
        data = specs.build("data", specs.check_data(table.get("data"), folder))
        channels, height, width = data[0][0].shape
    except (SpecError, KeyError, ValueError):
        if folder is not None and "data" in table:
            raise
        return (), None, None
    return data.classes, (channels, height, width), data


def _report_resizing(x: Tensor, shape: Shape | None, what: str, say: Say) -> None:
    if shape is not None and x.shape[1:] != shape:
        before, after = (" x ".join(map(str, s)) for s in (x.shape[1:], shape))
        say(f"images are stretched to {what}: {before} to {after} (channels x height x width)")


def _resized(x: Tensor, shape: Shape | None) -> Tensor:
    if shape is None:
        return x
    if x.shape[1] != shape[0]:
        x = x.mean(1, keepdim=True) if shape[0] == 1 else x.expand(-1, 3, -1, -1)
    if x.shape[2:] != shape[1:]:
        smaller = x.shape[2] > shape[1] or x.shape[3] > shape[2]
        x = F.interpolate(
            x, size=shape[1:], mode="bilinear", align_corners=False, antialias=smaller
        )
    return x.clamp(0, 1)
