"""The verdict: what a run's outcomes say, with intervals. A pure function of the run."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from defuse import __version__
from defuse import spec as specs
from defuse.evaluation import climb, doubts
from defuse.evaluation.quality import summarize
from defuse.evaluation.record import Condition, Outcome, Run
from defuse.evaluation.roles import BLIND, ELSEWHERE, TRANSFER, roles
from defuse.statistics import Share, mean_interval, mean_of, resubmissions, wilson
from defuse.threat import Threat

VERSION = 1


@dataclass(frozen=True)
class Judged:
    """How often the model is right under one condition, in three readings, each with an interval.

    Attributes:
        name: The condition.
        mean: Over images and draws: how often one query is answered rightly.
        majority: Over images: how often the true class has more of the k draws than any other; a
            tie is wrong.
        worst: Over images: how often all k draws are right (an attacker may submit k times).
        k: Draws per image.
        bare: How often the classifier without its defence is right (of the attack that counts: right
            under every condition); None if there is no defence.
    """

    name: str
    mean: Share
    majority: Share
    worst: Share
    k: int
    bare: Share | None


def judge(name: str, outcomes: Sequence[Outcome], pick: Callable[[Outcome], Condition]) -> Judged:
    """Judge the condition that `pick` takes of each outcome.

    Raises:
        ValueError: There are no outcomes.
    """
    rows = [(pick(outcome), outcome.label) for outcome in outcomes]
    k, n = len(rows[0][0].draws), len(rows)
    right = [row.draws.count(label) for row, label in rows]
    won = sum(winner(row.draws) == label for row, label in rows)
    has_bare = rows[0][0].bare is not None
    return Judged(
        name=name,
        mean=mean_of([hits / k for hits in right], k),
        majority=wilson(won, n),
        worst=wilson(sum(hits == k for hits in right), n),
        k=k,
        bare=wilson(sum(row.bare == label for row, label in rows), n) if has_bare else None,
    )


def summary(run: Run) -> dict[str, Any]:
    """What `report.json` holds of a run, finished or not.

    Raises:
        RuntimeError: The run has no outcomes yet, or a file of it is damaged.
    """
    outcomes = run.outcomes()
    if not outcomes:
        raise RuntimeError(f"{run.folder} has no outcomes yet; run the evaluation first")
    spec = run.asked["spec"]
    labels, beyond, corruptions, _ = (
        [row["label"] for row in rows] for rows in roles(spec["attacks"])
    )
    names = ("clean", *(("random",) if spec["attacks"] else ()), *labels, *beyond, *corruptions)
    by_name = {name: judge(name, outcomes, _named(name)) for name in names}
    held = any(row.get("bounded", True) for row in spec["attacks"])
    submitted = _submitted(["clean", *(["random"] if held else []), *(labels or corruptions)])
    robust = judge("robust", outcomes, submitted)
    corrupted = _over(outcomes, corruptions) if corruptions else None
    fallen = [o.chosen for o in outcomes if _right(o, "clean") and not _right(o, o.chosen)]
    return {
        "version": VERSION,
        "run": run.asked["identity"],
        "spec": spec,
        "n": len(outcomes),
        "of": len(run.asked["indices"]),
        "clean": by_name["clean"].mean._asdict() | _readings(by_name["clean"]),
        "robust": _readings(robust),
        **({"random": _readings(by_name["random"])} if "random" in by_name else {}),
        "resubmission": _resubmission(
            outcomes,
            {
                "clean": _named("clean"),
                **({"random": _named("random")} if spec["attacks"] else {}),
                **({"robust": submitted} if labels else {}),
            },
        ),
        "flip_rate": flip_rate(outcomes)._asdict(),
        "probed": sum(bool(outcome.probe) for outcome in outcomes),
        "attacks": [
            {"name": name, "broken": fallen.count(name), "robust": _readings(by_name[name])}
            for name in labels
        ],
        "beyond": [{"name": name, "robust": _readings(by_name[name])} for name in beyond],
        "knowing": _knowing(spec, outcomes),
        "ladder": _ladder(outcomes, labels),
        "climb": climb.summarize(outcomes, [*labels, *beyond]),
        "corruptions": [{"name": name, "robust": _readings(by_name[name])} for name in corruptions],
        **({"corrupted": _readings(corrupted)} if corrupted else {}),
        "quality": summarize([outcome.quality for outcome in outcomes], names),
        "classes": _by_class(outcomes, run.asked["classes"], submitted),
        "number_of_classes": len(run.asked["classes"]),
        "threat": spec["threat"],
        "card": card(spec),
        "doubts": [
            asdict(doubt)
            for doubt in doubts.all_doubts(
                spec,
                outcomes,
                by_name,
                corrupted if not labels and corrupted else robust,
                len(run.asked["classes"]),
            )
        ],
        "cost": _cost(outcomes),
        **({"forecast": told} if (told := run.forecast()) else {}),
        "versions": run.asked["versions"],
        "defuse": __version__,
    }


def flip_rate(outcomes: Sequence[Outcome]) -> Share:
    """On clean images: how often a draw disagrees with most draws of the same image."""
    rates = []
    for outcome in outcomes:
        draws = outcome.conditions["clean"].draws
        rates.append(1 - max(Counter(draws).values()) / len(draws))
    return mean_of(rates, len(outcomes[0].conditions["clean"].draws))


def card(spec: dict[str, Any]) -> dict[str, str]:
    """The threat model in plain words."""
    threat, options = Threat(**spec["threat"]), spec["evaluation"]
    purifier = spec.get("purifier")
    change = {
        "linf": f"every pixel by up to {eps_words(threat.eps)} of the range [0, 1] (linf)",
        "l2": f"the image by up to {threat.eps:.4g} in Euclidean length, pixels in [0, 1] (l2)",
        "l0": f"up to {100 * threat.eps:.4g} % of the places of an image, at will (l0)",
    }[threat.norm]
    attacks, beyond, others, knowing = roles(spec["attacks"])
    attacker = "; ".join(f"{row['label']}: {sees(row)}" for row in attacks)
    corruptions = [_options(row) for row in others]
    if attacks and not attacks[0].get("bounded", True):
        change = "; ".join(_options(row) for row in attacks) + "; no threat bounds this"
    defence = "none" if purifier is None else _options(purifier)
    if paths := spec.get("paths"):
        defence += f", {paths['count']} purifications of each image, aggregated by {paths['by']}"
    told = {}
    if attacks or not corruptions:
        told = {
            "the attacker may change": change,
            "the attacker's view": attacker or "none was tried",
            "the attacker's randomness": "draws of his own, fresh at every step; never those of the "
            "verdict"
            if not all(row["name"] in ELSEWHERE for row in attacks) or not attacks
            else "not told: the images were made elsewhere",
        }
    if knowing:
        told["with the noise known"] = "; ".join(
            f"{row['label']}: {known_words(row['knows'])}, seeing {sees(row)}" for row in knowing
        )
    if beyond:
        told["beyond the threat"] = "; ".join(
            f"{row['label']}: {_options(row)}, seeing {sees(row)}" for row in beyond
        )
    if corruptions:
        told["not by an attacker"] = "; ".join(corruptions) + " (no threat bounds these)"
    return told | {
        "the defence": defence,
        "the verdict": f"{options['draws']} held-out draws per image, the same for all its versions"
        + ("; the attack that counts is chosen per image on other draws" if attacks else "")
        + (
            "; no attack was tried on what was already wrong on all of these"
            if options.get("survivors")
            else ""
        ),
        "images": f"{options['images'] or 'all'} of the data set {spec['data']['name']}, chosen with "
        f"seed {options['subset_seed']}; noise of seed {options['seed']}",
    }


def eps_words(eps: float) -> str:
    """A budget as it is usually written: 8/255 rather than 0.0314."""
    n = eps * 255
    return f"{round(n)}/255" if abs(n - round(n)) < 1e-6 and 1 <= n < 50 else f"{eps:.4g}"


def known_words(word: str) -> str:
    """What an attacker knows of the defence's noise (`threat.Knowledge`), in words."""
    plain = {
        "forward": "the forward noise is fixed and known (DW-Fwd)",
        "reverse": "the noise of the way back is fixed and known (DW-Rev)",
        "both": "all noise is fixed and known (DW-box)",
    }
    if word in plain:
        return plain[word]
    count, steps = word.split("-")[1], word.endswith("-steps")
    what = "number that the defence draws is one of" if steps else "path of noise is one of"
    return f"each {what} {count}, which are known (semi-{count})"


def sees(row: dict[str, Any]) -> str:
    """What the attacker of a checked spec's row took the model for, in words."""
    if row.get("name") in ELSEWHERE:
        return f"nothing of this run: images made elsewhere ({row['path']})"
    if row.get("name") in TRANSFER:
        return f"another classifier, {_options(row['source'])}, never the model (transfer)"
    views = {
        "exact": "the whole model, with its exact gradient",
        "whole": "the whole model without its elimination, with the exact gradient",
        "first-stage": "what its first stage of elimination ranks by, with the exact gradient",
        "adjoint": "the whole model, with the adjoint for the purifier's gradient, which is not exact",
        "bfloat16": "the whole model, with its gradient computed in bfloat16",
        "bpda": "the whole model, with the identity for the purifier's gradient (BPDA)",
        "undefended": "the classifier alone, not the defence (transfer)",
        "surrogate": "the whole model with fewer steps of its purifier, on noise of its own",
        "matched": "the whole model with fewer steps of its purifier, on the same paths of noise",
    }
    view = specs.part("view", row["view"])
    if row.get("name") in BLIND:
        views["exact"] = "the answers of the whole model; it asks for no gradient"
        views["whole"] = "the answers of the whole model without its elimination; no gradient"
        views["undefended"] = "the answers of the classifier alone, not of the defence"
    counted = {"steps": "steps", "eot": "draws per step", "restarts": "restarts", "stop": "to stop"}
    effort = [
        f"{row[key]} {what}" for key, what in counted.items() if row.get(key) not in (None, 1)
    ]
    options = [f"its {key} {value}" for key, value in view.items() if key != "name" and value]
    said = ", ".join([views.get(view["name"]) or str(view["name"]), *options])
    return f"{said} ({', '.join(effort)})".replace(" ()", "")


def _options(part: dict[str, Any]) -> str:
    asides = ("name", "view", "label", "bounded", "adversarial", "knows")
    options = ", ".join(
        f"{k} {_options(v) if isinstance(v, dict) and 'name' in v else v}"
        for k, v in part.items()
        if k not in asides and v is not None
    )
    return f"{part['name']} ({options})" if options else part["name"]


def _readings(judged: Judged) -> dict[str, Any]:
    found = {name: getattr(judged, name)._asdict() for name in ("mean", "majority", "worst")}
    found["k"] = judged.k
    if judged.bare is not None:
        found["bare"] = judged.bare._asdict()
    return found


def _over(outcomes: Sequence[Outcome], names: Sequence[str]) -> Judged:
    """All of the conditions `names` together: the mean over them, of each image."""
    k = len(outcomes[0].conditions[names[0]].draws)
    tables = [
        [(o.conditions[name].draws, o.conditions[name].bare, o.label) for name in names]
        for o in outcomes
    ]

    def mean(right: Callable[[Any], float], draws: int) -> Share:
        return mean_of([fmean(right(row) for row in table) for table in tables], draws)

    has_bare, count = tables[0][0][1] is not None, len(names)
    return Judged(
        name="corrupted",
        mean=mean(lambda row: row[0].count(row[2]) / k, k * count),
        majority=mean(lambda row: winner(row[0]) == row[2], count),
        worst=mean(lambda row: row[0].count(row[2]) == k, count),
        k=k,
        bare=mean(lambda row: row[1] == row[2], count) if has_bare else None,
    )


def _knowing(spec: dict[str, Any], outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Accuracy with some of the noise known, and how far it lies below that with none known.

    The one with none known is the attack of the same name and view that is tried last.
    """
    found, plain = [], roles(spec["attacks"]).attacks
    for row in roles(spec["attacks"]).knowing:
        name = row["label"]
        told = {"name": name, "knows": row["knows"]}
        told["robust"] = _readings(judge(name, outcomes, _named(name)))
        alike = [other for other in plain if other["view"] == row["view"]]
        alike = [other for other in alike if other["name"] == row["name"]] or alike
        if alike and len(outcomes) > 1:
            other = alike[-1]["label"]
            gaps = [_rate(o, other) - _rate(o, name) for o in outcomes]
            told |= {"beside": other, "gap": mean_interval(gaps)._asdict()}
        found.append(told)
    return found


def _rate(outcome: Outcome, name: str) -> float:
    draws = outcome.conditions[name].draws
    return draws.count(outcome.label) / len(draws)


def _ladder(outcomes: Sequence[Outcome], labels: Sequence[str]) -> list[dict[str, Any]]:
    """What the attacker has after each attack: how many images it was tried on, and the accuracy.

    The last rung is the attack that counts, chosen among all.
    """
    rungs = []
    for i, name in enumerate(labels):
        tried = ["clean", "random", *labels[: i + 1]]
        judged = judge(name, outcomes, lambda o, tried=tried: _best(o, tried))
        attacked = sum(not outcome.conditions[name].of for outcome in outcomes)
        rungs.append({"name": name, "attacked": attacked, "robust": _readings(judged)})
    return rungs


def _resubmission(
    outcomes: Sequence[Outcome], picks: Mapping[str, Callable[[Outcome], Condition]]
) -> dict[str, Any]:
    """How often the model is right every time, if the same image is submitted 1 .. k times."""
    found: dict[str, Any] = {}
    for name, pick in picks.items():
        rows = [(pick(outcome).draws, outcome.label) for outcome in outcomes]
        curve = resubmissions([draws.count(label) for draws, label in rows], len(rows[0][0]))
        found["submissions"] = list(range(1, len(curve) + 1))
        found[name] = [share._asdict() for share in curve]
    return found


def _best(outcome: Outcome, names: Sequence[str]) -> Condition:
    """Of some conditions, the one the attacker would submit, as `evaluate` chooses it of all."""
    tried = [outcome.conditions[name] for name in reversed(names)]
    chosen = max((condition for condition in tried if not condition.of), key=lambda c: c.wrong)
    return replace(chosen, bare=None)


def _by_class(
    outcomes: Sequence[Outcome],
    classes: Sequence[str],
    submitted: Callable[[Outcome], Condition],
) -> list[dict[str, Any]]:
    rows = []
    for label, name in enumerate(classes):
        of_class = [outcome for outcome in outcomes if outcome.label == label]
        if of_class:
            clean = judge("clean", of_class, _named("clean")).mean
            robust = judge("robust", of_class, submitted).mean
            row = {"name": name, "n": len(of_class)}
            rows.append(row | {"clean": clean._asdict(), "robust": robust._asdict()})
    return rows


def _cost(outcomes: Sequence[Outcome]) -> dict[str, int | float]:
    seconds = sum(outcome.seconds for outcome in outcomes)
    names = ("nfe_forward", "nfe_vjp", "classifier_forward", "classifier_vjp")
    totals = {name: round(sum(o.cost.get(name, 0) for o in outcomes)) for name in names}
    return {
        **totals,
        "seconds": round(seconds, 2),
        "images_per_second": round(len(outcomes) / seconds, 4) if seconds else 0.0,
        "peak_bytes": int(max(outcome.cost.get("peak_bytes", 0) for outcome in outcomes)),
    }


def _named(name: str) -> Callable[[Outcome], Condition]:
    return lambda outcome: outcome.conditions[name]


def _submitted(names: Sequence[str]) -> Callable[[Outcome], Condition]:
    """What the attacker would submit; the undefended classifier has the worst of `names`."""

    def pick(outcome: Outcome) -> Condition:
        tried = [outcome.conditions[name] for name in names if name in outcome.conditions]
        wrong = [c.bare for c in tried if c.bare not in (None, outcome.label)]
        chosen = outcome.conditions[outcome.chosen]
        return replace(chosen, bare=wrong[0]) if wrong else chosen

    return pick


def _right(outcome: Outcome, name: str) -> bool:
    return winner(outcome.conditions[name].draws) == outcome.label


def winner(draws: Sequence[int]) -> int | None:
    """The class that was chosen most often; None if several were."""
    first, *others = Counter(draws).most_common(2)
    return None if others and others[0][1] == first[1] else first[0]
