"""Stored adversarial images: arrays or image files, which are read again as an attack."""

import hashlib
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from unfool.argument_checks import checked_attack
from unfool.data import fetch, image_files
from unfool.data.arrays import channels_first, check_images, read
from unfool.noise import Noise
from unfool.protocols import Classifier, Dataset
from unfool.runtime.files import raise_system_error
from unfool.threat import Threat

NAMES = ("images", "x_adv", "indices", "labels", "clean_blake2b")


class PrecomputedAttack:
    """Adversarial images from a file, made by unfool or elsewhere. The model is never called.

    Args:
        path: A file that `unfool attack` saved; any .npz or .safetensors file with `images` or
            `x_adv` (N, C, H, W) or (N, H, W, C), uint8 or in [0, 1]; or a folder of image files,
            sorted by name. Their positions in the data set are `indices` (N,) in the file; without
            these, images must be in the order of the run's images. `labels` and `clean_blake2b`
            (`digests`) are compared with the data set if the file has them. Equal images of the
            data set with the same label all get the adversarial image of the last of them.

    Raises:
        ValueError: The file or folder cannot be read, or has no images.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._of: dict[tuple[bytes, int], Tensor] = {}
        if self.path.is_dir():
            endings = image_files.ENDINGS
            files = (p for p in self.path.iterdir() if image_files.is_image_file(p))
            self.image_files = sorted(files, key=lambda p: p.name)
            if not self.image_files:
                raise ValueError(
                    f"the folder {path} holds no images ({', '.join(endings)}): name a folder that "
                    "does, or the file of one attack in it"
                )
            return
        self.image_files, self.arrays = [], _arrays(self.path)

    def over(self, data: Dataset, indices: Sequence[int]) -> "PrecomputedAttack":
        """Return this attack for the images at `indices` of `data`.

        Raises:
            ValueError: The file lacks some of these images, has one several times, or was made from
                others.
        """
        x_adv, stored_indices = self._images(len(data[indices[0]][0]) == 1), self._array("indices")
        if stored_indices is None and len(x_adv) != len(indices):
            raise ValueError(
                f"{self.path} has {len(x_adv)} images, and the run has {len(indices)}: without an "
                "array `indices` (a folder has none), the file must hold exactly the images of the "
                "run, in the same order"
            )
        order = list(indices) if stored_indices is None else [int(i) for i in stored_indices]
        row = {index: i for i, index in enumerate(order)}
        if repeated := [index for i, index in enumerate(order) if row[index] != i]:
            raise ValueError(
                f"{self.path} has image {repeated[0]} of the data set several times: keep one "
                "adversarial image of each image"
            )
        if missing := [index for index in indices if index not in row]:
            raise ValueError(
                f"{self.path} lacks {len(missing)} of the run's {len(indices)} images (the first: "
                f"{missing[0]}): make them with the same evaluation.images and subset_seed"
            )
        labels, clean = self._array("labels"), self._array("clean_blake2b")
        bound = copy(self)
        bound._of = {}
        for index in indices:
            x, y = fetch(data, [index])
            i, clean_digest = row[index], digest(x[0])
            has_other_label = labels is not None and int(labels[i]) != int(y)
            if has_other_label or (clean is not None and clean[i].tobytes() != clean_digest):
                raise ValueError(
                    f"{self.path} was made from other images: its image {index} does not belong to "
                    f"image {index} of this data set, or has another label; name images of this "
                    "data set"
                )
            bound._of[clean_digest, int(y)] = x_adv[i]
        return bound

    @property
    def digest(self) -> str:
        """A hash of the adversarial and clean images that `over` selected."""
        hashed = hashlib.sha256()
        for (clean, _), x_adv in self._of.items():
            hashed.update(clean + x_adv.numpy().tobytes())
        return hashed.hexdigest()

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """The adversarial images that were made from `x`.

        Raises:
            ValueError: `over` was not called, or not with all images of `x`.
        """
        try:
            x_adv = [self._of[digest(image), int(label)] for image, label in zip(x, y, strict=True)]
        except KeyError:
            raise ValueError(
                f"{self.path} has no adversarial image for one of the images: say which images it "
                "covers with `over(data, indices)`"
            ) from None
        return torch.stack(x_adv).to(x)

    def _array(self, name: str) -> np.ndarray | None:
        """Return an array of the file with one entry per image, or None if the file lacks it."""
        array = None if self.image_files else self.arrays.get(name)
        if array is None:
            return None
        if len(array) != self._size():
            raise ValueError(f"{self.path} has {self._size()} images but {len(array)} `{name}`")
        shape = (self._size(), 16) if name == "clean_blake2b" else (self._size(),)
        if array.shape != shape:
            raise ValueError(
                f"{self.path}: `{name}` must be of the shape {shape}, not {array.shape}"
            )
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{self.path}: `{name}` must be whole numbers, not {array.dtype}")
        return array

    def _size(self) -> int:
        return len(self.arrays["images"])

    def _images(self, gray: bool) -> Tensor:
        if self.image_files:
            images = [image_files.read(picture, gray) for picture in self.image_files]
            if len({picture.shape for picture in images}) > 1:
                raise ValueError(
                    f"the images in {self.path} differ in size: all must have the size of the data "
                    "set's images"
                )
            return torch.stack(images)
        try:
            check_images(x_adv := channels_first(self.arrays["images"]).contiguous())
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        return x_adv.float() / 255 if x_adv.dtype == torch.uint8 else x_adv


def digest(image: Tensor) -> bytes:
    """Return 16 bytes that identify an image (C, H, W) in float32."""
    content = np.ascontiguousarray(image.detach().cpu().numpy(), dtype="<f4").tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def digests(images: Tensor) -> np.ndarray:
    """The digests of images (N, C, H, W), shape (N, 16), uint8."""
    return np.stack([np.frombuffer(digest(image), dtype=np.uint8) for image in images])


def round_toward_clean(x: Tensor, x_adv: Tensor) -> Tensor:
    """Round `x_adv` to 8 bits (multiples of 1/255), each value toward that of `x`.

    Where `x` is itself a multiple of 1/255, no value moves farther away from it.
    """
    level = x_adv.double() * 255
    tolerance = 1e-4  # a value this close to a level counts as that level
    down, up = (level + tolerance).floor(), (level - tolerance).ceil()
    rounded = torch.where(x_adv > x, down, torch.where(x_adv < x, up, level.round()))
    return (rounded / 255).clamp(0, 1).to(x_adv)


def _arrays(path: Path) -> Mapping[str, np.ndarray]:
    if path.suffix.lower() != ".safetensors":
        arrays = read(path, NAMES)
    elif not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}: name a file or folder of adversarial images"
        )
    else:
        try:
            arrays = load_file(path)
        except (OSError, SafetensorError) as error:
            raise_system_error(error)
            raise ValueError(f"{path} cannot be read as safetensors ({error})") from error
    if "images" not in arrays and "x_adv" not in arrays:
        raise ValueError(
            f"{path} has neither an array `images` nor `x_adv`: save the adversarial images under "
            "one of these names"
        )
    return {**arrays, "images": arrays.get("images", arrays.get("x_adv"))}  # pyright: ignore
