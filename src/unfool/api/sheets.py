"""Rows of a sheet that show what a defense or an attack did to images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unfool.attacks.views import Batched
from unfool.defenses.purified_classifier import predict
from unfool.evaluation.keep_attacked_images import kept_images
from unfool.evaluation.prepare import build_model
from unfool.noise import Noise
from unfool.protocols import Classifier, Defended, Purifier
from unfool.report.sheet import MAX_IMAGES, SheetRow, write_sheet
from unfool.results.run_folder import Run
from unfool.runtime.device import pick_device

ATTACKED = (
    "The clean image, the attacked image, and the attacked image purified with one draw of the "
    "defense's noise. Below the first two stands the answer without the defense, below the "
    "purified image the answer of the defended model. The last column shows what the attack "
    "changed, multiplied by the factor in its heading (gray means no change), and the size of the change "
    "in the threat's norm."
)


@torch.no_grad()
def add_purifier_noise(purifier: Purifier, x: Tensor, noise: Noise) -> Tensor | None:
    """Add a purifier's noise to images (B, C, H, W); None if it adds none or has no method `walk`.

    Args:
        purifier: Any purifier.
        x: Images.
        noise: The noise of the purified images.
    """
    if not hasattr(purifier, "walk"):
        return None
    _, first = next(iter(purifier.walk(x, noise)))  # pyright: ignore
    return None if torch.equal(first, x) else first


def purified_rows(
    names: Sequence[str], x: Tensor, purifier: Purifier, pure: Tensor, resized: Tensor, noise: Noise
) -> list[SheetRow]:
    """Make rows that show each image before, noised, and purified.

    Args:
        names: The name of each image.
        x: The images (B, C, H, W) in their own size.
        purifier: The purifier that was used.
        pure: The purified images, in the same size.
        resized: The images in the purifier's size, on its device.
        noise: The noise of the purification.
    """
    noised = add_purifier_noise(purifier, resized, noise)
    rows = []
    for i, name in enumerate(names):
        versions = {"before": _array(x[i])}
        versions |= {} if noised is None else {"noised": _array(noised[i])}
        change = _array(pure[i] - x[i])
        size = f"{np.abs(change).mean():.3f} on average"
        rows.append(SheetRow([name], versions | {"purified": _array(pure[i])}, change, size=size))
    return rows


@torch.no_grad()
def classified_rows(
    names: Sequence[str],
    model: Classifier,
    x: Tensor,
    noise: Noise,
    classes: Sequence[str],
    votes: Sequence[str],
    truth: Sequence[str] | None = None,
    attacked: Tensor | None = None,
    sizes: Sequence[str] | None = None,
) -> list[SheetRow]:
    """Make rows that show each image before, attacked, noised, and purified, with the answers.

    Args:
        names: The name of each image.
        model: The classifier, behind its purifier if it has one.
        x: Images (B, C, H, W) in the model's size, on its device.
        noise: The noise of the first vote.
        classes: The name of each class.
        votes: The class with the most votes, shown below the purified image, or else the last one.
        truth: The true class of each image, if known.
        attacked: The attacked images, if any; these are then purified and classified.
        sizes: The size of each attack's change, in words.
    """
    steps = {"before": x} | ({} if attacked is None else {"attacked": attacked})
    last = steps["before"] if attacked is None else attacked
    versions, answers = dict(steps), dict[str, list[str]]()
    if isinstance(model, Defended):
        undefended, purify = model.classifier, noise.child("purify")
        for title, images in steps.items():
            answers[title] = _class_names(predict(undefended, images, noise), classes)
        noised = add_purifier_noise(model.purifier, last, purify)
        versions |= {} if noised is None else {"noised": noised}
        versions["purified"] = model.purifier(last, purify)
    elif attacked is not None:
        answers["before"] = _class_names(predict(model, x, noise), classes)
    answers[list(versions)[-1]] = list(votes)
    change = versions["purified"] - x if attacked is None and "purified" in versions else last - x
    return [
        SheetRow(
            [name, *([] if truth is None else [f"true: {truth[i]}"])],
            {title: _array(images[i]) for title, images in versions.items()},
            _array(change[i]),
            {title: labels[i] for title, labels in answers.items()},
            None if truth is None else truth[i],
            "" if sizes is None else sizes[i],
        )
        for i, name in enumerate(names)
    ]


def write_attack_sheets(run: Run, command: str) -> list[Path]:
    """Write a sheet for each attack of a collection of adversarial images, beside its arrays.

    The model is rebuilt, and answers with the first draw of an evaluation's verdict.

    Args:
        run: The run that `keep_attacked_images.run` returned.
        command: The command to make it again.

    Raises:
        SpecError: A part of the spec refuses its options.
        RuntimeError: There are no images yet.
        OSError: A file cannot be written.
    """
    spec, classes = run.spec, run.manifest["classes"]
    device = pick_device(spec["machine"]["device"])
    model = build_model(spec, device)
    written = []
    for collection in kept_images(run, MAX_IMAGES):
        x, x_adv = (
            torch.from_numpy(images).to(device)
            for images in (collection.clean, collection.attacked)
        )
        noise = Noise.of(spec["evaluation"]["seed"], collection.indices).child("verdict", "vote", 0)
        votes = _class_names(predict(Batched(model, MAX_IMAGES), x_adv, noise), classes)
        truth = [classes[label] for label in collection.labels]
        sizes = [f"size {size:.3g}" for size in collection.sizes]
        names = [f"no. {index}" for index in collection.indices]
        rows = classified_rows(names, model, x, noise, classes, votes, truth, x_adv, sizes)
        path = run.folder / f"{collection.stem}-sheet.html"
        written.append(write_sheet(path, rows, f"The attack {collection.name}", ATTACKED, command))
    return written


def _class_names(chosen: Tensor, classes: Sequence[str]) -> list[str]:
    indices: list[int] = chosen.tolist()
    return [classes[i] if i < len(classes) else f"class {i}" for i in indices]


def _array(image: Tensor) -> np.ndarray:
    return image.detach().float().cpu().numpy()
