"""The loss of an attack over its steps, which shows whether the attack had converged."""

from collections.abc import Sequence
from itertools import groupby
from statistics import mean

import torch

from unfool.attacks.losses import LossRecord
from unfool.results.outcome import Outcome
from unfool.results.report_json import LossBand, LossCurve
from unfool.statistics import mean_interval

BINS = 16  # the largest number of values that are kept of a search


def curves(steps: Sequence[LossRecord], size: int) -> list[list[float]]:
    """Return the mean loss of each of `size` images over a search's steps, in up to 16 equal bins.

    A run is a sequence of steps on the same noise; runs (restarts, targets) are averaged. The first
    bin also holds what is left over. Runs on fewer images, after others were broken, are left out.
    A curve is empty if the runs differ in length or loss, because they are not one ascent, or if a
    loss is not finite.

    Args:
        steps: The recorded steps (`losses.recording_losses`).
        size: Number of images in the batch.
    """
    steps = [step for step in steps if len(step.loss) == size]
    runs = [[step.loss for step in run] for _, run in groupby(steps, lambda step: step.run)]
    losses, lengths = {step.run[1] for step in steps}, {len(run) for run in runs}
    if len(losses) != 1 or len(lengths) != 1:
        return [[] for _ in range(size)]
    table = torch.stack([torch.stack(run) for run in runs]).double().mean(0)  # (steps, images)
    width = -(-len(table) // BINS)
    bins = [table[max(end - width, 0) : end] for end in range(len(table), 0, -width)][::-1]
    if len(bins) > 1 and len(bins[0]) < width:
        bins[:2] = [torch.cat(bins[:2])]
    means = torch.stack([values.mean(0) for values in bins], 1)
    finite = means.isfinite().all(1).tolist()
    return [
        [float(f"{value:.5g}") for value in row] if is_finite else []
        for row, is_finite in zip(means.tolist(), finite, strict=True)
    ]


def summarize(outcomes: Sequence[Outcome], names: Sequence[str]) -> list[LossCurve]:
    """Return the mean loss curves of the attacks `names` for `report.json`, with 95 % intervals.

    Images that the attack left right on most draws are summarized apart from the others.
    """
    result: list[LossCurve] = []
    for name in names:
        longest = max(len(outcome.loss_curves.get(name, [])) for outcome in outcomes)
        # where a whole block ended early (`early_stop`), the curves of its images are shorter
        recorded = [o for o in outcomes if len(o.loss_curves.get(name, [])) == longest > 1]
        groups = {"right": [o for o in recorded if mostly_right(o, name)]}
        groups["wrong"] = [o for o in recorded if not mostly_right(o, name)]
        if recorded:
            bands = {k: _band([o.loss_curves[name] for o in group]) for k, group in groups.items()}
            result.append({"name": name, "right": bands["right"], "wrong": bands["wrong"]})
    return result


def mostly_right(outcome: Outcome, name: str) -> bool:
    """Whether most draws of an image under the condition `name` are right."""
    return mean(draw == outcome.label for draw in outcome.conditions[name].draws) > 0.5


def _band(curves_of_images: Sequence[Sequence[float]]) -> LossBand:
    if len(curves_of_images) < 2:
        return {
            "n": len(curves_of_images),
            "mean": list(curves_of_images[0]) if curves_of_images else [],
            "low": [],
            "high": [],
        }
    bins = [mean_interval(values) for values in zip(*curves_of_images, strict=True)]
    return {
        "n": len(curves_of_images),
        "mean": [b.mean for b in bins],
        "low": [b.low for b in bins],
        "high": [b.high for b in bins],
    }
