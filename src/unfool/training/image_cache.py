"""Images made from those of a data set, once, and cached on disk under a name that says what they are.

The folder's name is a hash of the clean images, the model with its weights, the options and the seed, so
a later training with the same settings reuses them. Each block is written completely or not at all. After
a kill, the same command continues.
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
from unfool.protocols import Dataset
from unfool.runtime.files import raise_system_error, write_bytes
from unfool.runtime.progress import progress

BLOCK = 64  # images of a file, which are made together


class CachedImages:
    """A data set of the images in a folder, with their labels.

    Args:
        folder: What `fill_cache` returned.
        size: How many images there are.
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
        """What the blocks hold under a name, one after the other, (size, ...)."""
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
        home: Holds a folder for each such set, with the blocks and `asked.json`.
        data: Clean images with labels.
        indices: Those of `data` that the images are made from.
        size: How many images there are.
        make: Images of these numbers, as `images` (B, C, H, W), with `labels` (B,) and what else is
            known of each.
        models: They make the images with their weights, and go to `device` for that, and back.
        options: Of the part of a spec that asks for the images.
        doing: What progress calls it.
        device: Where to make them.
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
    asked = {**options, "images": len(indices)}
    write_bytes(folder / "asked.json", (json.dumps(asked, indent=2) + "\n").encode())
    for module in modules:
        module.cpu()  # its memory is wanted for the training
    return folder


def _cache_key(
    data: Dataset, indices: Sequence[int], options: Mapping[str, Any], models: Sequence[Any]
) -> str:
    """A hash of clean images, options, and the weights of models."""
    digest = hash_images(data, indices)
    digest.update(specs.identity(options).encode() + specs.code_hash(options).encode())
    digest.update(repr(indices).encode())  # the noise of an image is that of its index
    for model in models:
        if isinstance(model, nn.Module):
            for name, value in model.state_dict().items():
                digest.update(name.encode() + value.float().cpu().contiguous().numpy().tobytes())
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
