"""Defenses applied to files: pictures and arrays in, purified ones or predictions out."""

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unfool import spec as specs
from unfool.attacks.views import Batched
from unfool.data import image_files
from unfool.data.folder import Folder
from unfool.defenses.purified_classifier import image_shape, majority_class, predict_draws
from unfool.errors import SpecError
from unfool.evaluation.prepare import build_model, build_purifier
from unfool.evaluation.spec import check_model, check_purifier
from unfool.noise import Noise
from unfool.protocols import Dataset, Purifier
from unfool.runtime.device import pick_device
from unfool.runtime.files import raise_system_error, write_bytes
from unfool.spec import RawSpec


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
    """Purify pictures (to PNG, of their own size) and npz files (to npz), one after the other.

    An image of another size than the denoiser's is resized to it and back, which stretches it if its
    sides are in another proportion; one far larger is refused, for little of it would remain. The noise
    of an image depends on the seed and its place among all images given.

    Args:
        files: PNG, JPEG, WebP, BMP or npz files, or folders of them.
        spec: The spec with the denoiser and the purifier.
        changes: Changes to it, `path.to.key=value`.
        out: The folder for what is made; it must not be where the files are.
        seed: Of the noise.
        device: Where to compute.
        batch_size: Images in one call of the model.
        force: Purify images that are far larger than the denoiser's, too.

    Yields:
        The path of each file made.

    Raises:
        SpecError: The spec has no purifier, or something in it is wrong.
        ValueError: A file is no picture, holds values that are no images, or is far too large.
    """
    purifier, place = _purifier(spec, changes, device), 0
    shape = image_shape(purifier)
    for path, target in _targets(files, out).items():
        x, stored = _images(path, shape)
        if not force:
            _refuse_large(path, x, shape)
        noise = Noise.of(seed, range(place, place + len(x))).child("apply", "purify")
        pure = _purified(purifier, x, noise, shape, pick_device(device), batch_size)
        if stored is None:
            image_files.write(target, pure[0])
        else:
            write_bytes(target, _npz(pure, stored))
        place += len(x)
        yield target


def classify_files(
    files: Sequence[Path],
    spec: str,
    changes: Sequence[str],
    draws: int = 8,
    seed: int = 0,
    folder: str | None = None,
    device: str = "auto",
    batch_size: int = 256,
) -> Iterator[str]:
    """Predict the classes of pictures and of npz files, one line per image: file, class, votes.

    Args:
        files: PNG, JPEG, WebP, BMP or npz files, or folders of them.
        spec: The spec with the classifier, and its defense if any.
        changes: Changes to it, `path.to.key=value`.
        draws: Passes that vote.
        seed: Of the noise.
        folder: Where data sets lie: the class names are the data set's, numbers without it; and so is
            the size that pictures get, if no purifier has one. Where the data are a `folder` with a
            `size`, pictures are resized and cut as its own are; else they are stretched, which is told.
        device: Where to compute.
        batch_size: Images in one call of the model.

    Raises:
        SpecError: Something in the spec is wrong.
        ValueError: A file is no picture, or holds values that are no images.
    """
    if draws < 1:
        raise SpecError(f"votes must be 1 or more, not {draws}")
    table, place = specs.load(spec, changes), 0
    model = build_model(check_model(table), pick_device(device))
    names, shape, data = _told_by_data(table, folder)
    shape = image_shape(getattr(model, "purifier", None)) or shape
    if shape is None:
        print(
            "unfool: the size of the classifier's images is not known, so pictures keep theirs: name the "
            "folder of the spec's data by --data",
            file=sys.stderr,
        )
    for path, _ in _list_files(files):
        x = _as_data_set(path, data, shape)
        if x is None:
            x, _ = _images(path, shape)
            _tell_resized(x, shape, "stretched to fit: the image and the model")
            x = _resized(x, shape)
        x = x.to(pick_device(device))
        noise = Noise.of(seed, range(place, place + len(x))).child("apply")
        chosen = predict_draws(Batched(model, batch_size), x, noise, draws)
        winners = majority_class(chosen, int(chosen.max()) + 1)
        for i, (winner, row) in enumerate(zip(winners.tolist(), chosen, strict=True)):
            label = names[winner] if winner < len(names) else str(winner)
            which = f"{path}[{i}]" if len(x) > 1 else str(path)
            counts = torch.bincount(row).sort(descending=True).values.tolist()
            tie = ", undecided" if len(counts) > 1 and counts[0] == counts[1] else ""
            yield f"{which}\t{label}\t{counts[0]} of {draws} votes{tie}"
        place += len(x)


def _purifier(spec: str, changes: Sequence[str], device: str) -> Purifier:
    """The purifier of a spec; the classifier is built only for one that is guided by it."""
    table = specs.load(spec, changes)
    if table.get("purifier") is None:
        raise SpecError(f"the spec {spec} has no purifier: there is nothing to purify with")
    checked, classifier = check_purifier(table), None
    if "classifier" in specs.argument_names(
        "purifier", specs.part("purifier", checked.get("purifier"))
    ):
        classifier = specs.build("classifier", check_model(table)["classifier"])
    return build_purifier(checked, pick_device(device), classifier)


def _told_by_data(
    table: RawSpec, folder: str | None
) -> tuple[Sequence[str], tuple[int, int, int] | None, Dataset | None]:
    """The classes and the size of images of a spec's data set, and the data set, if it can be had.

    Raises:
        SpecError: A folder was named, and it is not there.
    """
    try:
        data = specs.build("data", specs.check_data(table.get("data"), folder))
        channels, height, width = data[0][0].shape
    except (SpecError, KeyError, ValueError):
        if folder is not None and "data" in table:
            raise
        return (), None, None
    return data.classes, (channels, height, width), data


def _as_data_set(
    path: Path, data: Dataset | None, shape: tuple[int, int, int] | None
) -> Tensor | None:
    """A picture (1, C, H, W) as a data set of pictures reads it; None if it cannot, or has no size."""
    if path.suffix.lower() == ".npz" or not isinstance(data, Folder) or data.size is None:
        return None
    x = data.read(path)[None]
    return x if shape is None or x.shape[1:] == shape else None


def _refuse_large(path: Path, x: Tensor, shape: tuple[int, int, int] | None) -> None:
    """Refuse an image of which little would remain in the size that the denoiser takes.

    Raises:
        ValueError: It is more than `LARGE` times as high or wide.
    """
    if shape is not None and max(x.shape[2] / shape[1], x.shape[3] / shape[2]) > LARGE:
        raise ValueError(
            f"{path} is {x.shape[3]} x {x.shape[2]} pixels and the denoiser takes {shape[2]} x "
            f"{shape[1]}: little of it would remain; choose a spec whose denoiser takes larger images, "
            "or add --force"
        )


def _targets(files: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where each file's result goes: a folder keeps its shape below `out`."""
    targets: dict[Path, Path] = {}
    for path, inside in _list_files(files, out):
        target = out / inside.with_suffix(".npz" if path.suffix.lower() == ".npz" else ".png")
        taken = next((p for p, t in targets.items() if t == target), None)
        if taken is not None:
            raise ValueError(f"{taken} and {path} would both become {target}: purify them apart")
        if target.resolve() == path.resolve():
            raise ValueError(f"{path} would be written over: name another folder with --out")
        targets[path] = target
    return targets


def _list_files(files: Sequence[Path], besides: Path | None = None) -> list[tuple[Path, Path]]:
    """The files named, and those in the folders named, each with its place below `files`.

    What lies in the folder `besides` is left out where it is inside one of them.
    """
    found: list[tuple[Path, Path]] = []
    for file in files:
        if file.is_dir():
            inside = sorted(p for p in file.rglob("*") if _taken(p, file))
            if besides is not None and besides.resolve() != file.resolve():
                inside = [p for p in inside if besides.resolve() not in p.resolve().parents]
            if not inside:
                raise ValueError(f"the folder {file} has no pictures ({', '.join(_ENDINGS)})")
            found += [(path, path.relative_to(file)) for path in inside]
        elif not file.is_file():
            raise ValueError(f"there is no file {file}")
        elif file.suffix.lower() not in _ENDINGS:
            raise ValueError(f"{file} is none of {', '.join(_ENDINGS)}")
        else:
            found.append((file, Path(file.name)))
    return found


def _taken(path: Path, folder: Path) -> bool:
    """Whether a file in a folder is taken: none that is hidden, a broken link, or a pipe."""
    if path.suffix.lower() not in _ENDINGS:
        return False
    around = path.relative_to(folder)
    if any(image_files.hidden(part) for part in (around, *around.parents) if part.name):
        return False
    try:
        return path.is_file()
    except (OSError, RuntimeError):  # of a link that leads back to itself
        return False


class Stored(TypedDict):
    """How the images of an npz are stored.

    Attributes:
        arrays: All that is in it.
        key: Which of them the images are.
        last: Whether their channels come last.
        flat: Whether they have no axis of channels.
    """

    arrays: dict[str, np.ndarray]
    key: str
    last: bool
    flat: bool


_ENDINGS = (*image_files.ENDINGS, ".npz")
LARGE = 8  # times the denoiser's height or width


def _images(path: Path, shape: tuple[int, int, int] | None) -> tuple[Tensor, Stored | None]:
    """The images of a file, (B, C, H, W); and for an npz, how they were stored."""
    if path.suffix.lower() != ".npz":
        x, gray = image_files.read(path), shape is not None and shape[0] == 1
        if gray and bool((x != x[:1]).any()):
            print(f"unfool: {path} loses its colors: the model knows gray alone", file=sys.stderr)
        return (image_files.read(path, gray=True) if gray else x)[None], None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # a damaged archive may raise anything
        raise_system_error(error)
        raise ValueError(f"{path} cannot be read as npz ({error or 'it is empty'})") from error
    key = "images" if "images" in arrays else next(iter(arrays), "")
    stored = arrays.get(key)
    number = stored is not None and stored.dtype.kind in "uif"
    if stored is None or stored.ndim not in (3, 4) or not number or not len(stored):
        raise ValueError(f"{path} needs an array `images` of images (N, H, W, C) or (N, C, H, W)")
    x = torch.from_numpy(stored).float() / (255 if stored.dtype == np.uint8 else 1)
    x = x[:, None] if x.ndim == 3 else x
    last = x.shape[1] not in (1, 3) and x.shape[3] in (1, 3)
    x = x.permute(0, 3, 1, 2).contiguous() if last else x
    if x.shape[1] not in (1, 3):
        raise ValueError(f"{path}: images have 1 or 3 channels, these are shaped {stored.shape}")
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(f"{path}: images must be uint8, or numbers of [0, 1] without NaN")
    return x, {"arrays": arrays, "key": key, "last": last, "flat": stored.ndim == 3}


def _purified(
    purifier: Purifier,
    x: Tensor,
    noise: Noise,
    shape: tuple[int, int, int] | None,
    device: str,
    rows: int,
) -> Tensor:
    size, channels = x.shape[2:], x.shape[1]
    _tell_resized(x, shape, "stretched to fit, and back: the image and the denoiser")
    x, parts = _resized(x, shape), []
    with torch.no_grad():
        for first in range(0, len(x), rows):
            which = range(first, min(first + rows, len(x)))
            parts.append(purifier(x[which.start : which.stop].to(device), noise.take(which)).cpu())
    pure = torch.cat(parts)
    if pure.shape[2:] != size:
        pure = F.interpolate(pure, size=tuple(size), mode="bilinear", align_corners=False)
    if pure.shape[1] != channels:
        pure = pure.expand(-1, channels, -1, -1) if channels == 3 else pure.mean(1, keepdim=True)
    return pure.clamp(0, 1)


def _tell_resized(x: Tensor, shape: tuple[int, int, int] | None, what: str) -> None:
    if shape is not None and x.shape[1:] != shape:
        sizes = " and ".join(" x ".join(map(str, s)) for s in (x.shape[1:], shape))
        print(f"unfool: {what} are {sizes}", file=sys.stderr)


def _resized(x: Tensor, shape: tuple[int, int, int] | None) -> Tensor:
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


def _npz(pure: Tensor, stored: Stored) -> bytes:
    array = pure.permute(0, 2, 3, 1) if stored["last"] else pure[:, 0] if stored["flat"] else pure
    arrays, key = stored["arrays"], stored["key"]
    if arrays[key].dtype == np.uint8:
        array = (array * 255).round().byte()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{**arrays, key: array.numpy()})  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()
