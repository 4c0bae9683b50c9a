"""Adversarial images, computed once and cached on disk (see `image_cache`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfool.batching import BatchLimit, in_parts
from unfool.data import fetch
from unfool.data.subset import choose_indices
from unfool.defenses.purified_classifier import predict
from unfool.noise import Noise
from unfool.protocols import Dataset
from unfool.threat import Threat
from unfool.training.image_cache import BLOCK, CachedImages, fill_cache
from unfool.training.objectives.truth_maximization import TruthMaximization

# options of the objective on which the images depend
OPTIONS = ("source", "attack", "norm", "eps", "images", "seed", "released")


class AdversarialImages(CachedImages):
    """A data set of adversarial images with their true labels."""

    def facts(self) -> dict[str, object]:
        """Share of source errors before and after the attack, and the size of the perturbations."""
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
    part: Mapping[str, Any],
    home: Path,
    device: str = "cpu",
    quiet: bool = False,
) -> AdversarialImages:
    """Return the adversarial images that an objective trains on, computing those not yet on disk.

    Args:
        data: Clean images with labels.
        objective: Defines the attacked model and the attack.
        part: The checked spec part from which `objective` was built.
        home: Folder that holds one subfolder for each set of images.
        device: Device on which the attack runs.
        quiet: Show no progress.

    Raises:
        SpecError: The data set has too few images.
        ValueError: A file is damaged.
        RuntimeError: The attack exceeded the threat.
    """
    indices = choose_indices(
        len(data), objective.images, objective.seed, stream="images", option="objective.images"
    )

    limit = BatchLimit(BLOCK)

    def make(numbers: range) -> dict[str, Tensor]:
        chosen = [indices[number] for number in numbers]
        return attack_block(data, chosen, objective, device, limit)

    options = {key: part.get(key) for key in OPTIONS}
    folder = fill_cache(
        home, data, indices, len(indices), make, [objective.source, objective.attack], options,
        doing="attacking", device=device, quiet=quiet,
    )  # fmt: skip
    return AdversarialImages(folder, len(indices), data.classes)


def attack_block(
    data: Dataset,
    indices: Sequence[int],
    objective: TruthMaximization,
    device: str,
    limit: BatchLimit,
) -> dict[str, Tensor]:
    """Attack the images at `indices`, and return them as one block of the cache.

    When memory runs out, the `limit` of the images in one attack is halved.
    """
    threat = Threat(objective.norm, objective.eps)

    def attack(span: slice) -> dict[str, Tensor]:
        x, y = (tensor.to(device) for tensor in fetch(data, indices[span]))
        noise = Noise.of(objective.seed, indices[span]).child("adversaries")
        x_adv = objective.attacked(x, y, noise).detach()
        model, heldout = objective.attacked_model(), noise.child("verdict")
        with torch.no_grad():
            before, after = (predict(model, images, heldout) != y for images in (x, x_adv))
        size = threat.size(x_adv - x)
        return {"images": x_adv, "labels": y, "before": before, "after": after, "size": size}

    parts = in_parts(attack, len(indices), limit)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
