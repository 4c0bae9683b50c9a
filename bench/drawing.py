"""The figure of docs/speed.md."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLORS = {"one activation set": "#0072b2", "automatic": "#56b4e9", "all kept": "#009e73"}
REST = {
    "plain autograd": "#d55e00",
    "torch checkpoint": "#e69f00",
    "torchsde adjoint": "#999999",
}


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the time in units of the floor, and the peak memory against the number of steps."""
    colors = COLORS | REST
    figure = Figure(figsize=(9.5, 3.6), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    width = 0.8 / len(results["gradients"])
    for size_index, (size, times) in enumerate(results["gradients"].items()):
        names = [name for name in colors if name in times]
        for i, name in enumerate(names):
            low, middle, high = times[name]
            left.bar(
                i + size_index * width,
                middle,
                width * 0.92,
                color=colors[name],
                alpha=1 - 0.45 * size_index,
                yerr=[[middle - low], [high - middle]],
                ecolor="#444444",
                error_kw={"linewidth": 0.8},
            )
            left.text(
                i + size_index * width,
                0.12,
                size.split()[0] + " M",
                ha="center",
                rotation=90,
                fontsize=7,
                color="white",
            )
        left.set_xticks(
            [i + width / 2 for i in range(len(names))],
            [n.replace(" ", "\n", 1) for n in names],
            fontsize=7,
        )
    left.set_ylabel("time, in forwards of the network")
    left.set_title("a gradient (median, least, most)", fontsize=9)
    peaks = {
        int(name[4:]): times for name, times in results["peaks"].items() if name.startswith("N")
    }
    for name, color in colors.items():
        values = [times.get(name) for times in peaks.values()]
        if None not in values:
            right.plot(list(peaks), values, "o-", color=color, label=name, markersize=3.5)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xticks(list(peaks), [str(n) for n in peaks])
    right.minorticks_off()
    right.set_xlabel("steps N")
    right.set_ylabel("peak memory, MiB")
    right.set_title("peak memory, a U-Net of 16 x 16 pixels, 8 images", fontsize=9)
    right.legend(fontsize=7, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
