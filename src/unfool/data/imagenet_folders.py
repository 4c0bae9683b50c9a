"""ImageNet-1k (Russakovsky et al., 2015) and subsets of its classes, and Tiny-ImageNet."""

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from unfool.data.labeled_files import LabeledFiles, find_folder, image_files_in, indices_listed_in
from unfool.ranges import Count, check_arguments

_CLASSES = 1000
_INDEX = "imagenet_class_index.json"
_WORDS = ("LOC_synset_mapping.txt", "synset_words.txt")
_WNID = re.compile(r"n\d{8}")
_SUBFOLDERS = {
    "val": ("val", "validation", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val", "."),
    "train": ("train", "ILSVRC2012_img_train", "ILSVRC/Data/CLS-LOC/train", "."),
}


def imagenet(
    folder: Path,
    split: Literal["val", "train"] = "val",
    size: Count = 224,
    shorter: Count | None = 256,
    subset: str | None = None,
    labels: Literal["imagenet", "subset"] = "imagenet",
    pictures: Path | None = None,
) -> LabeledFiles:
    """ImageNet-1k: one folder of images per class, named by its WordNet ID.

    A class keeps its ImageNet label, even if only some classes are present. The label comes from
    an index file (`imagenet_class_index.json`, `LOC_synset_mapping.txt` or `synset_words.txt`) in
    `folder` or next to the class folders, or, if all 1000 folders are present, from the
    alphabetical order of their names.

    Args:
        folder: The folder with the class folders (`n01440764`, ...), directly or in `val` or
            `train`.
        split: `"val"`, the 50,000 images on which results are reported, or `"train"`.
        size: Height and width of the images in pixels, cropped from the center.
        shorter: The length to which the shorter side of an image is resized (bicubic) before the
            crop; None makes the image just cover `size`.
        subset: The classes to keep: `"imagenet-30"` (Hendrycks et al., 2019), `"imagenet-100"`
            (Tian et al., 2020), or a text file with a WordNet ID on each line; None keeps all.
        labels: How classes are numbered: `"imagenet"`, 0 to 999, for a classifier with 1000
            classes; or `"subset"`, in the order of the subset, for one that was trained on it.
        pictures: A text file with the name of an image file on each line, to use only these, in
            this order. A random subset needs no list: `evaluation.images` and
            `evaluation.subset_seed` choose it.

    Raises:
        FileNotFoundError: There is no such folder or file, or the folder has no class folders.
        ValueError: A class is missing or not in ImageNet, the labels of the classes are unknown, or
            an option is invalid.
    """
    check_arguments(imagenet, locals())
    folder = Path(folder)
    if labels == "subset" and subset is None:
        raise ValueError("labels: subset needs a list of classes: set `subset`")
    root = find_folder(
        "ImageNet", folder, _SUBFOLDERS[split], lambda subfolder: bool(_wnids(subfolder))
    )
    present = _wnids(root)
    wanted = present if subset is None else _subset(subset)
    if missing := [wnid for wnid in wanted if wnid not in present]:
        raise ValueError(
            f"{root} lacks {len(missing)} of the {len(wanted)} classes of {subset} ({missing[0]}); "
            "complete the folder, or choose another `subset`"
        )
    index = _index(folder, root)
    if index is None and labels == "imagenet" and len(present) != _CLASSES:
        raise ValueError(
            f"{root} has {len(present)} of the 1000 classes, so their numbers are unknown: put "
            f"{_INDEX} into {folder}, or set `subset` and `labels: subset`"
        )
    index = index or {wnid: wnid for wnid in (present if labels == "imagenet" else wanted)}
    if strange := [wnid for wnid in wanted if wnid not in index]:
        raise ValueError(
            f"the class {strange[0]} in {root} is not in the index of ImageNet; remove it"
        )
    order = list(index) if labels == "imagenet" else list(wanted)
    numbers = {wnid: number for number, wnid in enumerate(order)}
    files = [
        (file, numbers[wnid]) for wnid in sorted(wanted) for file in image_files_in(root / wnid)
    ]
    return _labeled_files(files, [index[wnid] for wnid in order], size, shorter, pictures)


def tiny_imagenet(
    folder: Path,
    split: Literal["val", "train"] = "val",
    size: Count = 64,
    pictures: Path | None = None,
) -> LabeledFiles:
    """Tiny-ImageNet: 10,000 validation or 100,000 training images (3, 64, 64) of 200 classes.

    Classes are numbered in the order of their WordNet IDs. The labels of the test images were not
    published.

    Args:
        folder: The folder with `wnids.txt`, `train` and `val`, directly or in `tiny-imagenet-200`;
            `val` has the published layout (`val/images` and `val_annotations.txt`) or a folder for
            each class.
        split: `"val"` or `"train"`.
        size: Height and width of the images in pixels.
        pictures: A text file with the name of an image file on each line, to use only these, in
            this order.

    Raises:
        FileNotFoundError: Files are missing.
        ValueError: A file is damaged or has the wrong format.
    """
    check_arguments(tiny_imagenet, locals())
    root = find_folder(
        "Tiny-ImageNet",
        Path(folder),
        (".", "tiny-imagenet-200", "tiny-imagenet"),
        lambda subfolder: (subfolder / "wnids.txt").is_file() and (subfolder / split).is_dir(),
    )
    wnids = sorted((root / "wnids.txt").read_text("utf-8").split())
    words = dict(_lines(root / "words.txt")) if (root / "words.txt").is_file() else {}
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    annotations = root / split / "val_annotations.txt"
    if split == "val" and annotations.is_file() and (root / "val" / "images").is_dir():
        files = _annotated(annotations, numbers)
    else:
        files = []
        for wnid in wnids:
            class_folder = root / split / wnid
            if not class_folder.is_dir():
                raise FileNotFoundError(
                    f"there is no folder {class_folder}: fetch Tiny-ImageNet again"
                )
            nested = class_folder / "images"
            files += [
                (f, numbers[wnid])
                for f in image_files_in(nested if nested.is_dir() else class_folder)
            ]
    names = [words.get(wnid, wnid).partition(",")[0] for wnid in wnids]
    return _labeled_files(files, names, size, None, pictures)


def _labeled_files(
    files: Sequence[tuple[Path, int]],
    classes: Sequence[str],
    size: int,
    shorter: int | None,
    chosen: Path | None,
) -> LabeledFiles:
    if chosen is not None:
        files = [files[i] for i in indices_listed_in(Path(chosen), [file for file, _ in files])]
    return LabeledFiles([f for f, _ in files], [n for _, n in files], classes, size, shorter)


def _annotated(annotations: Path, numbers: dict[str, int]) -> list[tuple[Path, int]]:
    files = []
    for row in annotations.read_text("utf-8").splitlines():
        name, wnid = (*row.split("\t"), "", "")[:2]
        file = annotations.parent / "images" / name
        if wnid not in numbers or not file.is_file():
            raise ValueError(
                f"{annotations} has the line {row[:60]!r}, which does not name an existing image and a "
                "class of wnids.txt: fetch Tiny-ImageNet again"
            )
        files.append((file, numbers[wnid]))
    return files


def _wnids(folder: Path) -> list[str]:
    """Return the sorted names of the folders in `folder` that are WordNet IDs."""
    return sorted(p.name for p in folder.iterdir() if _WNID.fullmatch(p.name) and p.is_dir())


def _subset(subset: str) -> list[str]:
    lists = json.loads(
        resources.files("unfool.data").joinpath("imagenet_subsets.json").read_text("utf-8")
    )
    if subset in lists:
        return lists[subset]
    if not Path(subset).is_file():
        raise FileNotFoundError(
            f"there is no file {subset}; `subset` is {', '.join(lists)}, or a text file with a WordNet "
            "ID on each line"
        )
    wnids = Path(subset).read_text("utf-8").split()
    if wrong := [word for word in wnids if not _WNID.fullmatch(word)]:
        raise ValueError(f"{subset} has {wrong[0]!r}, which is not a WordNet ID such as n01440764")
    if not wnids or len(set(wnids)) < len(wnids):
        raise ValueError(f"{subset} must name at least one class, and each once")
    return wnids


def _index(*folders: Path) -> dict[str, str] | None:
    """Return the class names by WordNet ID, in ImageNet's order; None without an index file."""
    for folder in folders:
        if (path := folder / _INDEX).is_file():
            try:
                table = json.loads(path.read_text("utf-8"))
                index = {
                    str(wnid): str(name) for _, (wnid, name) in sorted(table.items(), key=_number)
                }
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path} is not an index of ImageNet ({error}); fetch it again"
                ) from error
            return _complete_index(path, index)
        for path in (folder / name for name in _WORDS):
            if path.is_file():
                index = {wnid: names.partition(",")[0] for wnid, names in _lines(path)}
                return _complete_index(path, dict(sorted(index.items())))
    return None


def _complete_index(path: Path, index: dict[str, str]) -> dict[str, str]:
    if len(index) != _CLASSES or not all(map(_WNID.fullmatch, index)):
        raise ValueError(f"{path} must list 1000 classes, and lists {len(index)}: fetch it again")
    return index


def _number(item: tuple[str, object]) -> int:
    return int(item[0])


def _lines(path: Path) -> list[tuple[str, str]]:
    """Split each line into its first word and the rest (the word again if nothing follows it)."""
    rows = (line.split(maxsplit=1) for line in path.read_text("utf-8").splitlines() if line.strip())
    return [(row[0], row[1] if len(row) > 1 else row[0]) for row in rows]
