"""How close purified images are to the clean ones, compared with noise (Liu et al., 2025, section 3).

A purifier that removes an attack's perturbation moves the image closer to the clean one. One that adds
noise and removes it may end farther away although the answer is right; then its robustness does not come
from removing the perturbation. There are three controls: the purified clean image; noise added but not
removed; and what remains of the perturbation with the same draw of the noise.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfool.attacks.losses import Loss
from unfool.attacks.pgd import PGD
from unfool.attacks.views import Batched
from unfool.defenses.purified_classifier import predict
from unfool.evaluation.image_quality import check_perceptual, measure
from unfool.noise import Noise
from unfool.protocols import Defended
from unfool.ranges import Count, check_arguments
from unfool.results.report_json import share_entry
from unfool.runtime.progress import progress
from unfool.statistics import bounded_mean_interval, mean_rate_interval, wilson
from unfool.threat import Threat

CLEAN, ATTACKED = "clean", "attacked"
NOISED, PURE = "noise only", "purified"
RANGES = {"l2": (0, np.inf), "linf": (0, np.inf), "ssim": (-1, 1), "lpips": (0, np.inf)}
METRICS = tuple(RANGES)


@dataclass(frozen=True)
class Purification:
    """Distances and accuracies of B images; D draws of the defense's noise, or 1 in rows without it.

    Attributes:
        distances: Row to metric to distances to the clean image (B, D). Rows are `"clean, purified"`,
            `"attacked"`, and so on; metrics are l2, linf, ssim (1 for equal images), and maybe lpips.
        correct: Row to 1 where the classifier is right, else 0 (B, D); on purified images, this is the
            defense's answer.
        remaining: The l2 length of the perturbation after purification over that before, with the same
            draw (B, D); NaN for images that the attack left unchanged.
        noise_std: The standard deviation of the forward noise in [0, 1] pixels, of clean images if each
            image has its own; None if there is none.
        images: The first images of each row, for the first draw: row to (N, C, H, W).
    """

    distances: dict[str, dict[str, np.ndarray]]
    correct: dict[str, np.ndarray]
    remaining: np.ndarray
    noise_std: float | None
    images: dict[str, np.ndarray]

    def summary(self) -> dict[str, Any]:
        """Return means over images with 95 % intervals."""
        rows = []
        for name, correct in self.correct.items():
            measured = self.distances.get(name, {})
            means = {m: bounded_mean_interval(v.mean(1), *RANGES[m]) for m, v in measured.items()}
            share = mean_rate_interval(correct.mean(1).tolist(), correct.shape[1])
            rows.append({"row": name, **means, "accuracy": share_entry(share)})
        closer = {}
        for metric in METRICS:
            before, after = (
                self.distances[name].get(metric) for name in (ATTACKED, f"{ATTACKED}, {PURE}")
            )
            if before is not None and after is not None:
                gain = before.mean(1) - after.mean(1)
                gain = -gain if metric == "ssim" else gain
                closer[metric] = share_entry(wilson(int((gain > 0).sum()), len(gain)))
        remaining = self.remaining[np.isfinite(self.remaining).all(1)].mean(1)
        return {
            "images": len(self.remaining),
            "changed": len(remaining),
            "draws": self.remaining.shape[1],
            "pixel_noise": self.noise_std,
            "rows": rows,
            "closer": closer,
            "remaining": bounded_mean_interval(remaining, 0) if len(remaining) > 1 else None,
        }


def purification(
    model: Batched,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    noise: Noise,
    *,
    steps: int = 20,
    eot: int = 8,
    loss: Loss = "margin",
    draws: Count = 4,
    lpips: bool = False,
    shown: int = 6,
    quiet: bool = False,
) -> Purification:
    """Attack each image with the exact gradient, purify it with fresh noise, and measure.

    Args:
        model: A classifier behind a purifier.
        x: Images (B, C, H, W) in [0, 1].
        y: Labels (B,).
        threat: What an attacker may change.
        noise: Source of random draws; the attack has its own.
        steps: Steps of PGD from a random start.
        eot: Draws per step.
        loss: The loss to maximize.
        draws: Draws of the defense's noise per image, the same for clean and attacked images.
        lpips: Also measure LPIPS.
        shown: How many images, from the first on, keep their pixels.
        quiet: Show no progress.

    Raises:
        ValueError: A number is out of range, the model has no purifier, or LPIPS is not installed or
            does not accept such images.
    """
    check_arguments(purification, locals())
    defended = model.model
    if not isinstance(defended, Defended):
        raise ValueError("the spec has no purifier to analyze: name a spec with one")
    if lpips:
        check_perceptual(x[0])  # report a missing package before the work starts
    sigma = getattr(defended.purifier, "pixel_noise", None)
    purify = Batched(defended.purifier, model.batch_size)
    white = partial(_add_white_noise, sigma) if sigma else None
    add_noise = getattr(defended.purifier, "add_noise", white)
    classify = Batched(defended.classifier, model.batch_size)
    with torch.no_grad(), progress("purifying", draws + 1, 0, quiet) as show:
        with torch.enable_grad():
            attack = PGD(steps, eot, loss=loss)
            starts = {CLEAN: x, ATTACKED: attack(model, x, y, threat, noise.child("attack"))}
        show(1, "attacked")
        images: dict[str, list[Tensor]] = {name: [start] for name, start in starts.items()}
        correct = {
            name: [predict(classify, start, noise.child("classify")) == y]
            for name, start in starts.items()
        }
        for draw in range(draws):
            stream = noise.child("held", draw)
            for name, start in starts.items():
                key = stream.child("purify")
                versions: dict[str, Tensor] = {}
                if add_noise is not None:
                    versions[NOISED] = Batched(add_noise, model.batch_size)(start, key)
                versions[PURE] = purify(start, key)
                for kind, image in versions.items():
                    row = f"{name}, {kind}"
                    images.setdefault(row, []).append(image)
                    is_correct = predict(classify, image, stream.child("classify")) == y
                    correct.setdefault(row, []).append(is_correct)
            show(draw + 2, "purified")
        distances = {
            row: _distances(by_draw, x, lpips) for row, by_draw in images.items() if row != CLEAN
        }
        gap = [
            (attacked - clean).flatten(1).norm(dim=1)
            for attacked, clean in zip(
                images[f"{ATTACKED}, {PURE}"], images[f"{CLEAN}, {PURE}"], strict=True
            )
        ]
    if getattr(defended.purifier, "noise_level", None) is not None:  # every image has its own noise
        noises = torch.stack(images[f"{CLEAN}, {NOISED}"]) - x
        sigma = noises.double().square().mean().sqrt()
    before = (starts[ATTACKED] - x).flatten(1).norm(dim=1)
    before = torch.where(before > 0, before, torch.nan)
    return Purification(
        distances,
        {row: torch.stack(by_draw, 1).double().cpu().numpy() for row, by_draw in correct.items()},
        (torch.stack(gap, 1) / before[:, None]).cpu().numpy(),
        None if sigma is None else float(sigma),
        {row: by_draw[0][:shown].cpu().numpy() for row, by_draw in images.items()},
    )


def _add_white_noise(sigma: float, x: Tensor, noise: Noise) -> Tensor:
    return x + sigma * noise.child("forward").normal(x)


def _distances(images: list[Tensor], x: Tensor, lpips: bool) -> dict[str, np.ndarray]:
    distances = [measure(image, x, lpips) for image in images]
    return {
        metric: np.array([[by_metric[metric] for by_metric in draw] for draw in distances]).T
        for metric in METRICS
        if metric in distances[0][0]
    }
