"""Adversarial images, made once and kept on disk under a name that says what they are.

The name is a hash of the images, of the classifier that is attacked, with its weights, of attack,
threat and seed; so another training finds them, and nothing else is ever taken for them. They are
written a block at a time, whole or not at all: killed, the same command goes on where it was.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from unfool import spec as specs
from unfool.data import fetch
from unfool.errors import SpecError
from unfool.noise import Noise, permutation
from unfool.protocols import Dataset
from unfool.runtime.files import write_bytes
from unfool.runtime.progress import progress
from unfool.spec import Table
from unfool.threat import Threat
from unfool.training.truth_maximization import TruthMaximization

BLOCK = 64  # images of a file, which are attacked together
ASKED = ("source", "attack", "norm", "eps", "images", "seed", "released")


class AdversarialImages:
    """A data set of the adversarial images in a folder, with their true labels.

    Args:
        folder: What `adversaries` filled.
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
            return block.get_slice("images")[place], int(block.get_slice("labels")[place])

    def facts(self) -> Table:
        """How often the source was wrong before and after the attack, and how far images moved."""
        names = ("before", "after", "size")
        blocks = []
        for number in range(-(-self.size // BLOCK)):
            with _opened(_block(self.folder, number)) as block:
                blocks.append([block.get_tensor(name).double() for name in names])
        before, after, size = (torch.cat(part) for part in zip(*blocks, strict=True))
        return {
            "images": self.size,
            "source_wrong_before": round(float(before.mean()), 5),
            "source_wrong_after": round(float(after.mean()), 5),
            "changed": round(float((size > 0).double().mean()), 5),
            "size_mean": round(float(size.mean()), 6),
            "size_max": round(float(size.max()), 6),
            "key": self.folder.name,
        }


def make_adversarial_images(
    data: Dataset,
    objective: TruthMaximization,
    asked: Table,
    home: Path,
    device: str = "cpu",
    quiet: bool = False,
) -> AdversarialImages:
    """The adversarial images that an objective trains on, from disk as far as they are there.

    Args:
        data: Clean images with labels.
        objective: Says what is attacked, and how.
        asked: The checked part of a spec that it was built from.
        home: Holds a folder for each such set.
        device: Where to attack.
        quiet: Show no progress.

    Raises:
        SpecError: There are not so many images.
        ValueError: A file is damaged.
        RuntimeError: The attack left what the threat allows.
    """
    places = _places(len(data), objective)
    source = objective.source
    folder = home / _key(data, places, source, asked)
    numbers = range(-(-len(places) // BLOCK))
    missing = [number for number in numbers if not _block(folder, number).is_file()]
    if missing and isinstance(source, nn.Module):
        source.to(device)
    with progress("attacking", len(numbers), len(numbers) - len(missing), quiet) as show:
        for done, number in enumerate(missing, len(numbers) - len(missing) + 1):
            chosen = places[number * BLOCK : (number + 1) * BLOCK]
            write_bytes(_block(folder, number), _made(data, chosen, objective, device))
            show(done, "")
    if missing:
        said = {key: asked[key] for key in ASKED if key in asked} | {"images": len(places)}
        write_bytes(folder / "asked.json", (json.dumps(said, indent=2) + "\n").encode())
        if isinstance(source, nn.Module):
            source.cpu()  # its memory is wanted for the training
    return AdversarialImages(folder, len(places), data.classes)


def _made(data: Dataset, places: Sequence[int], objective: TruthMaximization, device: str) -> bytes:
    x, y = (part.to(device) for part in fetch(data, places))
    noise = Noise.of(objective.seed, places).child("adversaries")
    x_adv = objective.attacked(x, y, noise).detach()
    model, told = objective.seen(), noise.child("verdict")
    with torch.no_grad():
        wrong = [model(picture, told).argmax(1) != y for picture in (x, x_adv)]
    size = Threat(objective.norm, objective.eps).size(x_adv - x)
    block = {"images": x_adv, "labels": y, "before": wrong[0], "after": wrong[1], "size": size}
    return save({name: value.cpu().contiguous() for name, value in block.items()})


def _places(size: int, objective: TruthMaximization) -> list[int]:
    if objective.images is None:
        return list(range(size))
    if objective.images > size:
        raise SpecError(f"objective.images: the data set has {size}, not {objective.images}")
    return sorted(permutation(size, objective.seed, "images")[: objective.images])


def _key(data: Dataset, places: Sequence[int], source: Any, asked: Table) -> str:
    digest = hashlib.sha256()
    digest.update(specs.identity({key: asked.get(key) for key in ASKED}).encode())
    digest.update(specs.code_hash(asked).encode())
    for first in range(0, len(places), 256):
        x, y = fetch(data, places[first : first + 256])
        digest.update(x.numpy().tobytes() + y.numpy().tobytes())
    digest.update(repr(places).encode())  # the noise of an image is that of its place
    if isinstance(source, nn.Module):
        for name, value in source.state_dict().items():
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
