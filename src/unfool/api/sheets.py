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
from unfool.report.sheet import MOST, SheetRow, write_sheet
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
def noised(purifier: Purifier, x: Tensor, noise: Noise) -> Tensor | None:
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
    names: Sequence[str], x: Tensor, purifier: Purifier, pure: Tensor, given: Tensor, noise: Noise
) -> list[SheetRow]:
    """Make rows that show each image before, noised, and purified.

    Args:
        names: The name of each image.
        x: The images (B, C, H, W) in their own size.
        purifier: The purifier that was used.
        pure: The purified images, in the same size.
        given: The images in the purifier's size, on its device.
        noise: The noise of the purification.
    """
    seen = noised(purifier, given, noise)
    rows = []
    for i, name in enumerate(names):
        versions = {"before": _array(x[i])}
        versions |= {} if seen is None else {"noised": _array(seen[i])}
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
    shown, answers = dict(steps), dict[str, list[str]]()
    if isinstance(model, Defended):
        bare, purify = model.classifier, noise.child("purify")
        for title, version in steps.items():
            answers[title] = _words(predict(bare, version, noise), classes)
        seen = noised(model.purifier, last, purify)
        shown |= {} if seen is None else {"noised": seen}
        shown["purified"] = model.purifier(last, purify)
    elif attacked is not None:
        answers["before"] = _words(predict(model, x, noise), classes)
    answers[list(shown)[-1]] = list(votes)
    change = shown["purified"] - x if attacked is None and "purified" in shown else last - x
    return [
        SheetRow(
            [name, *([] if truth is None else [f"true: {truth[i]}"])],
            {title: _array(version[i]) for title, version in shown.items()},
            _array(change[i]),
            {title: said[i] for title, said in answers.items()},
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
    for kept in kept_images(run, MOST):
        x, x_adv = (torch.from_numpy(each).to(device) for each in (kept.clean, kept.attacked))
        noise = Noise.of(spec["evaluation"]["seed"], kept.indices).child("verdict", "vote", 0)
        votes = _words(predict(Batched(model, MOST), x_adv, noise), classes)
        truth = [classes[label] for label in kept.labels]
        sizes = [f"size {size:.3g}" for size in kept.sizes]
        names = [f"no. {index}" for index in kept.indices]
        rows = classified_rows(names, model, x, noise, classes, votes, truth, x_adv, sizes)
        path = run.folder / f"{kept.stem}-sheet.html"
        written.append(write_sheet(path, rows, f"The attack {kept.name}", ATTACKED, command))
    return written


def _words(chosen: Tensor, classes: Sequence[str]) -> list[str]:
    found: list[int] = chosen.tolist()
    return [classes[i] if i < len(classes) else f"class {i}" for i in found]


def _array(image: Tensor) -> np.ndarray:
    return image.detach().float().cpu().numpy()
