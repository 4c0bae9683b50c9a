"""Data sets from the Hugging Face hub, through the library `datasets`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfool.data.image_files import resize_and_crop, upright
from unfool.ranges import Count, check_arguments
from unfool.runtime.optional import require
from unfool.spec.menu import hint


class HubImages:
    """A data set of images and labels from a table of `datasets`.

    Args:
        table: A `datasets.Dataset` with a column of images and a column of labels.
        image: The name of the column with images; None takes the only one.
        label: The name of the column with labels; None takes the only one with class names.
        size: Height and width of the images in pixels; an image is resized (bicubic) to just cover
            this size, and its center is cropped. None keeps the images' own sizes.

    Raises:
        ValueError: There is no such column, several columns fit, or a label is not an integer; or
            (when an image is read) it is partly transparent or has more than 8 bits per channel.
    """

    classes: Sequence[str]

    def __init__(
        self,
        table: Any,
        image: str | None = None,
        label: str | None = None,
        size: Count | None = None,
    ) -> None:
        check_arguments(HubImages, locals())
        self.table, self.size = table, size
        self.image = _column(table, "image", image, "Image")
        self.label = _column(table, "label", label, "ClassLabel")
        names = getattr(table.features[self.label], "names", None)
        if names is None:
            numbers = [_class_number(i, number) for i, number in enumerate(table[self.label])]
            names = [str(number) for number in range(max(numbers, default=0) + 1)]
        self.classes = list(names)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.table[index]
        label = _class_number(index, row[self.label])
        if label < 0:
            raise ValueError(f"row {index} has no label ({label}): choose a split with labels")
        try:
            picture = upright(row[self.image])
        except ValueError as error:
            raise ValueError(
                f"the image of row {index} cannot be read ({error}), or leave it out"
            ) from error
        if self.size is not None:
            picture = resize_and_crop(picture, self.size, self.size)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return pixels.float().contiguous() / 255, label

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image, and of all images if `size` is given."""
        channels, height, width = self[0][0].shape
        return channels, height, width


def huggingface(
    path: str,
    split: str = "test",
    config: str | None = None,
    revision: str | None = None,
    image: str | None = None,
    label: str | None = None,
    size: Count | None = None,
    download: bool = False,
) -> HubImages:
    """A data set from the Hugging Face hub, or from a folder that `datasets` can read.

    Args:
        path: `owner/name`, or a folder, either written by `save_to_disk` or with the files of a
            data set.
        split: The split, such as `"test"` or `"validation"`.
        config: The configuration, if the data set has several.
        revision: A commit or tag of the data set, so that later runs get the same data.
        image: The name of the column with images; None takes the only one.
        label: The name of the column with labels; None takes the only one with class names.
        size: Height and width of the images in pixels; None keeps their own sizes.
        download: Download the data set if it is not in the local cache.

    Raises:
        ValueError: `datasets` is not installed or cannot load the data set, or a column is missing
            or ambiguous.
    """
    check_arguments(huggingface, locals())
    datasets = require("datasets", "hub")
    folder = Path(path)
    try:
        if (folder / "dataset_dict.json").is_file():
            tables = datasets.load_from_disk(path)
            if split not in tables:
                raise ValueError(f"there is no split {split!r}; {hint(split, list(tables))}")
            table = tables[split]
        elif (folder / "dataset_info.json").is_file():
            table = datasets.load_from_disk(path)
        else:
            with nullcontext() if download else _offline(datasets):
                table = datasets.load_dataset(path, config, split=split, revision=revision)
    except Exception as error:  # the library raises many kinds of exceptions
        message = " ".join(str(error).split())[:200]
        local = folder.is_dir() or path.count("/") != 1
        advice = "" if download or local else "; to download it, set `download: true`"
        raise ValueError(f"the data set {path!r} cannot be loaded ({message}){advice}") from error
    return HubImages(table, image, label, size)


def _class_number(index: int, label: Any) -> int:
    """Return the label of a row, which must be an integer."""
    if label is None:
        raise ValueError(f"row {index} has no label: choose a split with labels")
    if not isinstance(label, int | np.integer):
        raise ValueError(
            f"row {index} has the label {label!r}, which is not a class number: choose a column of "
            "whole numbers with `label`"
        )
    return int(label)


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Keep `datasets` and `huggingface_hub` off the network; cached files can still be loaded."""
    settings: list[Any] = [datasets.config, import_module("huggingface_hub.constants")]
    values = [setting.HF_HUB_OFFLINE for setting in settings]
    for setting in settings:
        setting.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for setting, value in zip(settings, values, strict=True):
            setting.HF_HUB_OFFLINE = value


def _column(table: Any, option: str, named: str | None, kind: str) -> str:
    features = table.features
    if named is not None:
        if named not in features:
            raise ValueError(f"there is no column {named!r}; {hint(named, list(features))}")
        return named
    fitting = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if len(fitting) != 1:
        raise ValueError(
            f"the data set has {len(fitting)} columns of the type {kind} (of "
            f"{', '.join(features)}): choose one with `{option}`"
        )
    return fitting[0]
