"""The report of a forecast, which `--dry-run` and `--budget` print."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unfool.evaluation.forecast import Forecast, images_at_start
from unfool.report.document import Document, Paragraph, Table
from unfool.report.formatting import duration
from unfool.results.run_folder import Run
from unfool.statistics import percent

TITLES = {
    "nfe_forward": "denoiser forward",
    "nfe_vjp": "denoiser backward",
    "classifier_forward": "classifier forward",
    "classifier_vjp": "classifier backward",
}


def so_far(spec: Mapping[str, Any], folder: Path) -> Document:
    """Say how much of a checked spec's run in `folder` is done; an empty document if it has not begun."""
    if (images := images_at_start(spec, folder)) is None:
        return Document("", [])
    done = len(Run.open(folder).lines())
    text = f"The run already exists with {images} images, of which {done} are done."
    return Document("", [Paragraph(text)])


def brief(
    forecast: Forecast, shards: int = 1, budget: str | None = None, judged: bool = True
) -> Document:
    """Make a table of network calls and time by condition, with the totals.

    Args:
        forecast: The forecast.
        shards: Machines that share the work, each with the forecast's number of workers.
        budget: The budget that determined the number of images, if any.
        judged: Whether the run will report accuracies.
    """
    lines = [
        [name, *(f"{cost.calls.get(key, 0):,.0f}" for key in TITLES), duration(cost.seconds)]
        for name, cost in (*forecast.per_image.items(), ("in all", forecast.cost_per_image))
    ]
    table = Table(["of an image", *TITLES.values(), "time"], lines, {len(lines) - 1: "strong"})
    half_width = (forecast.high - forecast.low) / 2
    note = (
        f"The 95 % confidence interval of an accuracy will be about +-{percent(half_width)} (at 50 %; "
        "narrower near 0 or 100 %)."
    )
    total = Paragraph(_total(forecast, shards, budget))
    return Document("", [table, total, *([Paragraph(note)] if judged else [])])


def in_short(*forecasts: Forecast) -> str:
    """State the total number of images and the total time of some forecasts."""
    images = sum(forecast.images for forecast in forecasts)
    seconds = sum(forecast.total.seconds / forecast.workers for forecast in forecasts)
    most = any(forecast.is_upper_bound and forecast.images for forecast in forecasts)
    return f"{images} images, {'at most ' if most else ''}{duration(seconds)}"


def _total(forecast: Forecast, shards: int, budget: str | None) -> str:
    qualifier, machines = ("at most " if forecast.is_upper_bound else ""), shards * forecast.workers
    text = f"{forecast.images} images"
    if budget:
        text += f" (as many as fit into {budget}, but at least one block)"
    text += f": {qualifier}{sum(forecast.total.calls.values()):,.0f} network calls, "
    text += f"{qualifier}{duration(forecast.total.seconds)} on this machine"
    if machines > 1:
        text += f", {duration(forecast.total.seconds / machines)} on each of {machines}"
    if forecast.batch_size:
        text += f"; timed on calls of up to {forecast.batch_size} images"
    return f"{text}."
