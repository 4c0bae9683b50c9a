"""Applies defenses to files: image files and arrays in, purified images or predictions out."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from unfool import spec as specs
from unfool.api.apply import (
    array_to_images,
    images_to_array,
    load_defended,
    noise_to_classify,
    noise_to_purify,
    read_image,
    read_image_for_model,
    refuse_large,
    resize_for_denoiser,
    resize_for_model,
    resize_purified,
    tally,
)
from unfool.api.sheets import classified_rows, purified_rows
from unfool.attacks.views import Batched
from unfool.data import image_files
from unfool.defenses.purified_classifier import image_shape, predict_draws
from unfool.errors import SpecError
from unfool.evaluation.prepare import build_purifier
from unfool.evaluation.spec import check_model, check_purifier
from unfool.noise import Noise
from unfool.protocols import Purifier
from unfool.report.sheet import MAX_IMAGES, SheetRow, write_sheet
from unfool.runtime.device import pick_device
from unfool.runtime.files import npz_bytes, raise_system_error, write_bytes
from unfool.runtime.provenance import command_line

SHEET = "sheet.html"
PURIFIED = (
    "Each image as given, with the purifier's noise added, and purified. The last column shows what "
    "purification changed, multiplied by the factor in its heading; gray means no change."
)
CLASSIFIED = (
    "Each image as the model sees it, and purified with the first draw of the defense's noise. "
    "Below the image stands the answer without the defense, and below the purified image the "
    "majority vote. The last column shows what purification changed, multiplied by the factor in its "
    "heading; gray means no change."
)


def purify_files(
    files: Sequence[Path],
    spec: str,
    changes: Sequence[str],
    out: Path,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 64,
    force: bool = False,
) -> Iterator[Path]:
    """Purify image files (to PNG, at their own size) and npz files (to npz), one file at a time.

    An image whose size differs from the denoiser's is resized to it and back, which stretches the
    image if the aspect ratios differ. A far larger image is refused, because little of it would
    remain. The noise of an image depends on the seed and on its place among all images. The first
    images are also shown on a sheet: before, noised, purified, and the difference.

    Args:
        files: PNG, JPEG, WebP, BMP or npz files, or folders of them.
        spec: The spec with the denoiser and the purifier.
        changes: Changes to the spec, `path.to.key=value`.
        out: The output folder; it must not be the folder of the files.
        seed: Seed of the noise.
        device: Where to compute.
        batch_size: Most images in one call of the model.
        force: Also purify images that are far larger than the denoiser's.

    Yields:
        The path of each written file, the sheet last.

    Raises:
        SpecError: The spec has no purifier, or something in it is wrong.
        ValueError: A file is not an image file, contains no valid images, is far too large, or
            would be overwritten.
    """
    purifier, place = _purifier(spec, changes, device), 0
    shape, rows = image_shape(purifier), list[SheetRow]()
    for path, target in _targets(files, out).items():
        npz = path.suffix.lower() == ".npz"
        x, stored = _open_npz(path) if npz else (read_image(path, str(path), shape, _say), None)
        if not force:
            refuse_large(x, shape, str(path), "add --force")
        noise = noise_to_purify(seed, place, len(x))
        fitting, where = resize_for_denoiser(x, shape, _say), pick_device(device)
        pure = _purified(purifier, fitting, noise, where, batch_size, x.shape)
        few = range(max(0, min(MAX_IMAGES - len(rows), len(x))))
        if few:
            given, names = fitting[: len(few)].to(where), _names(path, len(x))[: len(few)]
            rows += purified_rows(names, x, purifier, pure, given, noise.take(few))
        if stored is None:
            image_files.write(target, pure[0])
        else:
            write_bytes(target, _npz(pure, stored))
        place += len(x)
        yield target
    yield write_sheet(out / SHEET, rows, "Purified images", PURIFIED, command_line())


def classify_files(
    files: Sequence[Path],
    spec: str,
    changes: Sequence[str],
    draws: int = 8,
    seed: int = 0,
    folder: str | None = None,
    device: str = "auto",
    batch_size: int = 256,
    out: Path | None = None,
    force: bool = False,
) -> Iterator[str]:
    """Classify the images of files, and yield a line for each: file, class, votes.

    Args:
        files: PNG, JPEG, WebP, BMP or npz files, or folders of them.
        spec: The spec with the classifier, and its defense if any.
        changes: Changes to the spec, `path.to.key=value`.
        draws: Number of draws that vote on each image.
        seed: Seed of the noise.
        folder: The folder with the data sets. The data set provides the class names (without it,
            classes are numbers) and, if no purifier does, the image size. If the data are a
            `folder` with a `size`, image files are resized and cropped like its images; otherwise
            they are stretched, with a message.
        device: Where to compute.
        batch_size: Most images in one call of the model.
        out: The folder for a sheet of the first images; None writes no sheet.
        force: Also classify images that are far larger than the model's.

    Raises:
        SpecError: Something in the spec is wrong.
        ValueError: A file is not an image file, contains no valid images, or is far too large.
    """
    if draws < 1:
        raise SpecError(f"votes must be 1 or more, not {draws}")
    place, where = 0, pick_device(device)
    table = specs.load(spec, changes)
    specs.refuse_unread_folder(table, folder)
    loaded = load_defended(table, folder, where)
    rows = list[SheetRow]()
    advice = None if force else "add --force"
    if loaded.shape is None:
        _say(
            "the image size of the classifier is not known, so images keep their sizes: name the "
            "folder of the spec's data by --data"
        )
    for path, _ in _list_files(files):
        if path.suffix.lower() == ".npz":
            x = _open_npz(path)[0]
            if advice:
                refuse_large(x, loaded.shape, str(path), advice)
            x = resize_for_model(x, loaded.shape, _say)
        else:
            x = read_image_for_model(loaded, path, str(path), _say, advice)
        noise = noise_to_classify(seed, place, len(x))
        chosen = predict_draws(Batched(loaded.model, batch_size), x.to(where), noise, draws)
        names, votes = _names(path, len(x)), tally(chosen)
        for which, found in zip(names, votes, strict=True):
            tie = ", undecided" if found.undecided else ""
            yield f"{which}\t{loaded.label(found.winner)}\t{found.votes} of {draws} votes{tie}"
        few = range(max(0, min(MAX_IMAGES - len(rows), len(x)))) if out else range(0)
        if few:
            first = noise.take(few).child("vote", 0)
            given, won = x[: len(few)].to(where), [loaded.label(each.winner) for each in votes]
            classes = [loaded.label(i) for i in range(len(loaded.classes))]
            rows += classified_rows(names[: len(few)], loaded.model, given, first, classes, won)
        place += len(x)
    if out:
        sheet = write_sheet(out / SHEET, rows, "Classified images", CLASSIFIED, command_line())
        _say(f"sheet: {sheet}")


def _names(path: Path, count: int) -> list[str]:
    """Return a name for each image of a file."""
    return [f"{path}[{i}]" for i in range(count)] if count > 1 else [str(path)]


def _purifier(spec: str, changes: Sequence[str], device: str) -> Purifier:
    """Build the purifier of a spec, and the classifier only if it guides the purifier."""
    table = specs.load(spec, changes)
    if table.get("purifier") is None:
        raise SpecError(f"the spec {spec} has no purifier to purify with: name a spec that has one")
    checked, classifier = check_purifier(table), None
    if "classifier" in specs.argument_names(
        "purifier", specs.part("purifier", checked.get("purifier"))
    ):
        classifier = specs.build("classifier", check_model(table)["classifier"])
    return build_purifier(checked, pick_device(device), classifier)


def _targets(files: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Return the output path of each file; a folder keeps its structure below `out`."""
    targets: dict[Path, Path] = {}
    for path, inside in _list_files(files, out):
        target = out / inside.with_suffix(".npz" if path.suffix.lower() == ".npz" else ".png")
        taken = next((p for p, t in targets.items() if t == target), None)
        if taken is not None:
            raise ValueError(
                f"{taken} and {path} would both become {target}: purify them in two commands with "
                "different --out"
            )
        if target.resolve() == path.resolve():
            raise ValueError(f"{path} would be overwritten: name another folder with --out")
        targets[path] = target
    return targets


def _list_files(files: Sequence[Path], besides: Path | None = None) -> list[tuple[Path, Path]]:
    """List the given files and the files in the given folders, each with its relative path.

    If the folder `besides` is inside a given folder, its files are left out.
    """
    found: list[tuple[Path, Path]] = []
    for file in files:
        if file.is_dir():
            inside = sorted(p for p in file.rglob("*") if _taken(p, file))
            if besides is not None and besides.resolve() != file.resolve():
                inside = [p for p in inside if besides.resolve() not in p.resolve().parents]
            if not inside:
                raise ValueError(
                    f"the folder {file} holds no images ({', '.join(_ENDINGS)}): name a folder "
                    "that does"
                )
            found += [(path, path.relative_to(file)) for path in inside]
        elif not file.is_file():
            raise ValueError(f"there is no file {file}: name an image file or a folder")
        elif file.suffix.lower() not in _ENDINGS:
            raise ValueError(
                f"{file} is not an image file: name one that ends in {', '.join(_ENDINGS)}"
            )
        else:
            found.append((file, Path(file.name)))
    return found


def _taken(path: Path, folder: Path) -> bool:
    """Return whether to use a folder's file: image or npz, not hidden, no broken link or pipe."""
    if path.suffix.lower() not in _ENDINGS:
        return False
    around = path.relative_to(folder)
    if any(image_files.hidden(part) for part in (around, *around.parents) if part.name):
        return False
    try:
        return path.is_file()
    except (OSError, RuntimeError):  # a link that leads back to itself
        return False


class Stored(TypedDict):
    """How the images of an npz file are stored.

    Attributes:
        arrays: All arrays of the file.
        key: The name of the array with the images.
        last: Whether the channels come last.
    """

    arrays: dict[str, np.ndarray]
    key: str
    last: bool


_ENDINGS = (*image_files.ENDINGS, ".npz")


def _open_npz(path: Path) -> tuple[Tensor, Stored]:
    """Read the images (B, C, H, W) of an npz file, and how they are stored."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # a damaged archive may raise anything
        raise_system_error(error)
        raise ValueError(f"{path} cannot be read as npz ({error or 'it is empty'})") from error
    key = "images" if "images" in arrays else next(iter(arrays), "")
    x, last = array_to_images(arrays.get(key), str(path))
    return x, {"arrays": arrays, "key": key, "last": last}


@torch.no_grad()
def _purified(
    purifier: Purifier, x: Tensor, noise: Noise, device: str, rows: int, shape: torch.Size
) -> Tensor:
    """Purify images that fit the denoiser, and return them in the given shape."""
    parts = []
    for first in range(0, len(x), rows):
        which = range(first, min(first + rows, len(x)))
        images = x[which.start : which.stop].to(device)
        parts.append(purifier(images, noise.take(which)).cpu())
    return resize_purified(torch.cat(parts), shape)


def _say(what: str) -> None:
    print(f"unfool: {what}", file=sys.stderr)


def _npz(pure: Tensor, stored: Stored) -> bytes:
    arrays, key = stored["arrays"], stored["key"]
    return npz_bytes({**arrays, key: images_to_array(pure, arrays[key], stored["last"])})
