"""The reports of `unfool analyze compression` and `unfool analyze critical-eps`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfool.analysis.compression import KINDS, Compression
from unfool.analysis.critical_eps import CriticalEps
from unfool.report.analyses import write_analysis
from unfool.report.document import Block, Document, Figure, Paragraph, Table
from unfool.report.figures import compression as figures
from unfool.report.formatting import cell, mean
from unfool.results.attack_roles import roles
from unfool.results.report_json import ShareEntry, Summary

About = Mapping[str, Any]
MIN_RUNS = 5  # the fewest runs for which a rank correlation is reported


@dataclass(frozen=True)
class Measured:
    """The compression rates of a defense, and the summary of its run if it came from a run folder.

    Attributes:
        name: The name in the report.
        compression: The compression rates.
        run: The summary of the run; None if the defense came from a spec.
    """

    name: str
    compression: Compression
    run: Summary | None = None


def write_compression(
    folder: Path, measured: Sequence[Measured], about: About, skipped: Sequence[str] = ()
) -> Document:
    """Report the compression rates of some defenses, in `compression.{json,md,html,csv,npz}`.

    Args:
        folder: The output folder.
        measured: The rates of each defense.
        about: The `command`, and further entries for the JSON file.
        skipped: The names of sources without a purifier.
    """
    summaries = {row.name: row.compression.summary() for row in measured}
    first = next(iter(summaries.values()))
    note = (
        f"{first['images']} images with {first['draws']} draws of the defense's noise each. The "
        "rate is the l2 distance between the purified image and its purified perturbed copy, with "
        "the same noise, divided by the length of the perturbation: below 1, the purifier "
        "contracts. Sizes are in units of the whole budget; adversarial directions come from power "
        "iteration, which needs no classifier. Means over images with 95 % confidence intervals."
    )
    heads = ["defense", "size", "length, l2"]
    heads += [f"{word}, {kind}" for kind in KINDS for word in ("rate", "draws that contract")]
    rows = [
        [
            name,
            f"{row['size']:g}",
            f"{row['length']:.2f}",
            *(
                text
                for kind in KINDS
                for text in (mean(row[kind]["rate"], ".3f"), cell(row[kind]["contracts"]))
            ),
        ]
        for name, summary in summaries.items()
        for row in summary["sizes"]
    ]
    blocks: list[Block] = [Paragraph(note), Table(heads, rows)]
    blind = [row.name for row in measured if row.compression.without_gradient]
    if blind:
        note = (
            f"Power iteration finds no worse direction than a random one for {', '.join(blind)}: "
            "either there is none, or the gradient is masked, and the adversarial rate is too low."
        )
        blocks.append(Paragraph(note, "notice"))
    if skipped:
        blocks.append(Paragraph(f"Left out, for they have no purifier: {', '.join(skipped)}."))
    points = [_point(row, summaries[row.name]) for row in measured if row.run is not None]
    blocks += [*_against(points), _rates_figure(summaries)]
    numbers = {"defenses": summaries, "runs": points, "skipped": skipped}
    records = [
        {"defense": name, **row} for name, entry in summaries.items() for row in entry["sizes"]
    ]
    arrays = {
        f"{row.name}/{key}": values
        for row in measured
        for key, values in row.compression.arrays().items()
    }
    title = "How far purification contracts perturbations"
    return write_analysis(folder, "compression", title, blocks, about, numbers, records, arrays)


def write_critical_eps(folder: Path, result: CriticalEps, about: About) -> Document:
    """Report what `analysis.critical_eps.critical_eps` returned."""
    summary = result.summary()
    text = (
        f"{summary['images']} images. The critical eps of an image is the budget in {result.norm} "
        "at which PGD starts to fool the majority of held-out draws, found by bisection. It is an "
        "upper bound: a stronger attack may need less."
    )
    rows = [
        ["wrong without an attack", cell(summary["wrong"])],
        [f"robust at the largest, {_budget(result, result.largest)}", cell(summary["unbroken"])],
    ]
    if summary["at_eps"] is not None:
        at_eps = f"robust at the spec's eps, {_budget(result, result.eps)}"
        rows.insert(1, [at_eps, cell(summary["at_eps"])])
    quartiles = [
        [f"{share} % of images", "above the largest" if at is None else _budget(result, at)]
        for share, at in summary["quartiles"].items()
    ]
    caption = (
        "Robust accuracy (by majority) at each budget: the share of images whose critical eps is "
        "above it."
    )
    figure = Figure("critical-eps.png", "Images not broken", caption, figures.surviving(result))
    blocks: list[Block] = [
        Paragraph(text),
        Table(["images", "share"], rows),
        Table(["share of images", "eps"], quartiles),
        figure,
    ]
    arrays = {"low": result.low, "high": result.high}
    title, records = "The critical eps of each image", summary["brackets"]
    return write_analysis(folder, "critical-eps", title, blocks, about, summary, records, arrays)


def _rates_figure(summaries: Mapping[str, Mapping[str, Any]]) -> Figure:
    caption = (
        "The compression rate against the size of perturbations, with 95 % confidence intervals. "
        "Below the dashed line, the purifier contracts."
    )
    return Figure("compression.png", "Compression rates", caption, figures.rates(summaries))


def _point(row: Measured, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a run for the figure of rates against accuracies."""
    assert row.run is not None
    at_budget = summary["sizes"][summary["budget_index"]]
    known = [
        entry["robust"]["per_draw"] for entry in row.run["known_noise"] if entry["knows"] == "both"
    ]
    attacked = bool(roles(row.run["spec"]["attacks"]).attacks)
    return {
        "name": row.name,
        "size": at_budget["size"],
        "rates": {kind: at_budget[kind]["rate"]["mean"] for kind in KINDS},
        "clean": _share(row.run["clean"]),
        "robust": row.run["robust"]["per_draw"] if attacked else None,
        "known": min(known, key=lambda share: share["accuracy"], default=None),
        "images": row.run["n"],
        "without_gradient": row.compression.without_gradient,
    }


def _share(share: Mapping[str, Any]) -> ShareEntry:
    return {"accuracy": share["accuracy"], "low": share["low"], "high": share["high"]}


def _against(points: list[dict[str, Any]]) -> list[Block]:
    """Return the table and figure of rates against accuracies; nothing if no run was attacked."""
    shown = [point for point in points if point["robust"] is not None]
    if not shown:
        return []
    heads = ["run", *(f"rate, {kind}" for kind in KINDS), "clean", "robust", "DW-box", "images"]
    rows = [
        [
            f"{number}. {point['name']}",
            *(f"{point['rates'][kind]:.3f}" for kind in KINDS),
            cell(point["clean"]),
            cell(point["robust"]),
            cell(point["known"]) if point["known"] else "-",
            str(point["images"]),
        ]
        for number, point in enumerate(shown, 1)
    ]
    caption = (
        f"Each point is a run, numbered as in the table; perturbations are {shown[0]['size']:g} "
        "times the budget, accuracies are per draw with 95 % confidence intervals. A purifier that "
        "maps all images to a single one contracts everything and is never right, so compare with "
        "the clean accuracy, too."
    )
    figure = Figure(
        "compression-robustness.png",
        "Compression against robust accuracy",
        caption,
        figures.against_robustness(shown),
    )
    blocks: list[Block] = [Table(heads, rows), figure]
    if len(shown) >= MIN_RUNS:
        blocks.insert(1, Paragraph(_correlation(shown)))
    return blocks


def _correlation(shown: Sequence[Mapping[str, Any]]) -> str:
    from scipy.stats import spearmanr

    correlations = []
    for key, word in (("robust", "robust accuracy"), ("known", "accuracy under DW-box")):
        points = [p for p in shown if p[key] is not None and not p["without_gradient"]]
        for kind in KINDS if len(points) >= MIN_RUNS else ():
            pair = [p["rates"][kind] for p in points], [p[key]["accuracy"] for p in points]
            if all(len(set(values)) > 1 for values in pair):
                rho: Any = spearmanr(*pair)
                correlations.append(f"{rho.statistic:.2f} ({kind}, {word}, {len(points)} runs)")
    if not correlations:
        return "There are too few different runs with attacks by gradient for a rank correlation."
    return f"Rank correlation (Spearman) of rate and accuracy: {', '.join(correlations)}."


def _budget(result: CriticalEps, eps: float) -> str:
    return f"{255 * eps:.2f}/255" if result.norm == "linf" else f"{eps:.3g}"
