"""The paths of attacks on a random defense, with known and with unknown noise (Liu et al., 2024).

From the same image, PGD attacks the defense on one draw of its noise that the attacker knows (DW-box),
on a fresh draw at every step (white box), and on the mean over several draws (white box with EOT).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfool.attacks.losses import Loss, query_model
from unfool.attacks.pgd import PGD
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, check_arguments
from unfool.results.report_json import ShareEntry, share_entry
from unfool.runtime.progress import progress
from unfool.statistics import bounded_mean_interval, mean_interval, mean_rate_interval
from unfool.threat import Threat

DW, WHITE, EOT = "DW-box", "white box", "white box, EOT"


@dataclass(frozen=True)
class Runs:
    """The runs of one setting: B images, R runs per image, S steps, P values per image.

    Attributes:
        ends: The final perturbations (B, R, P).
        paths: The perturbations of the first images before the first step and after every step
            (shown, R, S + 1, P).
        heights: The losses along `paths` (shown, R, S + 1): `"known"` on the noise that DW-box knows,
            `"fresh"` averaged over fresh draws.
        losses: The same losses for `ends` (B, R).
        accuracies: How often the model is right on `ends` (B, R), with the same two keys.
    """

    ends: np.ndarray
    paths: np.ndarray
    heights: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    accuracies: dict[str, np.ndarray]


@dataclass(frozen=True)
class Trajectories:
    """The runs of all settings.

    Attributes:
        runs: Setting to its runs.
        draws: Fresh draws behind a mean loss.
    """

    runs: dict[str, Runs]
    draws: int

    def summary(self) -> dict[str, Any]:
        """Return means over images with 95 % intervals: losses, accuracies, and cosines of `ends`."""
        rows, cosines = [], {}
        for name, runs in self.runs.items():
            rows.append(
                {
                    "setting": name,
                    "runs": runs.ends.shape[1],
                    "loss": {key: _mean(loss) for key, loss in runs.losses.items()},
                    "accuracy": {
                        key: _share(key, rate, self.draws) for key, rate in runs.accuracies.items()
                    },
                }
            )
            for other, others in self.runs.items():
                if (other, name) not in cosines and (name != other or runs.ends.shape[1] > 1):
                    cosines[name, other] = bounded_mean_interval(
                        _cosines(runs.ends, others.ends), -1, 1
                    )
        return {
            "images": len(next(iter(self.runs.values())).ends),
            "draws": self.draws,
            "settings": rows,
            "cosines": [{"between": list(p), "cosine": mean} for p, mean in cosines.items()],
        }


def trajectories(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    noise: Noise,
    *,
    steps: int = 20,
    step_size: float = 0.25,
    eot: int = 10,
    runs: Count = 6,
    draws: Count = 16,
    loss: Loss = "margin",
    shown: int = 1,
    quiet: bool = False,
) -> Trajectories:
    """Attack each image once with DW-box, and `runs` times as white box without and with EOT.

    All runs start at the clean image.

    Args:
        model: The defense.
        x: Images (B, C, H, W) in [0, 1].
        y: Labels (B,).
        threat: What an attacker may change.
        noise: Source of random draws; DW-box knows its stream `defense`.
        steps: Steps of PGD.
        step_size: In units of eps; the paper uses 2/255 at eps = 8/255.
        eot: Draws per step with EOT.
        runs: Runs per image without and with EOT.
        draws: Fresh draws behind a loss and an accuracy.
        loss: The loss to maximize and record.
        shown: How many images, from the first on, keep their whole paths.
        quiet: Show no progress.

    Raises:
        ValueError: A number is out of range.
    """
    check_arguments(trajectories, locals())
    defense_noise, results = noise.child("defense"), {}
    plan = {DW: (1, 1), WHITE: (1, runs), EOT: (eot, runs)}  # draws per step, runs
    total = sum((steps + 1) * copies for _, copies in plan.values())
    with progress("attacking", total, 0, quiet) as show:
        done = 0
        for name, (per_step, copies) in plan.items():
            attack = PGD(steps, per_step, step_size, start="zero", loss=loss)
            attack_noise = noise.child(name).repeat(copies)
            image_of_run = [i for i in range(len(x)) for _ in range(copies)]
            known, fresh = defense_noise.take(image_of_run), noise.child("held").take(image_of_run)
            if name == DW:
                attack_noise = attack_noise.with_known_noise(known)
            repeated, labels = x[image_of_run], y[image_of_run]
            shown_runs = [i for i, image in enumerate(image_of_run) if image < shown]
            streams = known.take(shown_runs), fresh.take(shown_runs)
            deltas, heights, last = [], [], repeated
            for last, _ in attack.path(model, repeated, labels, threat, attack_noise):
                deltas.append((last - repeated)[shown_runs].flatten(1).cpu())
                heights.append(
                    losses_at(model, last[shown_runs], labels[shown_runs], loss, *streams, draws)
                )
                done += copies
                show(done, name)
            ends = losses_at(model, last, labels, loss, known, fresh, draws)
            shape = (len(x), copies)
            paths = torch.stack(deltas, 1).view(min(shown, len(x)), copies, steps + 1, -1)
            results[name] = Runs(
                (last - repeated).flatten(1).view(*shape, -1).cpu().numpy(),
                paths.numpy(),
                {
                    key: np.stack([losses[key][0] for losses in heights], 1).reshape(
                        -1, copies, steps + 1
                    )
                    for key in ("known", "fresh")
                },
                {key: values[0].reshape(shape) for key, values in ends.items()},
                {key: values[1].reshape(shape) for key, values in ends.items()},
            )
    return Trajectories(results, draws)


def stack_iterates(
    results: Mapping[str, Runs], image: int
) -> tuple[np.ndarray, list[tuple[str, int, slice]]]:
    """Return all runs' iterates from one image (N, P), and each run's setting, number, and rows."""
    iterates: list[np.ndarray] = []
    slices: list[tuple[str, int, slice]] = []
    for name, runs in results.items():
        for number, path in enumerate(runs.paths[image]):
            begin = sum(map(len, iterates))
            iterates.append(path)
            slices.append((name, number, slice(begin, begin + len(path))))
    return np.concatenate(iterates), slices


def losses_at(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    known: Noise,
    fresh: Noise,
    draws: int,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return loss and share of right answers, (B,) each, on the known noise and on fresh draws."""
    on_known = query_model(model, x, y, loss, known.with_known_noise(known), 0, 1, gradient=False)
    on_fresh = query_model(model, x, y, loss, fresh, 0, draws, gradient=False)
    return {
        key: (result.loss.cpu().numpy(), 1 - result.error_rate.cpu().numpy())
        for key, result in (("known", on_known), ("fresh", on_fresh))
    }


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the mean cosine of two settings' ends (B,); for one setting, between different runs."""
    unit, others = (
        ends / np.maximum(np.linalg.norm(ends, axis=2, keepdims=True), 1e-30)
        for ends in (one, other)
    )
    pairs = np.einsum("brp,bsp->brs", unit, others)
    if one is not other:
        return pairs.mean((1, 2))
    count = pairs.shape[1]
    return (pairs.sum((1, 2)) - np.trace(pairs, axis1=1, axis2=2)) / (count * (count - 1))


def _mean(values: np.ndarray) -> dict[str, float]:
    return mean_interval(values.mean(1).tolist())._asdict()


def _share(key: str, rates: np.ndarray, draws: int) -> ShareEntry:
    draws_per_image = rates.shape[1] * (draws if key == "fresh" else 1)
    return share_entry(mean_rate_interval(rates.mean(1).tolist(), draws_per_image))
