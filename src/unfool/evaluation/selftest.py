"""Self-test of this installation: intervals, attacks, and verdicts on models with known answers.

Every check compares a measured value with a closed form (`toy.linear_models`). The noise is fixed,
so a check that passes once passes always, on any machine.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from unfool.attacks.apgd import APGD
from unfool.attacks.autoattack import AutoAttack
from unfool.attacks.deepfool import DeepFool
from unfool.attacks.fab import FAB
from unfool.attacks.pgd import PGD
from unfool.attacks.square import Square
from unfool.data import fetch
from unfool.defenses.purified_classifier import predict_draws
from unfool.evaluation import run as evaluation
from unfool.evaluation import selftest_attacks
from unfool.evaluation.selftest_check import TOLERANCE, Check, reaches
from unfool.noise import Noise
from unfool.protocols import Attack
from unfool.results.outcome import Condition, Outcome
from unfool.results.report_json import Summary
from unfool.results.summary import Judged, judge, summarize_run
from unfool.runtime.progress import progress
from unfool.spec import Part, RawSpec
from unfool.statistics import wilson
from unfool.threat import Threat
from unfool.toy import linear_models

COVERAGE_RANGE = (0.92, 0.99)  # allowed coverage of 95 % intervals, estimated from `RUNS` runs
RUNS = 400
IMAGES = 48
COINS = (0.5, 0.7, 0.9)
BUDGETS = {"linf": 0.035, "l2": 0.2}  # for attacks on the noisy plane
COVERAGE_95 = "coverage of 95 %"
TOY_MODULE = "unfool.toy.linear_models:"

EFFORT: dict[str, Any] = {"steps": 20, "eot": 10}
AGAINST_NOISE: dict[str, Attack] = {
    "PGD": PGD(**EFFORT),
    "APGD": APGD(**EFFORT),
    "FAB": FAB(**EFFORT, targets=1, selection_draws=40),
    "DeepFool": DeepFool(**EFFORT, targets=1, selection_draws=40),
    "PGD, weighed draws": PGD(**EFFORT, loss="margin", weights="em"),
    "Square": Square(800, eot=4, selection_draws=40),
    "AutoAttack rand": AutoAttack("rand", **EFFORT),
    "AutoAttack unfool": AutoAttack("unfool", "mean", **EFFORT, queries=1000, targets=1),
}
AGAINST_COINS: list[Part] = [
    {"name": "pgd", "steps": 5, "eot": 4},
    {"name": "apgd", "steps": 5, "eot": 4},
    {"name": "fab", "steps": 5, "eot": 4, "targets": 1},
    {"name": "square", "queries": 20, "eot": 4},
    {"name": "autoattack", "version": "rand", "steps": 5, "eot": 4, "label": "rand"},
    {"name": "autoattack", "steps": 5, "eot": 4, "queries": 100, "targets": 1},
]

Job = Callable[[], Iterator[Check]]


def run(device: str = "cpu", quiet: bool = False) -> list[Check]:
    """Run all checks.

    Args:
        device: Where the models compute.
        quiet: Show no progress.

    Raises:
        RuntimeError: An evaluation failed.
    """
    checks: list[Check] = []
    todo = jobs(device)
    with progress("checking", len(todo), quiet=quiet) as show:
        for done, job in enumerate(todo, 1):
            checks += job()
            show(done, "" if all(check.ok for check in checks) else "a check failed")
    return checks


def jobs(device: str) -> list[Job]:
    """Return the jobs of the self-test, each of which makes a few checks."""
    # Under l2, Square adds bumps at least 3 pixels wide, which cannot form an arbitrary direction.
    tried = [
        (norm, {name: attack})
        for norm in BUDGETS
        for name, attack in AGAINST_NOISE.items()
        if (norm, name) != ("l2", "Square")
    ]
    return [
        wilson_covers,
        images_cover,
        *(partial(coin_covers, p, device) for p in COINS),
        *(partial(coin_holds, p, device) for p in COINS),
        *(partial(noisy_plane, norm, attack, device) for norm, attack in tried),
        *(partial(nearest, norm, device) for norm in BUDGETS),
        partial(selftest_attacks.sparse, device),
        partial(selftest_attacks.perceptual, device),
        partial(selftest_attacks.boundaries, device),
        partial(selftest_attacks.low_frequency, device),
        partial(selftest_attacks.per_step_gradient, device),
        partial(rounded, device),
        partial(saturated, device),
    ]


def wilson_covers(n: int = 80) -> Iterator[Check]:
    """Check the coverage of Wilson's interval for 97 coins, by exact sums over `n` throws."""
    intervals, covered = [wilson(hits, n) for hits in range(n + 1)], 0.0
    coins = [i / 98 for i in range(1, 98)]
    for p in coins:
        chances = stats.binom.pmf(range(n + 1), n, p)
        covered += sum(c for c, s in zip(chances, intervals, strict=True) if s.low <= p <= s.high)
    share = float(covered) / len(coins)
    yield Check(f"97 coins: {COVERAGE_95}", "Wilson", "coverage", 0.95, share, 0.94, 0.96)


def images_cover(n: int = 60, draws: int = 10) -> Iterator[Check]:
    """Check the interval of the mean when images differ: half are always right, half rarely."""
    truth, covered = (1 + 0.1) / 2, 0
    for seed in range(RUNS):
        noise = Noise.of(seed, range(n))
        hard = noise.child("hard").uniform(torch.zeros(n, 1)) < 0.5
        rates = torch.where(hard, 0.1, 1.0)
        share = _judged(noise.child("draws").uniform(torch.zeros(n, draws)) < rates).per_draw
        covered += share.low <= truth <= share.high
    yield _coverage("images that differ", "per draw", covered)


def coin_covers(p: float, device: str = "cpu", n: int = 40, k: int = 5) -> Iterator[Check]:
    """Check the intervals of a coin's three readings, over evaluations with different seeds."""
    coin, (x, y) = linear_models.RandomGuess(p), _points(n, device, one_class=True)
    truths, covered = _readings(p, k), dict.fromkeys(_readings(p, k), 0)
    for seed in range(RUNS):
        chosen = predict_draws(coin, x, Noise.of(seed, range(n)).child("verdict"), k)
        judged = _judged((chosen == y[:, None]).cpu())
        for name, truth in truths.items():
            share = getattr(judged, name)
            covered[name] += share.low <= truth <= share.high
    for name in truths:
        yield _coverage(_coin(p), _title(name, k), covered[name])


def coin_holds(
    p: float, device: str = "cpu", attacks: list[Part] | None = None, k: int = 9
) -> Iterator[Check]:
    """Check that the intervals of an evaluation contain the truth when a coin is attacked.

    For each reading, the lowest accuracy that the evaluation reports counts.
    """
    rows = AGAINST_COINS if attacks is None else attacks
    spec: RawSpec = {
        "data": {"name": f"{TOY_MODULE}Points", "size": 2 * IMAGES, "one_class": True},
        "classifier": {"name": f"{TOY_MODULE}RandomGuess", "p": p},
        "threat": {"norm": "linf", "eps": 0.1},
        "attacks": rows,
        "evaluation": {"draws": k},
    }
    summary = _evaluated(spec, device)
    readings = [summary["robust"], *(attack["robust"] for attack in summary["attacks"])]
    for name, truth in _readings(p, k).items():
        share = min((r[name] for r in readings), key=lambda s: s["accuracy"])
        measured = share["accuracy"]
        low, high = truth - (share["high"] - measured), truth + (measured - share["low"])
        part = f"{_coin(p)} under {len(rows)} attacks"
        yield Check(part, _title(name, k), "accuracy", truth, measured, low, high)


def noisy_plane(
    norm: str, attacks: Mapping[str, Attack], device: str = "cpu", seed: int = 0
) -> Iterator[Check]:
    """Check the expected accuracy per draw under each attack against the lowest possible.

    It is computed in closed form at the images that the attack returned, so it is free of chance.
    """
    threat = Threat(norm, BUDGETS[norm])  # pyright: ignore
    (x, y), model = _points(IMAGES, device), linear_models.noisy_plane().to(device)
    best = float(linear_models.accuracy(linear_models.worst_case(x, y, threat), y).mean())
    for name, attack in attacks.items():
        x_adv = attack(model, x, y, threat, Noise.of(seed, range(len(x))))
        accuracy = float(linear_models.accuracy(x_adv, y).mean())
        if not bool(threat.allows(x, x_adv).all()):
            accuracy = float("nan")
        yield reaches("plane behind noise", f"{name}, {norm}", best, accuracy)


def nearest(
    norm: str,
    device: str = "cpu",
    fab: FAB | None = None,
    apgd: Attack | None = None,
) -> Iterator[Check]:
    """Check the distance to the nearest adversarial image, and which images an attack breaks."""
    model = linear_models.MultiPlaneClassifier().to(device)
    noise = Noise.of(0, range(200))
    x = 0.35 + 0.3 * noise.child("x").uniform(torch.zeros(200, *linear_models.SHAPE, device=device))
    distances = model.distances(x, norm)
    eps = round(float(distances.median()), 4)
    clear = ((distances > eps / 5) & ((distances / eps - 1).abs() > 0.01)).nonzero()[:IMAGES, 0]
    x, distances, noise = x[clear], distances[clear], noise.take(clear)
    y, threat = model(x, noise).argmax(1), Threat(norm, eps)  # pyright: ignore
    fab = fab or FAB(20, targets=4)
    apgd = apgd or APGD(20, loss="margin", targets=4, steps_per_draw=21)

    ratio = threat.size(fab.nearest(model, x, y, threat, noise) - x) / distances
    worst = float(ratio[(ratio - 1).abs().argmax()])
    part = "five planes"
    yield Check(part, f"FAB, {norm}: distance, at worst", "times", 1, worst, 1 - 1e-4, 1.01)
    broken = model(apgd(model, x, y, threat, noise), noise).argmax(1) != y
    wrong = int((broken != (distances < eps)).sum())
    yield Check(part, f"APGD, {norm}: misjudged of {len(x)}", "images", 0, wrong, 0, 0)


def rounded(device: str = "cpu", eps: float = 0.05) -> Iterator[Check]:
    """Check a gradient masked by rounding: other attacks succeed, and a doubt reports it."""
    spec = _plane(eps) | {
        "purifier": {"name": f"{TOY_MODULE}Quantize"},
        "attacks": [
            {"name": "pgd", "loss": "margin", "label": "PGD"},
            {"name": "pgd", "loss": "margin", "view": "bpda", "label": "PGD through BPDA"},
            {"name": "square", "queries": 600, "steps_per_draw": 600, "label": "Square"},
            {"name": "autoattack", **EFFORT, "eot": 1, "targets": 1, "label": "AutoAttack unfool"},
        ],
    }
    x, y = _points(IMAGES, device)
    best = float((linear_models.worst_case_rounded(x, y, eps) > 0).float().mean())
    yield from _masked("plane behind rounding", spec, device, best)


def saturated(device: str = "cpu", eps: float = 0.05) -> Iterator[Check]:
    """Check huge logits, where the cross-entropy has no gradient left, but the margin has."""
    spec = _plane(eps) | {
        "attacks": [
            {"name": "pgd", "label": "PGD"},
            {"name": "pgd", "loss": "margin", "label": "PGD on the margin"},
            {"name": "autoattack", **EFFORT, "eot": 1, "targets": 1, "label": "AutoAttack unfool"},
        ],
    }
    spec["classifier"] = {"name": f"{TOY_MODULE}LinearClassifier", "scale": 1e6}
    x, y = _points(IMAGES, device)
    best = float(
        (linear_models.signed_distances(linear_models.worst_case(x, y, Threat("linf", eps)), y) > 0)
        .float()
        .mean()
    )
    yield from _masked("plane of huge logits", spec, device, best)


def _masked(part: str, spec: RawSpec, device: str, best: float) -> Iterator[Check]:
    """Check that the first attack fails with a doubt, and that all others reach the optimum."""
    summary = _evaluated(spec, device)
    accuracies = {row["name"]: row["robust"]["per_draw"]["accuracy"] for row in summary["attacks"]}
    failed = accuracies.pop("PGD") > best + TOLERANCE
    accuracies["what the evaluation reports"] = summary["robust"]["per_draw"]["accuracy"]
    for name, accuracy in accuracies.items():
        yield reaches(part, name, best, accuracy)
    is_doubted = "zero-gradient" in {doubt["name"] for doubt in summary["doubts"]}
    what = "PGD fails, and a doubt says so"
    yield Check(part, what, "yes", 1, float(failed and is_doubted), 1, 1)


def _plane(eps: float) -> RawSpec:
    return {
        "data": {"name": f"{TOY_MODULE}Points", "size": IMAGES},
        "classifier": {"name": f"{TOY_MODULE}LinearClassifier"},
        "threat": {"norm": "linf", "eps": eps},
        "evaluation": {"draws": 1},
    }


def _evaluated(spec: RawSpec, device: str) -> Summary:
    """Evaluate `spec` as `unfool evaluate` does, and return the summary; the run is not kept."""
    checked = evaluation.check(
        {**spec, "machine": {"device": device, "batch_size": 4096, "images_per_block": 128}}
    )
    with tempfile.TemporaryDirectory() as folder:
        return summarize_run(evaluation.run(checked, Path(folder), quiet=True))


def _points(size: int, device: str, one_class: bool = False) -> tuple[Tensor, Tensor]:
    x, y = fetch(linear_models.Points(size, one_class=one_class), range(size))
    return x.to(device), y.to(device)


def _judged(right: Tensor) -> Judged:
    """Judge images of class 0, given which of their draws were right, `right` (n, k)."""
    rows = (1 - right.long()).tolist()
    outcomes = [
        Outcome(
            index=i,
            label=0,
            conditions={
                "clean": Condition(draws=draws, undefended=None, size=0.0, attacker_error_rate=0.0)
            },
            chosen="clean",
            seconds=0.0,
            cost={},
        )
        for i, draws in enumerate(rows)
    ]
    return judge("clean", outcomes)


def _readings(p: float, k: int) -> dict[str, float]:
    """The true readings of a coin: per draw, majority of k (a tie is wrong), and all k right."""
    return {"per_draw": p, "majority": float(stats.binom.sf(k // 2, k, p)), "all_draws": p**k}


def _title(reading: str, k: int) -> str:
    return {"per_draw": "per draw", "majority": f"majority of {k}", "all_draws": f"all {k} right"}[
        reading
    ]


def _coin(p: float) -> str:
    return f"coin of {p:g}"


def _coverage(part: str, what: str, covered: int) -> Check:
    return Check(f"{part}: {COVERAGE_95}", what, "coverage", 0.95, covered / RUNS, *COVERAGE_RANGE)
