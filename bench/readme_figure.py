"""Draw the figure of README.md: CIFAR-10 results with intervals, and an image clean, attacked, purified.

    python bench/readme_figure.py --write docs

writes docs/readme-light.png and docs/readme-dark.png. The measured accuracies come from
bench/main-table.csv, which bench/main_table.py makes, and the claimed ones from bench/claims.yaml. The
images come from `cifar10-sample`; every run attacks and purifies them anew with the shipped models.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

import unfool
from claims import DATA as CLAIMS
from claims import Claim, Kind, read_claims
from main_table import Numbers, read_numbers

THREAT, BARE, DEFENDED = (
    "linf 8/255",
    "no defense, frozen classifier",
    "DiffPure, frozen classifier",
)
IMAGES = (10,)  # indices in cifar10-sample
BARS = (  # defense and condition in the file of numbers, name in the figure, kind of claim beside it
    (BARE, "transfer", "no defense, attacked", None),
    (DEFENDED, "clean", "defense, not attacked", "clean"),
    (DEFENDED, "transfer", "attack ignores the defense", None),
    (DEFENDED, "BPDA", "attack by a rough gradient (BPDA)", "bpda"),
    (DEFENDED, "exact", "attack by the exact gradient", "exact"),
)


@dataclass(frozen=True)
class Colors:
    """The colors of a variant of the figure, for light or dark mode."""

    paper: str
    ink: str
    gray: str
    grid: str
    bar: str
    worst: str
    right: str
    wrong: str


TITLE = "One defense, the same {} images of CIFAR-10: what you measure depends on the attacker"
VARIANTS = {
    "light": Colors(
        "#ffffff", "#1f2328", "#59636e", "#e4e7eb", "#5b8db8", "#c0552f", "#1a7f37", "#cf222e"
    ),
    "dark": Colors(
        "#0d1117", "#e6edf3", "#9198a1", "#2a3038", "#5b8db8", "#d9744f", "#3fb950", "#ff7b72"
    ),
}


@dataclass(frozen=True)
class Strip:
    """Images before and after an attack, and after purification.

    Attributes:
        title: The name of the attack.
        rows: For each image its three states: a name, an image (3, 32, 32), the classifier's answer,
            and whether that is right.
    """

    title: str
    rows: list[list[tuple[str, Tensor, str, bool]]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw both variants."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, required=True, metavar="FOLDER")
    folder = parser.parse_args(arguments).write
    numbers, strips = shown_numbers(), make_strips(IMAGES)
    claims = read_claims(CLAIMS)["diffpure"].claims
    for name, colors in VARIANTS.items():
        figure = draw(numbers, claims, strips, colors)
        figure.savefig(folder / f"readme-{name}.png", dpi=200, facecolor=colors.paper)


def shown_numbers() -> list[Numbers]:
    """Return the row of the file of numbers for each bar."""
    rows = {(r["defense"], r["condition"]): r for r in read_numbers() if r["threat"] == THREAT}
    return [rows[defense, condition] for defense, condition, _, _ in BARS]


def make_strips(indices: Sequence[int], steps: int = 20, eot: int = 10) -> list[Strip]:
    """Attack and purify images of `cifar10-sample`, without and with knowledge of the defense."""
    data = unfool.cifar10_sample()
    x, y = unfool.data.fetch(data, indices)
    noise, threat = unfool.Noise.of(0, indices), unfool.Threat("linf", 8 / 255)
    classifier = unfool.load_classifier("cifar10-classifier", device="cpu")
    denoiser = unfool.load_denoiser("cifar10-denoiser-small", device="cpu")
    purifier = unfool.DiffPure(denoiser, t=0.1, steps=2, sampler="ddpm")
    attacks = {
        "The attack ignores the defense": (classifier, unfool.PGD(steps=steps, loss="margin")),
        "The attack uses the exact gradient": (
            unfool.Purified(classifier, purifier),
            unfool.PGD(steps=steps, eot=eot, loss="margin"),
        ),
    }
    strips = []
    for title, (model, attack) in attacks.items():
        x_adv = attack(model, x, y, threat, noise.child("attack"))
        with torch.no_grad():
            states = {
                "clean": x,
                "attacked": x_adv,
                "purified": purifier(x_adv, noise.child("score")).clamp(0, 1),
            }
            answers = {name: classifier(image).argmax(1) for name, image in states.items()}
        rows = [
            [
                (
                    name,
                    image[i],
                    data.classes[int(answers[name][i])],
                    bool(answers[name][i] == y[i]),
                )
                for name, image in states.items()
            ]
            for i in range(len(x))
        ]
        strips.append(Strip(title, rows))
    return strips


def draw(
    numbers: Sequence[Numbers],
    claims: Sequence[Claim],
    strips: Sequence[Strip],
    colors: Colors,
) -> Figure:
    """Draw the chart above the strips, 8 inches wide."""
    font: dict[str, Any] = {"color": colors.ink, "fontsize": 10}
    height = 3.1 + 1.9 * len(strips[0].rows)
    figure = Figure(figsize=(8, height), layout="constrained")
    heights = (3.1, height - 3.1)
    above, below = figure.subfigures(2, 1, height_ratios=heights, hspace=0.03, squeeze=False)[:, 0]
    above.suptitle(TITLE.format(numbers[0]["images"]), fontweight="bold", **font)
    _chart(above.subplots(), numbers, claims, colors)
    parts = below.subfigures(1, len(strips), wspace=0.04, squeeze=False)[0]
    for part, strip in zip(parts, strips, strict=True):
        _strip(part, strip, colors, font)
    for part in (figure, above, below, *below.subfigs):
        part.set_facecolor(colors.paper)
    return figure


def _chart(axes: Axes, numbers: Sequence[Numbers], claims: Sequence[Claim], colors: Colors) -> None:
    for y, (row, (_, _, _, kind)) in enumerate(zip(numbers, BARS, strict=True)):
        value, low, high = (float(row[key]) for key in ("accuracy", "low", "high"))
        color = colors.worst if kind == "exact" else colors.bar
        label = "measured here, with 95 % interval" if kind == "clean" else None
        axes.barh(y, value, height=0.62, color=color, label=label)
        axes.plot([low, high], [y, y], color=colors.ink, linewidth=1.5)
        inside = low > 10  # else the bar has no room for its number
        place: dict[str, Any] = {"x": low - 1.2, "ha": "right", "color": colors.paper}
        if not inside:
            place = {"x": high + 1.2, "ha": "left", "color": colors.ink}
        axes.text(y=y, s=f"{value:.0f} %", fontweight="bold", fontsize=10, va="center", **place)
        claimed = _claimed(claims, kind)
        if claimed is not None:
            style: dict[str, Any] = {
                "marker": "D",
                "color": colors.ink,
                "markerfacecolor": colors.paper,
            }
            label = "claimed for DiffPure, with larger networks" if kind == "clean" else None
            axes.plot(claimed, y, linestyle="", markersize=7, label=label, **style)
            axes.text(claimed + 1.8, y, f"{claimed:.0f} %", color=colors.gray, va="center")
    axes.set_yticks(
        range(len(BARS)), [name for _, _, name, _ in BARS], fontsize=10, color=colors.ink
    )
    axes.set_xlim(0, 100)
    axes.set_ylim(len(BARS) - 0.5, -0.5)
    axes.grid(axis="x", color=colors.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_facecolor(colors.paper)
    axes.tick_params(length=0, labelcolor=colors.ink)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("correct answers, %", color=colors.gray)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 1.02), frameon=False, labelcolor=colors.gray)


def _claimed(claims: Sequence[Claim], kind: Kind | str | None) -> float | None:
    """The first claim of a kind, in percent; for `clean`, the first clean accuracy of any claim."""
    if kind == "clean":
        return next((claim.clean for claim in claims if claim.clean is not None), None)
    return next((claim.robust for claim in claims if kind and claim.like == kind), None)


def _strip(part: SubFigure, strip: Strip, colors: Colors, font: dict[str, Any]) -> None:
    part.suptitle(strip.title, fontweight="bold", **font)
    panels = part.subplots(len(strip.rows), 3, squeeze=False)
    for index, (line, row) in enumerate(zip(panels, strip.rows, strict=True)):
        for axes, (name, image, answer, right) in zip(line, row, strict=True):
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            color = colors.right if right else colors.wrong
            axes.set_xlabel(answer, color=color, fontsize=10, fontweight="bold", labelpad=4)
            for side in axes.spines.values():
                side.set(color=color, linewidth=2)
            if index == 0:
                axes.set_title(name, color=colors.gray, fontsize=10)


if __name__ == "__main__":
    main()
