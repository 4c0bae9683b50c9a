"""Compare the held-out loss of denoisers on the same images, times and noise.

    python bench/heldout_loss.py cifar10-denoiser-small FOLDER --data CIFAR --images 1000

The others are compared with the first denoiser. Because all of them get the same noise, 1,000 images
suffice to show a difference of 0.2 % of the loss.
"""

import argparse

import torch
from torch import Tensor

from unfool import spec as specs
from unfool.data import fetch
from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.models.card import trained_denoiser
from unfool.noise import Noise
from unfool.statistics import mean_interval
from unfool.training.objectives.denoising import denoising_loss

TIMES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
BATCH = 100


def main() -> None:
    """Print a table: a row for each denoiser, a column for each time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("denoisers", nargs="+", help="shipped names, or folders with a card")
    parser.add_argument("--data", help="the folder of the data set")
    parser.add_argument("--name", default="cifar10", help="the data set")
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    part = specs.check_data({"name": options.name, "split": "test"}, options.data)
    x, _ = fetch(specs.build("data", part), range(options.images))
    print("| denoiser | " + " | ".join(f"t = {t}" for t in TIMES) + " |")
    print("|---|" + "---|" * len(TIMES))
    first: list[Tensor] = []
    for name in options.denoisers:
        denoiser = trained_denoiser(name)
        if not isinstance(denoiser, NetworkDenoiser):
            raise SystemExit(f"{name} is not a network that was trained by a denoising loss")
        measured = [losses(denoiser, x, t) for t in TIMES]
        first = first or measured
        cells = [
            cell(one, base, alone=measured is first)
            for one, base in zip(measured, first, strict=True)
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


@torch.inference_mode()
def losses(denoiser: NetworkDenoiser, x: Tensor, t: float) -> Tensor:
    """The loss (B,) of each image (B, C, H, W) at time `t`; its noise depends only on its position."""
    parts = []
    for first in range(0, len(x), BATCH):
        images = x[first : first + BATCH]
        noise = Noise.of(77, range(first, first + len(images))).child(f"held{t}")
        labels = torch.zeros(len(images), dtype=torch.long)
        z = denoiser.encode(images)
        parts.append(denoising_loss(denoiser, z, torch.tensor(t), labels, noise.normal(images)))
    return torch.cat(parts)


def cell(losses: Tensor, base: Tensor, alone: bool) -> str:
    """The mean loss, or its change in percent of the first denoiser's loss, with a 95 % interval."""
    if alone:
        return f"{float(losses.mean()):.5f}"
    change = mean_interval((100 * (losses - base) / base.mean()).tolist())
    return f"{change.mean:+.2f} % [{change.low:+.2f}, {change.high:+.2f}]"


if __name__ == "__main__":
    main()
