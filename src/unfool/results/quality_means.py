"""Mean distances of images from the clean ones, before and after purification."""

from collections.abc import Mapping, Sequence

from unfool.results.report_json import MeanEntry, QualityRow, mean_entry
from unfool.statistics import mean_interval

Quality = dict[str, dict[str, float]]  # "before" and "after" purification: metric to value
METRICS = ("psnr", "ssim", "l2", "linf", "lpips")


def summarize(qualities: Sequence[Mapping[str, Quality]], names: Sequence[str]) -> list[QualityRow]:
    """Compute the means over images for the conditions `names`, with 95 % intervals of Student's t.

    Args:
        qualities: The distances of each image, by condition.
        names: The conditions, in order.

    Returns:
        For each condition, its `name`, and under `before` and `after`, if measured, the `mean`,
        `low`, and `high` of each metric (`low` and `high` are None for a single image).
    """
    table: list[QualityRow] = []
    for name in names:
        row: QualityRow = {"name": name}
        for when in ("before", "after"):
            measured = [q[name][when] for q in qualities if when in q.get(name, {})]
            if measured:
                known = [m for m in METRICS if any(m in image for image in measured)]
                row[when] = {
                    m: _interval([image[m] for image in measured if m in image]) for m in known
                }
        if len(row) > 1:
            table.append(row)
    return table


def _interval(values: Sequence[float]) -> MeanEntry:
    if len(values) < 2:
        return {"mean": values[0], "low": None, "high": None}
    return mean_entry(mean_interval(values))
