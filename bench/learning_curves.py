"""Plot the losses of training runs over their steps: docs/learning-curves.png.

    python bench/learning_curves.py docs/learning-curves.png "small denoiser=runs/a/log.jsonl" ...

`unfool train` writes such a log into its folder. Each loss is the mean over the last 100 steps.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure


def main() -> None:
    """Draw one panel for each training run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("figure", type=Path, help="the PNG file to write")
    parser.add_argument("logs", nargs="+", metavar="TITLE=LOG", help="a title and a log.jsonl")
    options = parser.parse_args()
    figure = Figure(figsize=(3.2 * len(options.logs), 2.6), layout="constrained", dpi=110)
    panels = figure.subplots(1, len(options.logs), squeeze=False)[0]
    for panel, named in zip(panels, options.logs, strict=True):
        title, _, log = named.partition("=")
        lines = [json.loads(line) for line in Path(log).read_text("utf-8").splitlines()]
        panel.plot(
            [line["step"] for line in lines], [line["loss"] for line in lines], color="#0072b2"
        )
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.set_ylabel("training loss", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.figure)


if __name__ == "__main__":
    main()
