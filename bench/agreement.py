"""Compare the robust accuracy of CIFAR-10 classifiers under the public AutoAttack and under ours.

The script needs a checkout of https://github.com/fra31/auto-attack, the files of CIFAR-10, and public
weights: those of ResNet-20 as for `cifar-resnet`, and those of the small adversarially trained networks
of VNN-COMP 2021 (resnet2b.pth and resnet4b.pth of its benchmark `cifar10_resnet`):

    python bench/agreement.py --autoattack auto-attack --data cifar10 --weights FOLDER --out agreement

It searches the folder of weights for files whose names begin with resnet20, resnet2b and resnet4b.
Results are kept in --out, so a second run resumes. It prints the Markdown table of docs/selftest.md:
per model and linf budget, on the first images of the test split, the robust accuracy under the public
`standard` and under our `standard` and `unfool`, with 95 % Wilson intervals, the number of images with
different verdicts, and the CPU seconds of each.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfool.attacks.autoattack import AutoAttack
from unfool.data import fetch
from unfool.data.cifar import cifar10
from unfool.models.build import cifar_resnet
from unfool.models.checkpoints import load_state, read_state
from unfool.models.classifiers import NormalizedClassifier
from unfool.noise import Noise
from unfool.runtime.files import write_bytes
from unfool.statistics import wilson
from unfool.threat import Threat

HEADS = (
    "| model | linf | clean | public, standard | ours, standard | ours, unfool "
    "| verdicts that differ | seconds |"
)
VERSIONS = ("public", "standard", "unfool")


class ConvexResNet(nn.Module):
    """A residual network of VNN-COMP 2021, without normalization, with 2 or 4 blocks."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        first = 4 * blocks
        self.conv1 = nn.Conv2d(3, first, 3, 2, 1)
        self.layer1 = nn.Sequential(Block(first, 2 * first, 2), Block(2 * first, 2 * first, 1))
        self.layer2 = nn.Sequential()
        if blocks == 4:
            self.layer2 = nn.Sequential(Block(32, 32, 2), Block(32, 32, 1))
        self.linear1, self.linear2 = nn.Linear(2048 // blocks, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10) of normalized images (B, 3, 32, 32)."""
        x = self.layer2(self.layer1(torch.relu(self.conv1(x))))
        return self.linear2(torch.relu(self.linear1(x.flatten(1))))


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W)."""
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


def main() -> None:
    """Run the attacks and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, help_text in {
        "autoattack": "a checkout of the release",
        "data": "the folder of CIFAR-10",
        "weights": "the folder of the weights",
        "out": "where results are kept",
    }.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=help_text)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.path.insert(0, str(options.autoattack))
    torch.set_num_threads(1)
    x, y = fetch(cifar10(options.data), range(options.images))
    print(HEADS, f"|{'---|' * 8}", sep="\n")
    for name in ("resnet20", "resnet2b", "resnet4b"):
        model = network(name, options.weights)
        for eps in (2, 8):
            threat = Threat("linf", eps / 255)
            results = {}
            for version in VERSIONS:
                path = options.out / f"{name}-{eps}-{version}-{len(x)}-{options.seed}.json"
                if not path.exists():
                    result = judged(model, x, y, threat, version, options.seed)
                    write_bytes(path, json.dumps(result).encode())
                results[version] = json.loads(path.read_text())
            print(line(name, eps, results), flush=True)


def network(name: str, folder: Path) -> NormalizedClassifier:
    """Load the classifier `name` with its weights from `folder`."""
    files = sorted(folder.rglob(f"{name}*"))
    if not files:
        sys.exit(f"{folder} has no weights whose name begins with {name}")
    if name == "resnet20":
        model = cifar_resnet(20, weights=files[0])
    else:
        blocks = ConvexResNet(int(name[6]))
        load_state(blocks, read_state(files[0]), name)
        model = NormalizedClassifier(blocks, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    return model.eval().requires_grad_(False)


def judged(
    model: NormalizedClassifier, x: Tensor, y: Tensor, threat: Threat, version: str, seed: int
) -> dict[str, Any]:
    """Run one version of AutoAttack: return which images are right, clean and attacked, and the time."""
    noise, began = Noise.of(seed, range(len(x))), time.process_time()
    if version == "public":
        from autoattack import AutoAttack as Public  # pyright: ignore

        attack = Public(
            lambda images: model(images, noise), "Linf", threat.eps, seed, False, device="cpu"
        )
        x_adv = attack.run_standard_evaluation(x, y, bs=len(x))
    else:
        attack = AutoAttack(version, eot=1, draws=4)  # pyright: ignore[reportArgumentType]
        x_adv = attack(model, x, y, threat, noise)
    took = time.process_time() - began
    inside = (x_adv - x).abs().amax() <= threat.eps + 1e-6 and 0 <= x_adv.min() <= x_adv.max() <= 1
    if not inside:
        sys.exit(f"the images of {version} are not within the threat")
    clean, robust = ((model(images, noise).argmax(1) == y).tolist() for images in (x, x_adv))
    return {"clean": clean, "robust": robust, "seconds": took}


def line(name: str, eps: int, results: dict[str, Any]) -> str:
    """Format one row of the table."""
    n = len(results["public"]["clean"])
    shares = [wilson(sum(results["public"]["clean"]), n)]
    shares += [wilson(sum(results[version]["robust"]), n) for version in VERSIONS]
    cells = [f"{100 * s.value:.1f} % [{100 * s.low:.1f}, {100 * s.high:.1f}]" for s in shares]
    differ = [
        sum(a != b for a, b in zip(results[v]["robust"], results["public"]["robust"], strict=True))
        for v in VERSIONS[1:]
    ]
    seconds = ", ".join(f"{results[version]['seconds']:.0f}" for version in VERSIONS)
    return (
        f"| {' | '.join([name, f'{eps}/255', *cells, ' and '.join(map(str, differ)), seconds])} |"
    )


if __name__ == "__main__":
    main()
