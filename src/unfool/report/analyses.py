"""The reports of `unfool analyze`: gradients, purification, samples, trajectories, landscape.

Each function writes a report into a folder as `NAME.{html,md,json,csv,npz}`, with its figures, and
returns it. `about` holds the `command`, the provenance as `made`, and further entries for the JSON file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unfool.analysis.gradients import Gradients
from unfool.analysis.landscape import Landscape
from unfool.analysis.purification import ATTACKED, CLEAN, PURE, Purification
from unfool.analysis.samples import REAL, Samples
from unfool.analysis.trajectories import Trajectories, stack_iterates
from unfool.report.document import (
    Block,
    Code,
    Definitions,
    Document,
    Figure,
    Heading,
    Paragraph,
    Table,
    Tile,
    Tiles,
)
from unfool.report.figures import analyses as figures
from unfool.report.figures import trajectories as paths
from unfool.report.figures.analyses import METRICS
from unfool.report.formatting import cell, duration, interval, mean
from unfool.report.provenance import start_entries
from unfool.report.write import write_document
from unfool.runtime.provenance import Made
from unfool.statistics import percent

About = Mapping[str, Any]


def write_gradients(folder: Path, result: Gradients, about: About) -> Document:
    """Report what `analysis.gradients.compare_gradients` returned.

    `about` also holds the `loss`, and the number of `draws` of the noise.
    """
    summary = result.summary()
    kind = "float64" if summary["in_float64"] else "float32, as the model refuses float64"
    text = (
        f"{summary['images']} images with {about['draws']} draws of the defense's noise each, the "
        f"same for every gradient. The loss is `{about['loss']}`. Finite differences use "
        f"{summary['directions']} random directions, in {kind}. Means over images with 95 % "
        f"confidence intervals. A forward pass takes {1000 * summary['forward_seconds']:.1f} ms "
        "per image."
    )
    heads = ["gradient", "cosine with the exact gradient", "same sign", "relative error"]
    heads += [
        "error against finite differences",
        "time, in forward passes",
        "memory of graphs, MiB",
    ]
    rows = [
        [
            row["variant"],
            *(_near_zero(row[key]) for key in ("cosine", "sign", "error", "slope_error")),
            f"{row['forwards']:.2f}",
            f"{row['graph_bytes'] / 2**20:.2f}",
        ]
        for row in summary["variants"]
    ]
    caption = (
        "Left: the cosine between every two gradients, averaged over images. Right: the cosine "
        "with the exact gradient, image by image."
    )
    missing = [f"No {name} gradient: {why}." for name, why in summary["missing"].items()]
    figure = Figure("gradients.png", "Cosines of gradients", caption, figures.cosines(result))
    blocks = [Paragraph(text), Table(heads, rows), *map(Paragraph, missing), figure]
    arrays = {
        "variants": np.array([variant.name for variant in result.variants]),
        "gradients": result.gradients,
        "directions": result.directions,
        "slopes": result.slopes,
    }
    return write_analysis(
        folder,
        "gradients",
        "Gradients of a defense",
        blocks,
        about,
        summary,
        summary["variants"],
        arrays,
    )


def write_purification(folder: Path, result: Purification, about: About) -> Document:
    """Report what `analysis.purification.purification` returned."""
    summary = result.summary()
    metrics = list(next(iter(result.distances.values())))
    rows = [
        [row["row"], *(mean(row.get(metric), ".3f") for metric in metrics), cell(row["accuracy"])]
        for row in summary["rows"]
    ]
    closer = ", ".join(f"{cell(share)} by {METRICS[m]}" for m, share in summary["closer"].items())
    blocks = [
        Paragraph(_about_purification(summary)),
        Tiles(
            [
                Tile(
                    percent(row["accuracy"]["accuracy"]),
                    f"right on {row['row']} images",
                    f"95 % interval {interval(row['accuracy'])}",
                )
                for row in summary["rows"]
                if row["row"] in (ATTACKED, f"{ATTACKED}, {PURE}", f"{CLEAN}, {PURE}")
            ]
        ),
        Table(["image", *(METRICS[metric] for metric in metrics), "accuracy"], rows),
        Paragraph(
            "Share of attacked images that purification brings closer to the clean image: "
            f"{closer}."
        ),
        Paragraph(
            "Length of the perturbation after purification with the same draw, if it was 1 before: "
            f"{mean(summary['remaining'], '.3f')}. (The attack changed {summary['changed']} of the "
            f"{summary['images']} images.)"
        ),
        Figure(
            "purification.png",
            "Distance to the clean image",
            "One value per image (mean over draws), and the mean over images. A higher SSIM is "
            "closer.",
            figures.distances(result, metrics),
        ),
        Figure(
            "purification-images.png",
            "The first images",
            "The images for the first draw, as the classifier gets them (clipped to [0, 1] for "
            "display).",
            figures.purified_images(result),
        ),
    ]
    arrays = {
        f"{row}/{metric}": values
        for row, measured in result.distances.items()
        for metric, values in measured.items()
    }
    arrays |= {f"{row}/correct": values for row, values in result.correct.items()}
    arrays |= {f"{row}/images": values for row, values in result.images.items()}
    arrays["remaining"] = result.remaining
    title = "What purification does to images"
    return write_analysis(
        folder, "purification", title, blocks, about, summary, summary["rows"], arrays
    )


def write_samples(folder: Path, result: Samples, about: About) -> Document:
    """Report what `analysis.samples.samples` returned."""
    summary = result.summary()
    text = (
        f"The distance between {summary['size']} images and as many real ones: the mean over "
        f"{summary['sets']} sets with a 95 % confidence interval. The row {REAL} shows the "
        "distance between two sets of real images. This is not FID: the features are those of this "
        "classifier, so numbers of other classifiers or set sizes cannot be compared."
    )
    rows = [[name, mean(value, ".3g")] for name, value in summary["frechet"].items()]
    drawing = figures.generated_images(result)
    blocks = [
        Paragraph(text),
        Table(["images", "Fréchet distance over the classifier's features"], rows),
        Figure(
            "samples.png",
            "The first generated images",
            "All models start from the same noise.",
            drawing,
        ),
    ]
    arrays = {f"{name}/distances": np.array(values) for name, values in result.distances.items()}
    arrays |= {f"{name}/images": images.cpu().numpy() for name, images in result.images.items()}
    title = "Generated images compared with real ones"
    records = [{"images": name, **value} for name, value in summary["frechet"].items()]
    return write_analysis(folder, "samples", title, blocks, about, summary, records, arrays)


def write_trajectories(folder: Path, result: Trajectories, about: About) -> Document:
    """Report what `analysis.trajectories.trajectories` returned, with figures of the first image."""
    summary, (points, slices) = result.summary(), stack_iterates(result.runs, 0)
    introduction = (
        f"{summary['images']} images. Losses and accuracies are those at the ends of the runs, for "
        f"the noise that DW-box knows and for {summary['draws']} fresh draws; cosines compare the "
        "perturbations there. Means over images with 95 % confidence intervals."
    )
    heads = ["setting", "runs", "loss, known noise", "right, known noise"]
    heads += ["loss, fresh noise", "right, fresh noise"]
    rows = []
    for row in summary["settings"]:
        pairs = [
            (mean(row["loss"][kind], ".2f"), cell(row["accuracy"][kind])) for kind in paths.KINDS
        ]
        rows.append([row["setting"], str(row["runs"]), *(text for pair in pairs for text in pair)])
    cosines = [[_pair(row["between"]), mean(row["cosine"], ".2f")] for row in summary["cosines"]]
    blocks = [Paragraph(introduction), Table(heads, rows), Table(["ends of", "cosine"], cosines)]
    arrays = {}
    for name, flat_points, axes in (
        ("trajectories", paths.principal_components(points), "principal components"),
        ("trajectories-tsne", paths.t_sne(points), "axes of t-SNE, where lengths mean little"),
    ):
        caption = (
            "All iterates of all runs from one image. The height is the loss: left, with the noise "
            "that DW-box knows; right, with fresh noise. The horizontal axes are the first two "
            f"{axes}."
        )
        drawing = paths.paths(result, flat_points, slices)
        blocks.append(Figure(f"{name}.png", "Paths of all runs", caption, drawing))
        arrays |= {f"{name}/{run}/{number}": flat_points[span] for run, number, span in slices}
    for name, runs in result.runs.items():
        arrays |= {f"{name}/ends": runs.ends, f"{name}/paths": runs.paths}
        arrays |= {f"{name}/height-{kind}": height for kind, height in runs.heights.items()}
        arrays |= {f"{name}/loss-{kind}": loss for kind, loss in runs.losses.items()}
        arrays |= {f"{name}/accuracy-{kind}": share for kind, share in runs.accuracies.items()}
    title, records = "Paths of attacks", summary["settings"]
    return write_analysis(folder, "trajectories", title, blocks, about, summary, records, arrays)


def write_landscapes(folder: Path, landscapes: Mapping[str, Landscape], about: About) -> Document:
    """Report what `analysis.landscape.landscape` returned for each model, by its name."""
    caption = (
        "The loss in the plane of two attacks from one image. The horizontal axis is the final "
        "perturbation of DW-box (at 1), the vertical axis the part of the white-box (EOT) "
        "perturbation that is orthogonal to it (at 1). Lines are the iterates of both attacks, "
        "projected onto the plane. All panels share one scale."
    )
    summary = {
        name: {
            "loss at the image": {k: float(getattr(landscape, k)[0, 0]) for k in paths.KINDS},
            "highest loss": {k: float(getattr(landscape, k).max()) for k in paths.KINDS},
            "outside the plane": landscape.outside,
        }
        for name, landscape in landscapes.items()
    }
    arrays: dict[str, np.ndarray] = {}
    for name, landscape in landscapes.items():
        values = {"along": landscape.along, "known": landscape.known, "fresh": landscape.fresh}
        values |= {"directions": landscape.directions, **landscape.paths}
        arrays |= {f"{name}/{key}": np.asarray(value) for key, value in values.items()}
    title = "The loss around an image"
    blocks = [Figure("landscape.png", title, caption, paths.surfaces(landscapes))]
    records = [{"model": name, **values} for name, values in summary.items()]
    return write_analysis(
        folder, "landscape", title, blocks, about, {"models": summary}, records, arrays
    )


def write_analysis(
    folder: Path,
    name: str,
    title: str,
    blocks: Sequence[Block],
    about: About,
    summary: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    arrays: Mapping[str, np.ndarray],
) -> Document:
    """Write the report of an analysis into a folder, with its record and its command below."""
    provenance = about.get("environment")
    record = [Heading("Record"), Definitions(_record(provenance))] if provenance else []
    below = [*record, Heading("How to reproduce it"), Code(about["command"])]
    document = Document(title, [*blocks, *below], f"unfool analyze {name}")
    write_document(folder, name, document, {"version": 1, **about, **summary}, records, arrays)
    return document


def _record(provenance: Made) -> list[tuple[str, str]]:
    entries = start_entries([provenance])
    entries.insert(1, ("duration", duration(provenance["seconds"])))
    return entries


def _about_purification(summary: Mapping[str, Any]) -> str:
    sigma = summary["pixel_noise"]
    noise = (
        "Noise only means the image with the defense's forward noise (standard deviation "
        f"{sigma:.3f} in [0, 1]), not denoised."
        if sigma
        else "This purifier adds no noise to the image, so there is no control with noise only."
    )
    return (
        f"{summary['images']} images with {summary['draws']} draws of the defense's noise each, "
        "the same for clean and attacked images. Distances are to the clean image; means over "
        "images with 95 % confidence intervals. Accuracy is the classifier's on that image, per "
        f"draw. {noise}"
    )


def _near_zero(value: Mapping[str, float]) -> str:
    """Format a mean that may be tiny, with its interval unless that is narrow."""

    def formatted(value: float) -> str:
        return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.0e}"

    if max(abs(value[key] - value["mean"]) for key in ("low", "high")) < 5e-4:
        return formatted(value["mean"])
    return f"{formatted(value['mean'])} [{formatted(value['low'])}, {formatted(value['high'])}]"


def _pair(names: Sequence[str]) -> str:
    return f"{names[0]}, run by run" if names[0] == names[1] else " and ".join(names)
