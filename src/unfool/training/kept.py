"""Images made from those of a data set, once, and kept on disk under a name that says what they are.

The folder's name is a hash of the clean images, the model with its weights, the options and the seed, so
a later training with the same settings reuses them. Each block is written completely or not at all. After
a kill, the same command continues.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from unfool import spec as specs
from unfool.data import fetch
from unfool.errors import SpecError
from unfool.noise import permutation
from unfool.protocols import Dataset
from unfool.runtime.files import write_bytes
from unfool.runtime.progress import progress

BLOCK = 64  # images of a file, which are made together


class Kept:
    """A data set of the images in a folder, with their labels.

    Args:
        folder: What `fill` filled.
        size: How many images there are.
        classes: The name of each class.
    """

    def __init__(self, folder: Path, size: int, classes: Sequence[str]) -> None:
        self.folder, self.size, self.classes = folder, size, classes

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with _opened(_block(self.folder, index // BLOCK)) as block:
            place = index % BLOCK
            image = block.get_slice("images")[place]
            return image.float(), int(block.get_slice("labels")[place])

    def column(self, name: str) -> Tensor:
        """What the blocks hold under a name, one after the other, (size, ...)."""
        parts = []
        for number in range(-(-self.size // BLOCK)):
            with _opened(_block(self.folder, number)) as block:
                parts.append(block.get_tensor(name))
        return torch.cat(parts)


def fill(
    folder: Path,
    size: int,
    make: Callable[[slice], Mapping[str, Tensor]],
    models: Sequence[Any],
    said: Mapping[str, Any],
    *,
    doing: str,
    device: str = "cpu",
    quiet: bool = False,
) -> None:
    """Make what a folder lacks of `size` images.

    Args:
        folder: Where the blocks go, and `asked.json` beside them.
        size: How many images there are.
        make: Images of a slice of them, as `images` (B, C, H, W), with `labels` (B,) and what else is
            told of each.
        models: Go to `device` for that, and back.
        said: What `asked.json` says of them.
        doing: What progress calls it.
        device: Where to make them.
        quiet: Show no progress.
    """
    numbers = range(-(-size // BLOCK))
    missing = [number for number in numbers if not _block(folder, number).is_file()]
    if not missing:
        return
    modules = [model for model in models if isinstance(model, nn.Module)]
    for module in modules:
        module.to(device)
    with progress(doing, len(numbers), len(numbers) - len(missing), quiet) as show:
        for done, number in enumerate(missing, len(numbers) - len(missing) + 1):
            block = make(slice(number * BLOCK, min(size, (number + 1) * BLOCK)))
            written = save({name: value.cpu().contiguous() for name, value in block.items()})
            write_bytes(_block(folder, number), written)
            show(done, "")
    write_bytes(folder / "asked.json", (json.dumps(said, indent=2) + "\n").encode())
    for module in modules:
        module.cpu()  # its memory is wanted for the training


def chosen(size: int, images: int | None, seed: int) -> list[int]:
    """The places of `images` images of a data set of `size`, in order; of all, if None.

    Raises:
        SpecError: There are not so many.
    """
    if images is None:
        return list(range(size))
    if images > size:
        raise SpecError(f"objective.images: the data set has {size}, not {images}")
    return sorted(permutation(size, seed, "images")[:images])


def name_of(
    data: Dataset, places: Sequence[int], asked: Mapping[str, Any], models: Sequence[Any]
) -> str:
    """A name for images that are made of those at `places` as `asked`, by models with weights."""
    digest = hashlib.sha256()
    digest.update(specs.identity(asked).encode())
    digest.update(specs.code_hash(asked).encode())
    for first in range(0, len(places), 256):
        x, y = fetch(data, places[first : first + 256])
        digest.update(x.numpy().tobytes() + y.numpy().tobytes())
    digest.update(repr(places).encode())  # the noise of an image is that of its place
    for model in models:
        if isinstance(model, nn.Module):
            for name, value in model.state_dict().items():
                digest.update(name.encode() + value.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _block(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} is damaged or gone; delete it and run the command again"
        ) from error
