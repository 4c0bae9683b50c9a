"""Compare reports of the public AutoAttack and of unfool on models whose worst case is known.

The script needs a checkout of https://github.com/fra31/auto-attack, which is not part of this package:

    git clone https://github.com/fra31/auto-attack
    python bench/public_autoattack.py --autoattack auto-attack

It prints a Markdown table, as in docs/selftest.md. The models are those of `unfool.toy.linear_models`;
each call of a random model uses fresh noise. Columns: the smallest accuracy per draw that any attack can
reach, in closed form; the robust accuracy that the public release reports; the accuracy per draw, in
closed form, on the images that it returns; then the same two for unfool, which reports on held-out draws.
Intervals are 95 %, over images (Wilson intervals for the public release).
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfool.attacks.autoattack import AutoAttack
from unfool.data import fetch
from unfool.defenses.purified_classifier import predict_draws
from unfool.noise import Noise
from unfool.statistics import Share, mean_rate_interval, wilson
from unfool.threat import Threat
from unfool.toy import linear_models

HEADS = (
    "| model | threat | public version | truth | public AutoAttack reports | on its images "
    "| unfool reports | on its images |"
)
# Maps images and labels to the true accuracy on each image.
AccuracyOf = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Run all models and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--autoattack", type=Path, required=True, help="a checkout of the release")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not (options.autoattack / "autoattack" / "autoattack.py").is_file():
        sys.exit(
            f"{options.autoattack} is no checkout of AutoAttack: clone it, and name its folder"
        )
    sys.path.insert(0, str(options.autoattack))
    torch.set_num_threads(1)
    print(HEADS, "|---|---|---|---:|---:|---:|---:|---:|", sep="\n")
    for row in rows():
        print(compare(*row, images=options.images, seed=options.seed), flush=True)


def rows() -> list[tuple[str, Any, Threat, tuple[str, ...], AccuracyOf, AccuracyOf]]:
    """Name, model, threat, versions, accuracy on given images, and worst accuracy near them."""
    linf, l2, coarse = Threat("linf", 0.035), Threat("l2", 0.2), Threat("linf", 0.05)

    def right_answers(model: Any, x: Tensor, y: Tensor) -> Tensor:
        return (model(x, Noise.of(0, range(len(x)))).argmax(1) == y).double()

    def guess_accuracy(p: float, x: Tensor, y: Tensor) -> Tensor:
        return torch.full((len(x),), p)

    def worst_behind_noise(threat: Threat, x: Tensor, y: Tensor) -> Tensor:
        return linear_models.accuracy(linear_models.worst_case(x, y, threat), y)

    def worst_behind_rounding(x: Tensor, y: Tensor) -> Tensor:
        return (linear_models.worst_case_rounded(x, y, coarse.eps) > 0).double()

    def worst_of_plane(x: Tensor, y: Tensor) -> Tensor:
        return (
            linear_models.signed_distances(linear_models.worst_case(x, y, coarse), y) > 0
        ).double()

    behind_noise, behind_rounding, huge_logits = (
        linear_models.noisy_plane(),
        linear_models.rounded_plane(),
        linear_models.LinearClassifier(1e6),
    )
    return [
        *(
            (
                f"coin of {p}",
                linear_models.RandomGuess(p),
                linf,
                ("rand",),
                partial(guess_accuracy, p),
                partial(guess_accuracy, p),
            )
            for p in (0.5, 0.7, 0.9)
        ),
        *(
            (
                "plane behind noise",
                behind_noise,
                threat,
                ("rand",),
                linear_models.accuracy,
                partial(worst_behind_noise, threat),
            )
            for threat in (linf, l2)
        ),
        (
            "plane behind rounding",
            behind_rounding,
            coarse,
            ("rand", "standard"),
            partial(right_answers, behind_rounding),
            worst_behind_rounding,
        ),
        (
            "plane of huge logits",
            huge_logits,
            coarse,
            ("rand", "standard"),
            partial(right_answers, huge_logits),
            worst_of_plane,
        ),
    ]


def compare(
    name: str,
    model: Any,
    threat: Threat,
    versions: tuple[str, ...],
    accuracy_of: AccuracyOf,
    worst_accuracy: AccuracyOf,
    images: int,
    seed: int,
) -> str:
    """Format the rows of a model: one per public version, next to our version `unfool`."""
    x, y = fetch(
        linear_models.Points(images, one_class=isinstance(model, linear_models.RandomGuess)),
        range(images),
    )
    noise, began = Noise.of(seed, range(images)), time.perf_counter()
    random = name.startswith("coin") or name.endswith("noise")
    # without noise, all draws are the same
    attack = (
        AutoAttack("unfool", "mean") if random else AutoAttack("unfool", "mean", eot=1, draws=4)
    )
    ours = attack(model, x, y, threat, noise.child("search"))
    draws = 20 if random else 1
    correct = predict_draws(model, ours, noise.child("verdict"), draws) == y[:, None]
    share = mean_rate_interval(correct.double().mean(1).tolist(), draws)
    took, lines = time.perf_counter() - began, []
    for version in versions:
        began = time.perf_counter()
        reported, theirs = public(model, x, y, threat, version, noise.child("public"), seed)
        print(
            f"{name}: unfool {took:.0f} s, {version} {time.perf_counter() - began:.0f} s",
            file=sys.stderr,
        )
        cells = [
            name, f"{threat.norm} {threat.eps}", version, _percent(float(worst_accuracy(x, y).mean())),
            _share(reported), _percent(float(accuracy_of(theirs, y).mean())),
            _share(share), _percent(float(accuracy_of(ours, y).mean())),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def public(
    model: Any, x: Tensor, y: Tensor, threat: Threat, version: str, noise: Noise, seed: int
) -> tuple[Share, Tensor]:
    """Run the public release: return the robust accuracy that it reports, and its images."""
    from autoattack import AutoAttack as Public  # pyright: ignore

    calls = 0

    def network(images: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        call_noise = noise.take([i % len(noise) for i in range(len(images))]).child(calls)
        return model(images, call_noise)

    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    attack = Public(network, norm, threat.eps, seed, False, version=version, device="cpu")
    if version == "standard":  # there are only 3 wrong classes
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 3
    images, answers = attack.run_standard_evaluation(x, y, bs=len(x), return_labels=True)
    return wilson(int((answers == y).sum()), len(y)), images


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _share(share: Share) -> str:
    return f"{_percent(share.value)} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


if __name__ == "__main__":
    main()
