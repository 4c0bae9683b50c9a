"""Adversarial images, made once and kept on disk (see `kept`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfool.data import fetch
from unfool.noise import Noise
from unfool.protocols import Dataset
from unfool.spec import Part
from unfool.threat import Threat
from unfool.training.kept import Kept, chosen, fill, name_of
from unfool.training.truth_maximization import TruthMaximization

ASKED = ("source", "attack", "norm", "eps", "images", "seed", "released")


class AdversarialImages(Kept):
    """A data set of adversarial images with their true labels."""

    def facts(self) -> dict[str, object]:
        """How often the source was wrong before and after the attack, and how far images moved."""
        before, after, size = (self.column(name).double() for name in ("before", "after", "size"))
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
    asked: Part,
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
    places, source = _places(len(data), objective), objective.source
    folder = home / _key(data, places, source, asked)

    def make(part: slice) -> dict[str, Tensor]:
        return _made(data, places[part], objective, device)

    said = {key: asked[key] for key in ASKED if key in asked} | {"images": len(places)}
    fill(
        folder, len(places), make, [source], said, doing="attacking", device=device, quiet=quiet
    )  # fmt: skip
    return AdversarialImages(folder, len(places), data.classes)


def _made(
    data: Dataset, places: Sequence[int], objective: TruthMaximization, device: str
) -> dict[str, Tensor]:
    x, y = (part.to(device) for part in fetch(data, places))
    noise = Noise.of(objective.seed, places).child("adversaries")
    x_adv = objective.attacked(x, y, noise).detach()
    model, told = objective.seen(), noise.child("verdict")
    with torch.no_grad():
        wrong = [model(picture, told).argmax(1) != y for picture in (x, x_adv)]
    size = Threat(objective.norm, objective.eps).size(x_adv - x)
    return {"images": x_adv, "labels": y, "before": wrong[0], "after": wrong[1], "size": size}


def _places(size: int, objective: TruthMaximization) -> list[int]:
    return chosen(size, objective.images, objective.seed)


def _key(data: Dataset, places: Sequence[int], source: Any, asked: Part) -> str:
    return name_of(data, places, {key: asked.get(key) for key in ASKED}, [source])
