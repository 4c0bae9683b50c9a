"""Image files with known labels, and text files that list which of them to use."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unfool.data.image_files import ENDINGS, decode, resize_and_crop


class LabeledFiles:
    """A data set of image files with labels; a file is read when its image is accessed.

    Args:
        files: The files.
        labels: The class of each file, from 0 to `len(classes) - 1`.
        classes: The name of each class.
        size: Height and width of the images in pixels, cropped from the center.
        shorter: The length, at least `size`, to which the shorter side of an image is resized
            (bicubic) before the crop; None makes the image just cover the crop.

    Raises:
        ValueError: There are no files, `size` is below 1, `shorter` is below `size`, or (when an
            image is read) the file is damaged.
    """

    classes: Sequence[str]

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int],
        classes: Sequence[str],
        size: int,
        shorter: int | None = None,
    ) -> None:
        if not files:
            raise ValueError("the list of image files is empty")
        if size < 1 or (shorter is not None and shorter < size):
            raise ValueError(
                "size must be 1 or more, and at most the shorter side of the resized images "
                f"({shorter}), not {size}"
            )
        self.files, self.labels, self.classes = list(files), list(labels), classes
        self.size, self.shorter = size, shorter

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = resize_and_crop(decode(self.files[index]), self.size, self.size, self.shorter)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return pixels.float().contiguous() / 255, self.labels[index]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return 3, self.size, self.size


def image_files_in(folder: Path) -> list[Path]:
    """Return the image files directly in a folder by name; numeric names come last, by value."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and p.is_file())
    return sorted((p for p in files if not p.name.startswith(".")), key=_order)


def indices_listed_in(path: Path, files: Sequence[Path]) -> list[int]:
    """Return the indices in `files` of the images that a text file lists, in its order.

    Args:
        path: The text file; each line is a file name, or the end of a path (`n01440764/a.JPEG`).
        files: The files to choose from.

    Raises:
        FileNotFoundError: There is no such text file.
        ValueError: The text file is empty, or a line fits no file or several.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}: name a text file with one image file per line"
        )
    names = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path} names no image: write one file name on each line")
    by_name: dict[str, list[int]] = {}
    for i, file in enumerate(files):
        by_name.setdefault(file.name, []).append(i)
    indices = []
    for name in names:
        end = tuple(Path(name).parts)
        matches = [i for i in by_name.get(end[-1], ()) if files[i].parts[-len(end) :] == end]
        if len(matches) != 1:
            what = "is not there" if not matches else f"is the name of {len(matches)} images"
            raise ValueError(f"{path}: the image {name!r} {what}: check the list and the folder")
        indices += matches
    return indices


def find_folder(
    dataset: str, folder: Path, subfolders: Sequence[str], accepts: Callable[[Path], bool]
) -> Path:
    """Return the first of `subfolders` for which `accepts` is true; `"."` is the folder itself.

    Raises:
        FileNotFoundError: `accepts` is true for no sub-folder.
    """
    for name in subfolders:
        if (folder / name).is_dir() and accepts(folder / name):
            return folder / name
    searched = ", ".join(name for name in subfolders if name != ".")
    raise FileNotFoundError(
        f"{dataset} is not in {folder}: looked there and in {searched}: name its folder with --data "
        "FOLDER or UNFOOL_DATA"
    )


def _order(file: Path) -> tuple[int, str]:
    return (int(file.stem) if file.stem.isascii() and file.stem.isdigit() else -1), file.name
