"""CIFAR-10-C (Hendrycks and Dietterich, 2019): the published corrupted test images of CIFAR-10."""

from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import torch
from pydantic import Field

from unfool.data.arrays import Arrays
from unfool.data.cifar import CLASSES
from unfool.data.download import find_files
from unfool.ranges import check_arguments

Kind = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
SEVERITIES = 5
Severity = Annotated[int, Field(ge=1, le=SEVERITIES)]
Extra = Literal["gaussian_blur", "saturate", "spatter", "speckle_noise"]

_IMAGES = 10_000  # per severity
_SUBFOLDERS = (".", "CIFAR-10-C", "cifar10-c")
_WHERE = "https://zenodo.org/records/2535967"


def cifar10_c(folder: Path, kind: Kind | Extra, severity: Severity = 3) -> Arrays:
    """CIFAR-10-C: 10,000 images (3, 32, 32) of ten classes, with one corruption at one severity.

    Image i is the corrupted test image i of CIFAR-10.

    Args:
        folder: The folder with `KIND.npy` and `labels.npy`, directly or in `CIFAR-10-C`.
        kind: One of the 15 standard corruptions or the 4 extra ones.
        severity: The strength of the corruption, from 1 to 5.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: An option is out of range, or a file is damaged or has the wrong contents.
    """
    check_arguments(cifar10_c, locals())
    try:
        images, labels = find_files(
            "CIFAR-10-C", Path(folder), _SUBFOLDERS, [[f"{kind}.npy", "labels.npy"]]
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"CIFAR-10-C: {kind}.npy and labels.npy are not in {folder}, nor in a folder CIFAR-10-C "
            f"there; fetch CIFAR-10-C.tar from {_WHERE}, unpack it, and name its folder with --data"
        ) from error
    part = slice((severity - 1) * _IMAGES, severity * _IMAGES)
    pixels = np.array(_read(images, (SEVERITIES * _IMAGES, 32, 32, 3))[part])
    numbers = np.array(_read(labels, (SEVERITIES * _IMAGES,))[part]).astype(np.int64)
    try:
        x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        return Arrays(x, torch.from_numpy(numbers), CLASSES)
    except ValueError as error:
        raise ValueError(f"{labels}: {error}") from error


def _read(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} cannot be read ({error}); fetch it again") from error
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(
            f"{file} is {array.dtype} {array.shape}, not uint8 {shape}; fetch it again"
        )
    return array
