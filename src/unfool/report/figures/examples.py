"""The images that a run kept, and their figures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unfool.report import document
from unfool.report.figures.style import (
    BLUE,
    EDGE,
    INK,
    RUST,
    WIDTH,
    blank,
    draw,
    draw_png,
    ground,
    legend,
    short,
    show,
)
from unfool.results.attack_roles import roles
from unfool.results.run_folder import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREEN, RED = "#1b6e35", "#b01f1f"
SHARED = ("times",)
SIGNS = {True: "\u2713", False: "\u2717"}
FEW_PIXELS = 100  # images with a longer side are not enlarged
THUMBNAIL = 256  # pixels of an image's longer side on a page, at most
Column = tuple[str, np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Gallery:
    """The images that a run kept, with the model's answers.

    Attributes:
        arrays: The arrays of `run/examples`, with one row per image, by index; `times` is shared.
        classes: The names of the classes.
        chosen: For each image, the condition that counts as its attack.
        sizes: For each image, the norm of that condition's change.
        changed: `attacked`, or `corrupted` if the run has corruptions but no attack.
    """

    arrays: dict[str, np.ndarray]
    classes: Sequence[str]
    chosen: Sequence[str]
    sizes: Sequence[float]
    changed: str = "attacked"

    @classmethod
    def of(cls, run: Run) -> Gallery | None:
        """Load the images of `run`; None if it kept none.

        Raises:
            RuntimeError: A file of the run is damaged.
        """
        outcomes = {outcome.index: outcome for outcome in run.outcomes()}
        blocks = [block for block in run.examples() if len(block["index"])]
        if not blocks:
            return None
        indices = np.concatenate([block["index"] for block in blocks])
        once = [i for i in np.unique(indices, return_index=True)[1] if int(indices[i]) in outcomes]
        if not once:
            return None
        keys = [key for key in blocks[0] if all(key in block for block in blocks)]
        arrays = {
            key: blocks[0][key]
            if key in SHARED
            else np.concatenate([block[key] for block in blocks])[once]
            for key in keys
        }
        shown = [outcomes[int(index)] for index in arrays["index"]]
        sizes = [outcome.conditions[outcome.chosen].size for outcome in shown]
        attacks, _, corruptions, _ = roles(run.spec["attacks"])
        return cls(
            arrays,
            run.manifest["classes"],
            [outcome.chosen for outcome in shown],
            sizes,
            "corrupted" if corruptions and not attacks else "attacked",
        )

    def __len__(self) -> int:
        return len(self.arrays["index"])

    def name(self, label: int) -> str:
        """Return the name of a class, shortened if it is long."""
        known = 0 <= label < len(self.classes)
        name = self.classes[label] if known else f"class {label}"
        return name if len(name) <= 14 else f"{name[:13]}…"


def _columns(gallery: Gallery, factor: float) -> list[Column]:
    """Return columns (title, images, answers): clean, attacked, difference, and both purified."""
    arrays = gallery.arrays
    difference = 0.5 + factor * (arrays["attacked"] - arrays["clean"])
    answer_key = "bare" if "clean_bare" in arrays else "answer"
    grid: list[Column] = [
        ("clean", arrays["clean"], arrays[f"clean_{answer_key}"]),
        (gallery.changed, arrays["attacked"], arrays[f"attacked_{answer_key}"]),
        (f"difference \u00d7 {factor:g}", difference, None),
    ]
    for key in ("clean", "attacked"):
        if f"{key}_purified" in arrays:
            title = f"{gallery.changed if key == 'attacked' else key},\npurified"
            grid.append((title, arrays[f"{key}_purified"], arrays[f"{key}_answer"]))
    return grid


def small_images(gallery: Gallery) -> dict[int, list[tuple[str, document.SmallImage]]]:
    """Return index to titled versions of an image; empty if the images need no enlarging."""
    if max(gallery.arrays["clean"].shape[2:]) > FEW_PIXELS:
        return {}
    grid = _columns(gallery, magnification(gallery, len(gallery)))
    heads = [title.replace("\n", " ") for title, _, _ in grid]
    return {
        int(index): list(zip(heads, _row(gallery, grid, row), strict=True))
        for row, index in enumerate(gallery.arrays["index"])
    }


def image_grid(gallery: Gallery, limit: int = 8) -> document.Figure:
    """Draw each image clean, attacked, the difference, and both purified, with the answers."""
    arrays, count, factor = gallery.arrays, min(len(gallery), limit), magnification(gallery, limit)
    grid = _columns(gallery, factor)
    figure = blank(1.3 + 1.05 * len(grid), 0.45 + 1.26 * count)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # pyright: ignore
    cells = figure.subplots(count, len(grid), squeeze=False)
    for row in range(count):
        truth = int(arrays["label"][row])
        for column, (title, images, answers) in enumerate(grid):
            axes: Axes = cells[row, column]
            show(axes, images[row])
            for edge in axes.spines.values():
                edge.set(color=EDGE, linewidth=0.6)
            if row == 0:
                axes.set_title(title, fontsize=9, color=INK)
            if answers is not None:
                _answer(axes, gallery.name(int(answers[row])), int(answers[row]) == truth)
            else:
                axes.set_xlabel(_size(gallery, row), fontsize=8.5, color=INK, labelpad=2)
        about = "\n".join(_about(gallery, row))
        side: Axes = cells[row, 0]
        side.set_ylabel(
            about, rotation=0, ha="right", va="center", fontsize=8, color=INK, parse_math=False
        )
    title, caption = "What the model saw", _about_images(gallery, count, factor)
    rendered = document.Figure("figures/images.png", title, caption, draw_png(figure))
    if max(arrays["clean"].shape[2:]) > FEW_PIXELS:
        return rendered
    heads = [title.replace("\n", " ") for title, _, _ in grid]
    rows = [(_about(gallery, row), _row(gallery, grid, row)) for row in range(count)]
    return document.ImageGrid(**vars(rendered), heads=heads, rows=rows)


def _row(gallery: Gallery, grid: Sequence[Column], row: int) -> list[document.SmallImage]:
    """Return the images of a row of the grid in their own pixels."""
    row_images, truth = [], int(gallery.arrays["label"][row])
    for _, images, answers in grid:
        if answers is None:
            row_images.append(document.SmallImage(image_file(images[row]), _size(gallery, row)))
            continue
        right = int(answers[row]) == truth
        about = f"{SIGNS[right]} {gallery.name(int(answers[row]))}"
        row_images.append(document.SmallImage(image_file(images[row]), about, right))
    return row_images


def image_file(image: np.ndarray) -> bytes:
    """Encode an image (C, H, W), clipped to [0, 1], as a PNG file; shrink it if it is large."""
    from PIL import Image

    buffer, shades = io.BytesIO(), (255 * image.clip(0, 1)).round().astype(np.uint8)
    pixels = shades.transpose(1, 2, 0) if len(image) == 3 else shades.mean(0).astype(np.uint8)
    file_image = Image.fromarray(pixels)
    file_image.thumbnail((THUMBNAIL, THUMBNAIL))
    file_image.save(buffer, "PNG")
    return buffer.getvalue()


def _about(gallery: Gallery, row: int) -> list[str]:
    """Return the lines before a row: the true class, the image's index, and its condition."""
    arrays = gallery.arrays
    name, number = gallery.name(int(arrays["label"][row])), arrays["index"][row]
    return [f"true: {name}", f"no. {number}", short(gallery.chosen[row])]


def _size(gallery: Gallery, row: int) -> str:
    return f"size {gallery.sizes[row]:.3g}" if gallery.sizes[row] else "no change"


def confidence(gallery: Gallery) -> document.Figure:
    """Draw the confidence during purification of every image and their mean, clean and attacked.

    The panels show the true class, the adversarial class (the wrong answer of the classifier without its
    defense to the attacked image; for corruptions, the mistaken class), and the most likely class.
    """
    arrays, times = gallery.arrays, gallery.arrays["times"]
    every = np.ones(len(gallery), dtype=bool)
    panels = [("sure", "in the true class", every)]
    if "clean_fooled" in arrays:
        fooled = arrays["attacked_bare"] != arrays["label"]
        wrong = "adversarial" if gallery.changed == "attacked" else "mistaken"
        panels += [("fooled", f"in the {wrong} class", fooled)] if fooled.any() else []
        panels.append(("surest", "in the most likely class", every))
    figure = blank(WIDTH, 3.3)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (kind, title, mask) in zip(row, panels, strict=True):
        for key, color, dashes in (("clean", BLUE, "-"), ("attacked", RUST, "--")):
            confidences = 100 * arrays[f"{key}_{kind}"][mask]
            axes.plot(times, confidences.T, color=color, linestyle=dashes, linewidth=0.7, alpha=0.4)
            mean = confidences.mean(0)
            label = gallery.changed if key == "attacked" else key
            axes.plot(times, mean, color=color, linestyle=dashes, linewidth=2.6, label=label)
        axes.set_title(f"{title} ({mask.sum()})", fontsize=9, color=INK)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlim(float(times.max()), 0)
        axes.set_ylim(-3, 103)
        ground(axes)
    row[0].set_ylabel("confidence, %", fontsize=9, color=INK)
    figure.supxlabel("diffusion time, from t* to 0 (purified)", fontsize=9, color=INK)
    legend(figure, row[0], 2)
    title, caption = "Along the purification", _about_confidence(gallery)
    return document.Figure("figures/confidence.png", title, caption, draw(figure))


def magnification(gallery: Gallery, limit: int = 8) -> float:
    """Return the factor by which the figure of images magnifies the difference: 1, 2, 5, 10, ..."""
    delta = gallery.arrays["attacked"][:limit] - gallery.arrays["clean"][:limit]
    return magnify(float(np.abs(delta).max()))


def magnify(largest: float) -> float:
    """Return the largest factor of 1, 2, 5, 10, ... that keeps a change around gray in range."""
    if not largest:
        return 1
    steps = [a * 10**b for b in range(4) for a in (1, 2, 5)]
    return max([step for step in steps if step * largest <= 0.5 + 1e-4], default=1)


def _answer(axes: Axes, name: str, right: bool) -> None:
    color = GREEN if right else RED
    size = 8.5 if len(name) <= 9 else 7
    axes.set_xlabel(
        f"{SIGNS[right]} {name}", fontsize=size, color=color, labelpad=2, parse_math=False
    )


def _about_images(gallery: Gallery, shown: int, factor: float) -> str:
    attacked = gallery.changed == "attacked"
    condition = "the attack that counts" if attacked else "the corruption that hurts it most"
    text = (
        f"The first {shown} images of the run, not a selection. On the left are the true class, "
        f"the image's number, and {condition}. "
    )
    if "clean_purified" in gallery.arrays:
        text += (
            "Below the first two columns is the answer of the classifier without its defense, and "
            "below the purified images that of the defended model, for one draw of its noise. "
        )
    else:
        text += "Below each image is the model's answer. "
    text += "\u2713 is right, \u2717 wrong. "
    return text + (
        f"The difference is magnified {factor:g} times; gray means no change, and the number below "
        "is its size in the threat's norm."
    )


def _about_confidence(gallery: Gallery) -> str:
    text = (
        "The softmax confidence of the classifier during purification, from time t* (left) to the "
        "purified image (right). Thin lines are images, thick lines their mean; the title of each "
        f"panel gives their number. A defense that works brings the {gallery.changed} images "
        "(dashed) up to the clean ones (solid) in the true class."
    )
    if "clean_fooled" in gallery.arrays:
        text += (
            f" The {'adversarial' if gallery.changed == 'attacked' else 'mistaken'} class is what the "
            f"classifier without its defense answers to the {gallery.changed} image, where that is "
            "wrong."
        )
    return text
