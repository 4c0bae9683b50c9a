"""Count the images that attacks send through the network, and compare with the public AutoAttack.

    git clone https://github.com/fra31/auto-attack
    python bench/calls.py --autoattack auto-attack          # prints the table of docs/speed.md

The shipped digits classifier, without a defense, is attacked with the published numbers of steps, targets
and queries. Work is the number of images in forward passes plus that in backward passes, whatever the
batches; CPU seconds are those of the process. Without `--autoattack`, only our attacks run. To compare
with another version, run this file with PYTHONPATH set to its `src`: `git worktree add ../before COMMIT`.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfool.attacks.apgd import APGD
from unfool.attacks.autoattack import AutoAttack
from unfool.attacks.fab import FAB
from unfool.attacks.square import Square
from unfool.data import fetch
from unfool.data.digits import digits
from unfool.models.card import trained_classifier
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.threat import Threat

STEPS, QUERIES = 100, 1000
ATTACKS = {
    "APGD-T": APGD(STEPS, loss="dlr", targets=9),
    "APGD, 5 restarts": APGD(STEPS, restarts=5),
    "FAB-T": FAB(STEPS, targets=9),
    "Square": Square(QUERIES),
    "AutoAttack standard": AutoAttack("standard", steps=STEPS, queries=QUERIES),
    "AutoAttack unfool": AutoAttack("unfool", steps=STEPS, queries=QUERIES),
}
HEADS = (
    "| attack | eps | robust | images forward, back | CPU s | public: robust | forward, back | CPU s "
    "| work |"
)


class Counted:
    """A model that can be called by our code and by the public code, and counts images."""

    def __init__(self, model: Classifier):
        self.model = model
        self.forward = self.back = 0

    def __call__(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """The logits."""
        self.forward += len(x)
        out = self.model(x, noise or Noise.of(0, range(len(x))))
        if out.requires_grad:
            out.register_hook(self._back)
        return out

    def _back(self, gradient: Tensor) -> None:
        self.back += len(gradient)

    def take(self) -> tuple[int, int]:
        """Return the images forward and back since the last call, and reset the counts."""
        taken, self.forward, self.back = (self.forward, self.back), 0, 0
        return taken


def public(name: str, model: Counted, eps: float, size: int) -> Callable[..., Any] | None:
    """The same attack in the public code; None if it has none."""
    import autoattack  # pyright: ignore[reportMissingImports]
    from autoattack import (  # pyright: ignore[reportMissingImports]
        autopgd_base,
        fab_pt,
        square,
    )

    options = {"norm": "Linf", "eps": eps, "seed": 0, "device": "cpu", "verbose": False}
    if name == "APGD-T":
        return autopgd_base.APGDAttack_targeted(model, n_iter=STEPS, **options).perturb
    if name == "APGD, 5 restarts":
        return autopgd_base.APGDAttack(model, n_iter=STEPS, n_restarts=5, **options).perturb
    if name == "FAB-T":
        return fab_pt.FABAttack_PT(model, n_iter=STEPS, targeted=True, **options).perturb
    if name == "Square":
        attack = square.SquareAttack(model, n_queries=QUERIES, resc_schedule=False, **options)
        return attack.perturb
    if name == "AutoAttack standard":
        attack = autoattack.AutoAttack(lambda x: model(x), "Linf", eps, 0, False, device="cpu")
        attack.square.n_queries = QUERIES
        return lambda x, y: attack.run_standard_evaluation(x, y, bs=size)
    return None


def row(name: str, model: Counted, x: Tensor, y: Tensor, eps: float, with_public: bool) -> str:
    """Run an attack, and the public one too if `with_public`; format a row of the table."""

    def measure(attack: Callable[[], Tensor]) -> tuple[float, tuple[int, int], float]:
        model.take()
        began = time.process_time()
        x_adv = attack()
        took, calls = time.process_time() - began, model.take()
        return float((model(x_adv).argmax(1) == y).double().mean()), calls, took

    threat, noise = Threat("linf", eps), Noise.of(0, range(len(x)))
    runs = [lambda: ATTACKS[name](model, x, y, threat, noise)]
    if with_public and (theirs := public(name, model, eps, len(x))):
        runs.append(lambda: theirs(x.clone(), y.clone()))
    cells, work = [name, f"{eps}"], []
    for run in runs:
        robust, (forward, back), took = measure(run)
        cells += [f"{100 * robust:.0f} %", f"{forward:,}, {back:,}", f"{took:.1f}"]
        work.append(forward + back)
    cells += [""] * (8 - len(cells))
    cells.append(f"{work[0] / work[1]:.2f}" if len(work) == 2 else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run all attacks and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--autoattack", type=Path, help="a checkout of the public code")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.05, 0.1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.autoattack:
        sys.path.insert(0, str(options.autoattack))
    x, y = fetch(digits(), range(options.images))
    model = trained_classifier("digits-classifier").eval().requires_grad_(False)
    print(HEADS, "|---|---:|---:|---:|---:|---:|---:|---:|---:|", sep="\n")
    for eps in options.eps:
        for name in ATTACKS:
            counted = Counted(model)
            print(row(name, counted, x, y, eps, bool(options.autoattack)), flush=True)


if __name__ == "__main__":
    main()
