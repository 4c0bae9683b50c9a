"""Images in a folder, with a sub-folder for each class.

Images are sorted by the name of their folder, then by file name, so an index means the same image
on every machine.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from unfool.data.image_files import ENDINGS, decode, hidden, is_image_file, resize_and_crop
from unfool.ranges import Count


class Folder:
    """A data set of images in a folder, which are read when they are needed.

    The files are in one sub-folder per class (`folder/class/image.png`), or, if there are no
    sub-folders, in the folder itself. Every sub-folder must hold images, because a missing class
    would shift the labels of all later ones. Hidden files and folders and `__MACOSX` are ignored. A
    message on stderr counts what else is ignored (other endings, broken links, images outside the
    class folders), and warns of classes named by numbers whose alphabetical order (1, 10, 2)
    differs from their numerical order.

    Args:
        folder: The folder; .png, .jpg, .jpeg, .webp, and .bmp files are read.
        size: Height and width in pixels, or one number if they are equal; an image is resized
            (bicubic) to just cover this size, and its center is cropped. None keeps the images' own
            sizes, which must then be equal within a batch.
        gray: Return images with one channel instead of three.
        label: The class of an image: `"folder"` takes the name of its folder, `"name"` the part of
            its file name after the first underscore (the whole name if there is none).

    Attributes:
        classes: The names of the classes, in alphabetical order.
        files: The files, in the order of their indices.

    Raises:
        FileNotFoundError: There is no such folder, or it or one of its sub-folders has no images.
        ValueError: `size` is not positive, `label` is unknown, a class name is not UTF-8, or (when
            an image is read) the file is damaged.
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
            raise ValueError(f"label must be 'folder' or 'name', not {label!r}")
        self.gray = gray
        self.files = _image_files(Path(folder))
        names = [
            p.parent.absolute().name if label == "folder" else _label_in_name(p) for p in self.files
        ]
        self.classes = sorted(set(names))
        for name in self.classes:
            if name.encode(errors="replace").decode() != name:
                raise ValueError(
                    f"the name of the class {name!r} in {folder} is not UTF-8, so no report could "
                    "show it: rename the folder or file"
                )
        self.labels = [self.classes.index(name) for name in names]
        _warn_if_order_differs(Path(folder), self.classes)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read(self.files[index]), self.labels[index]

    def read(self, file: Path | BinaryIO, name: str = "") -> Tensor:
        """Read any image file as this data set does, and return an image (C, H, W) in [0, 1].

        Args:
            file: A path, or an open file.
            name: The name of an open file in error messages.

        Raises:
            ValueError: The file is not an image, or is damaged.
        """
        picture = decode(file, self.gray, name)
        pixels = np.array(picture if self.size is None else resize_and_crop(picture, *self.size))
        image = torch.from_numpy(pixels)
        image = image[None] if self.gray else image.permute(2, 0, 1)
        return image.float().contiguous() / 255

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image, and of all images if `size` is given."""
        channels, height, width = self[0][0].shape
        return channels, height, width


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: name a folder of images with --data FOLDER or "
            "UNFOOL_DATA"
        )
    class_folders = sorted((p for p in folder.iterdir() if p.is_dir() and not hidden(p)), key=_name)
    empty = [class_folder for class_folder in class_folders if not _directly_in(class_folder)]
    if empty and len(empty) < len(class_folders):
        others = _ignored_in(empty[0])
        holds = f"holds only {_count_by_kind(others)}" if others else "is empty"
        raise FileNotFoundError(
            f"the sub-folder {empty[0]} of {folder} {holds}, so its class would be dropped and the "
            f"labels of all later classes would shift: put images ({', '.join(ENDINGS)}) into it, "
            "or remove it"
        )
    images = [p for class_folder in class_folders for p in _directly_in(class_folder)]
    ignored = [
        p
        for class_folder in class_folders
        for p in (*_ignored_in(class_folder), *_nested_images(class_folder))
    ]
    ignored += [*_ignored_in(folder), *_directly_in(folder)] if images else _ignored_in(folder)
    images = images or _directly_in(folder)
    if not images:
        raise FileNotFoundError(
            f"there are no images ({', '.join(ENDINGS)}) in {folder} or its sub-folders"
            + (f", only {_count_by_kind(ignored)}" if ignored else "")
            + "; name a folder of images with --data FOLDER or UNFOOL_DATA"
        )
    if ignored:
        print(f"unfool: {folder}: left out {_count_by_kind(ignored)}", file=sys.stderr)
    return images


def _directly_in(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, sorted by name."""
    return sorted((p for p in folder.iterdir() if is_image_file(p)), key=_name)


def _ignored_in(folder: Path) -> list[Path]:
    """Return the visible files directly in a folder that are not read as images."""
    return [p for p in folder.iterdir() if not (hidden(p) or p.is_dir() or is_image_file(p))]


def _nested_images(folder: Path) -> list[Path]:
    """Return the image files in the sub-folders of a class folder, at any depth."""
    deeper = (p for p in folder.iterdir() if p.is_dir() and not hidden(p))
    return [image for sub in deeper for image in (*_directly_in(sub), *_nested_images(sub))]


def _count_by_kind(files: Sequence[Path]) -> str:
    """Count files by kind, as in "3 .tif, 1 broken link(s)"."""
    counts: dict[str, int] = {}
    for file in files:
        broken = file.is_symlink() and not file.exists()
        kind = "broken link(s)" if broken else file.suffix.lower() or "file(s) without an ending"
        kind = f"{kind} in other places" if not broken and kind in ENDINGS else kind
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def _warn_if_order_differs(folder: Path, classes: Sequence[str]) -> None:
    """Warn if classes are named by numbers and their alphabetical and numerical orders differ."""
    if all(name.isdecimal() for name in classes) and sorted(classes, key=int) != list(classes):
        shown = ", ".join(classes[:4])
        print(
            f"unfool: {folder}: classes are in alphabetical order ({shown}, ...), so their labels "
            "differ from the numbers in their names; if your model expects numeric order, rename "
            "the folders 00, 01, ...",
            file=sys.stderr,
        )


def _name(path: Path) -> str:
    return path.name


def _label_in_name(file: Path) -> str:
    return file.stem.partition("_")[2] or file.stem
