"""A forecast in words."""

from collections.abc import Iterator
from pathlib import Path

from unfool.evaluation.forecast import Forecast, begun
from unfool.report.rows import duration
from unfool.results.run_folder import Run
from unfool.results.spec import EvaluationSpec

TITLES = {
    "nfe_forward": "denoiser forward",
    "nfe_vjp": "denoiser backward",
    "classifier_forward": "classifier forward",
    "classifier_vjp": "classifier backward",
}


def so_far(spec: EvaluationSpec, folder: Path) -> Iterator[str]:
    """How much of a run of a checked spec is done, if it was begun in the folder."""
    if (images := begun(spec, folder)) is not None:
        done = len(Run.open(folder).outcomes())
        yield f"the run was begun with {images} images, of which {done} are done"


def forecast_lines(forecast: Forecast, shards: int = 1, budget: str | None = None) -> Iterator[str]:
    """A table of network calls and time by condition, and what it comes to.

    Args:
        forecast: What to tell.
        shards: Machines that share the work, each with the workers of the forecast.
        budget: What the number of images was chosen for.
    """
    heads = ["of an image", *TITLES.values(), "time"]
    rows = [*forecast.per_image.items(), ("in all", forecast.each)]
    table = [heads]
    for name, cost in rows:
        calls = [f"{cost.calls.get(key, 0):,.0f}" for key in TITLES]
        table.append([name, *calls, duration(cost.seconds)])
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    for row in table:
        first, *others = (text.ljust(w) for text, w in zip(row, widths, strict=True))
        yield "  ".join([first, *(text.strip().rjust(len(text)) for text in others)])
    most = "at most " if forecast.most else ""
    calls = sum(forecast.total.calls.values())
    shards *= forecast.workers
    each = f", {duration(forecast.total.seconds / shards)} on each of {shards}"
    for_ = f" (the most that fit into {budget}, but a block at least)" if budget else ""
    timed = f"; timed on calls of up to {forecast.batch_size} images" if forecast.batch_size else ""
    yield (
        f"{forecast.images} images{for_}: {most}{calls:,.0f} network calls, {most}"
        f"{duration(forecast.total.seconds)} on this machine{each if shards > 1 else ''}{timed}"
    )
    yield (
        f"an accuracy will be known to about +-{(forecast.high - forecast.low) / 2:.1%} (95 %, "
        "at one half; nearer where it is near 0 or 1)"
    )
