"""Pictures in a folder, with a sub-folder for each class.

Pictures are numbered by the name of their folder, then their own, so that a number means the same
picture on every machine.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unfool.data.image_files import ENDINGS, cover, decode
from unfool.ranges import Count


class Folder:
    """Pictures, read when they are asked for.

    They lie in sub-folders (`folder/class/picture.png`), or, where no sub-folder holds any, in the
    folder itself. Pictures beside such sub-folders, or deeper, are left out.

    Args:
        folder: Where they lie; .png, .jpg, .jpeg, .webp and .bmp are read.
        size: Height and width, one number if they are equal: a picture is resized (bicubic) until
            it just covers them, and its center is cut out. None leaves pictures as they are, which
            must then be of one size to share a batch.
        gray: Give one channel instead of three.
        label: What a picture's class is: `"folder"`, the name of the folder it lies in; or
            `"name"`, its own name after the first underscore (all of it if there is none).

    Attributes:
        classes: The names of the classes, in alphabetical order.
        files: The files, in the order of their numbers.

    Raises:
        FileNotFoundError: There is no such folder, or no picture in it.
        ValueError: `size` is not positive; when a picture is read, that it is damaged.
    """

    classes: Sequence[str]

    def __init__(
        self,
        folder: Path,
        *,
        size: Count | tuple[Count, Count] | None = None,
        gray: bool = False,
        label: Literal["folder", "name"] = "folder",
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else size
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be 1 or more, not {size}")
        if label not in ("folder", "name"):
            raise ValueError(f"label is 'folder' or 'name', not {label!r}")
        self.gray = gray
        self.files = _image_files(Path(folder))
        names = [p.parent.absolute().name if label == "folder" else _word(p) for p in self.files]
        self.classes = sorted(set(names))
        self.labels = [self.classes.index(name) for name in names]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = torch.from_numpy(self._read(self.files[index]))
        image = pixels[None] if self.gray else pixels.permute(2, 0, 1)
        return image.float().contiguous() / 255, self.labels[index]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the first picture, and with a `size`, of all."""
        channels, height, width = self[0][0].shape
        return channels, height, width

    def _read(self, file: Path) -> np.ndarray:
        image = decode(file, self.gray)
        return np.array(image if self.size is None else cover(image, *self.size))


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}; name a folder of pictures with --data FOLDER or "
            "UNFOOL_DATA"
        )
    inside = sorted((p for p in folder.iterdir() if p.is_dir()), key=lambda p: p.name)
    found = [p for sub in inside for p in _directly_in(sub)] or _directly_in(folder)
    if not found:
        raise FileNotFoundError(
            f"there are no pictures ({', '.join(ENDINGS)}) in {folder} or its sub-folders; name "
            "a folder of pictures with --data FOLDER or UNFOOL_DATA"
        )
    return found


def _directly_in(folder: Path) -> list[Path]:
    files = (p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and p.is_file())
    return sorted((p for p in files if not p.name.startswith(".")), key=lambda p: p.name)


def _word(file: Path) -> str:
    return file.stem.partition("_")[2] or file.stem
