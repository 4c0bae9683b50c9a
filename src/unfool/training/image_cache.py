"""A disk cache for images that are computed once from those of a data set.

The name of a cache folder is a hash of the clean images, the models with their weights, the options and
the seed, so a later training run with the same settings reuses it. Each block is written atomically, so
the same command continues after a kill.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from unfool import spec as specs
from unfool.data.subset import hash_images
from unfool.models.weights_hash import weights_hash
from unfool.protocols import Dataset
from unfool.runtime.files import raise_system_error, write_bytes
from unfool.runtime.progress import progress

BLOCK = 64  # images per file, which are made together


class CachedImages:
    """A data set of the images in a cache folder, with their labels.

    Args:
        folder: The folder that `fill_cache` returned.
        size: The number of images.
        classes: The name of each class.
    """

    def __init__(self, folder: Path, size: int, classes: Sequence[str]) -> None:
        self.folder, self.size, self.classes = folder, size, classes

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with _open(_block(self.folder, index // BLOCK)) as block:
            row = index % BLOCK
            image = block.get_slice("images")[row]
            return image.float(), int(block.get_slice("labels")[row])

    def column(self, name: str) -> Tensor:
        """Concatenate the tensors that the blocks hold under `name`, (size, ...)."""
        parts = []
        for number in range(-(-self.size // BLOCK)):
            with _open(_block(self.folder, number)) as block:
                parts.append(block.get_tensor(name))
        return torch.cat(parts)


def fill_cache(
    home: Path,
    data: Dataset,
    indices: Sequence[int],
    size: int,
    make: Callable[[range], Mapping[str, Tensor]],
    models: Sequence[Any],
    options: Mapping[str, Any],
    *,
    doing: str,
    device: str = "cpu",
    quiet: bool = False,
) -> Path:
    """Make those of `size` images that are not on disk yet.

    Args:
        home: Folder that holds one subfolder for each set, with its blocks and `asked.json`.
        data: Clean images with labels.
        indices: The indices in `data` of the images from which the new images are made.
        size: The number of images to make.
        make: Takes a range of image numbers and returns `images` (B, C, H, W), `labels` (B,), and any
            other tensors with one row per image.
        models: The models, purifiers or attacks whose weights the images depend on; modules move to
            `device`, and to the CPU afterwards.
        options: The options, of the spec part that needs the images, on which the images depend.
        doing: The name of the work in the progress display.
        device: Device on which the images are made.
        quiet: Show no progress.

    Returns:
        The folder of this set.
    """
    folder = home / _cache_key(data, indices, options, models)
    numbers = range(-(-size // BLOCK))
    missing = [number for number in numbers if not _block(folder, number).is_file()]
    if not missing:
        return folder
    modules = [model for model in models if isinstance(model, nn.Module)]
    for module in modules:
        module.to(device)
    with progress(doing, len(numbers), len(numbers) - len(missing), quiet) as show:
        for done, number in enumerate(missing, len(numbers) - len(missing) + 1):
            block = make(range(number * BLOCK, min(size, (number + 1) * BLOCK)))
            written = save({name: value.cpu().contiguous() for name, value in block.items()})
            write_bytes(_block(folder, number), written)
            show(done, "")
    settings = {**options, "images": len(indices)}
    write_bytes(folder / "asked.json", (json.dumps(settings, indent=2) + "\n").encode())
    for module in modules:
        module.cpu()  # frees memory for training
    return folder


def _cache_key(
    data: Dataset, indices: Sequence[int], options: Mapping[str, Any], models: Sequence[Any]
) -> str:
    """Hash the clean images, the options, and the weights of the models."""
    digest = hash_images(data, indices)
    digest.update(specs.identity(options).encode() + specs.code_hash(options).encode())
    digest.update(repr(indices).encode())  # an image's index determines its noise
    digest.update(weights_hash(*models).encode())
    return digest.hexdigest()[:16]


def _block(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise_system_error(error)
        raise ValueError(
            f"{path} is damaged or missing: delete it if it is there, and run the command again"
        ) from error
