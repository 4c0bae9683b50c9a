"""The summary of a run: accuracies with confidence intervals, a pure function of its outcomes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, cast

from unfool import __version__
from unfool.results import loss_curves
from unfool.results.attack_roles import initial_conditions, roles
from unfool.results.doubts.run import all_doubts
from unfool.results.not_tried import not_tried
from unfool.results.outcome import Condition, Outcome
from unfool.results.quality_means import summarize
from unfool.results.report_json import (
    ClassRow,
    CostEntry,
    KnownNoise,
    Readings,
    Resubmission,
    Rung,
    SometimesThere,
    Summary,
    mean_entry,
    share_entry,
)
from unfool.results.run_folder import Run
from unfool.results.spec import EvaluationSpec
from unfool.results.starts import provenance
from unfool.results.threat_model import card
from unfool.statistics import (
    Share,
    mean_rate_interval,
    paired_difference_interval,
    resubmissions,
    wilson,
)

VERSION = 1


@dataclass(frozen=True)
class Judged:
    """How often the model is right under one condition, in three readings, each with an interval.

    Attributes:
        name: The condition.
        per_draw: Over images and draws: the share of right draws.
        majority: Over images: how often the true class has more of the k draws than any other; a
            tie is wrong.
        all_draws: Over images: how often all k draws are right (an attacker may submit k times).
        k: Draws per image.
        draws: The number of first draws that `per_draw` is based on: all, or, if verdicts are
            curtailed, the half that every image has.
        undefended: How often the classifier without its defense is right (for the attack that
            counts: right under every condition); None if there is no defense.
    """

    name: str
    per_draw: Share
    majority: Share
    all_draws: Share
    k: int
    draws: int
    undefended: Share | None


def judge(
    name: str, outcomes: Sequence[Outcome], pick: Callable[[Outcome], Condition] | None = None
) -> Judged:
    """Judge the condition `name` of each outcome, or the condition that `pick` returns.

    Raises:
        ValueError: There are no outcomes.
    """
    pick = pick or (lambda outcome: outcome.condition(name))
    rows = [(pick(outcome), outcome.label) for outcome in outcomes]
    draws, n = len(rows[0][0].draws), len(rows)
    right = [row.draws.count(label) for row, label in rows]
    won = sum(row.won(label) for row, label in rows)
    has_bare = rows[0][0].undefended is not None
    return Judged(
        name=name,
        per_draw=mean_rate_interval([hits / draws for hits in right], draws),
        majority=wilson(won, n),
        all_draws=wilson(sum(row.always(label) for row, label in rows), n),
        k=rows[0][0].k,
        draws=draws,
        undefended=wilson(sum(row.undefended == label for row, label in rows), n)
        if has_bare
        else None,
    )


def summarize_run(run: Run) -> Summary:
    """Summarize a run, finished or not, as in `report.json`.

    Raises:
        RuntimeError: The run has no outcomes yet, or a file of it is damaged.
    """
    outcomes = run.outcomes()
    if not outcomes:
        raise RuntimeError(f"{run.folder} has no results yet: run the evaluation first")
    spec = run.spec
    by_role = roles(spec["attacks"])
    labels, unbounded, corruptions, _ = ([row["label"] for row in rows] for rows in by_role)
    names = ("clean", *(("random",) if spec["attacks"] else ()), *labels, *unbounded, *corruptions)
    by_name = {name: judge(name, outcomes) for name in names}
    initial = initial_conditions(by_role)
    submitted = _pick_submitted([*initial, *(labels or corruptions)])
    robust = judge("robust", outcomes, submitted)
    corrupted = _judge_together(outcomes, corruptions) if corruptions else None
    winning_attacks = [o.chosen for o in outcomes if _right(o, "clean") and not _right(o, o.chosen)]
    random: SometimesThere = {"random": _readings(by_name["random"])} if spec["attacks"] else {}
    mean: SometimesThere = {"corrupted": _readings(corrupted)} if corrupted else {}
    forecast: SometimesThere = (
        {"forecast": kept_forecast} if (kept_forecast := run.forecast()) else {}
    )
    return {
        "version": VERSION,
        "run": run.manifest["identity"],
        "spec": spec,
        "n": len(outcomes),
        "requested": len(run.manifest["indices"]),
        "clean": {**share_entry(by_name["clean"].per_draw), **_readings(by_name["clean"])},
        "robust": _readings(robust),
        **random,
        "resubmission": _resubmission(
            outcomes,
            {
                "clean": _pick_condition("clean"),
                **({"random": _pick_condition("random")} if spec["attacks"] else {}),
                **({"robust": submitted} if labels else {}),
            },
        ),
        "flip_rate": share_entry(flip_rate(outcomes)),
        "images_checked": sum(bool(outcome.sanity) for outcome in outcomes),
        "attacks": [
            {
                "name": name,
                "broken": winning_attacks.count(name),
                "robust": _readings(by_name[name]),
            }
            for name in labels
        ],
        "unbounded": [{"name": name, "robust": _readings(by_name[name])} for name in unbounded],
        "known_noise": _known_noise_rows(spec, outcomes),
        "by_attack": _ladder(outcomes, initial, labels),
        "loss_curves": loss_curves.summarize(outcomes, [*labels, *unbounded]),
        "corruptions": [{"name": name, "robust": _readings(by_name[name])} for name in corruptions],
        **mean,
        "quality": summarize([outcome.quality for outcome in outcomes], names),
        "classes": _by_class(outcomes, run.manifest["classes"], submitted),
        "number_of_classes": len(run.manifest["classes"]),
        "threat": spec["threat"],
        "threat_model": card(spec),
        "not_tried": not_tried(spec),
        "doubts": [
            {"name": doubt.name, "severity": doubt.severity, "why": doubt.why}
            for doubt in all_doubts(
                spec,
                outcomes,
                by_name,
                corrupted if not labels and corrupted else robust,
                run.manifest["classes"],
                run.manifest.get("logits"),
                run.manifest.get("stated"),
            )
        ],
        "cost": _cost(outcomes),
        **forecast,
        "provenance": provenance(run),
        "versions": run.manifest["versions"],
        "unfool": __version__,
    }


def flip_rate(outcomes: Sequence[Outcome]) -> Share:
    """The share of draws on clean images that disagree with most draws of their image."""
    rates = []
    for outcome in outcomes:
        draws = outcome.conditions["clean"].draws
        rates.append(1 - max(Counter(draws).values()) / len(draws))
    return mean_rate_interval(rates, len(outcomes[0].conditions["clean"].draws))


def _readings(judged: Judged) -> Readings:
    readings: Readings = {
        "per_draw": share_entry(judged.per_draw),
        "majority": share_entry(judged.majority),
        "all_draws": share_entry(judged.all_draws),
        "k": judged.k,
    }
    if judged.draws != judged.k:
        readings["draws"] = judged.draws
    if judged.undefended is not None:
        readings["undefended"] = share_entry(judged.undefended)
    return readings


def _judge_together(outcomes: Sequence[Outcome], names: Sequence[str]) -> Judged:
    """Judge the conditions `names` together, by the mean over them for each image."""
    first = outcomes[0].conditions[names[0]]
    draws, count = len(first.draws), len(names)

    def mean(right: Callable[[Condition, int], float], draws: int) -> Share:
        rates = [fmean(right(o.conditions[name], o.label) for name in names) for o in outcomes]
        return mean_rate_interval(rates, draws)

    has_bare = first.undefended is not None
    return Judged(
        name="corrupted",
        per_draw=mean(Condition.rate, draws * count),
        majority=mean(Condition.won, count),
        all_draws=mean(Condition.always, count),
        k=first.k,
        draws=draws,
        undefended=mean(lambda row, label: row.undefended == label, count) if has_bare else None,
    )


def _known_noise_rows(spec: EvaluationSpec, outcomes: Sequence[Outcome]) -> list[KnownNoise]:
    """The accuracies under attacks that know some of the noise, and how far below others they are.

    Each is compared with the last attack of the same name and view, or at least of the same view,
    that knows no noise.
    """
    rows: list[KnownNoise] = []
    uninformed = roles(spec["attacks"]).attacks
    for row in roles(spec["attacks"]).known_noise:
        name = row["label"]
        entry: KnownNoise = {
            "name": name,
            "knows": row.get("knows", ""),
            "robust": _readings(judge(name, outcomes)),
        }
        comparable = [other for other in uninformed if other["view"] == row["view"]]
        comparable = [other for other in comparable if other["name"] == row["name"]] or comparable
        if comparable:
            other = comparable[-1]["label"]
            gaps = [o.rate(other) - o.rate(name) for o in outcomes]
            draws = min(len(outcomes[0].conditions[n].draws) for n in (name, other))
            entry["compared_with"] = other
            entry["gap"] = mean_entry(paired_difference_interval(gaps, draws))
        rows.append(entry)
    return rows


def _ladder(
    outcomes: Sequence[Outcome], initial: Sequence[str], labels: Sequence[str]
) -> list[Rung]:
    """The accuracy after each attack and all earlier ones, and how many images it was tried on.

    The attacker begins with the conditions `given`. The last rung is the attack that counts.
    """
    rungs: list[Rung] = []
    for i, name in enumerate(labels):
        tried = [*initial, *labels[: i + 1]]
        judged = judge(name, outcomes, lambda o, tried=tried: _best(o, tried))
        attacked = sum(not outcome.conditions[name].same_image_as for outcome in outcomes)
        rungs.append({"name": name, "attacked": attacked, "robust": _readings(judged)})
    return rungs


def _resubmission(
    outcomes: Sequence[Outcome], picks: Mapping[str, Callable[[Outcome], Condition]]
) -> Resubmission:
    """How often the model is right every time, if the same image is submitted 1 .. k times."""
    result: dict[str, Any] = {}
    for name, pick in picks.items():
        rows = [(pick(outcome).draws, outcome.label) for outcome in outcomes]
        curve = resubmissions([draws.count(label) for draws, label in rows], len(rows[0][0]))
        result["submissions"] = list(range(1, len(curve) + 1))
        result[name] = [share_entry(share) for share in curve]
    return cast(Resubmission, result)


def _best(outcome: Outcome, names: Sequence[str]) -> Condition:
    """The condition of `names` that the attacker would submit, as `evaluate` chooses among all."""
    tried = [outcome.conditions[name] for name in reversed(names)]
    chosen = max(
        (condition for condition in tried if not condition.same_image_as),
        key=lambda c: c.attacker_error_rate,
    )
    return replace(chosen, undefended=None)


def _by_class(
    outcomes: Sequence[Outcome],
    classes: Sequence[str],
    submitted: Callable[[Outcome], Condition],
) -> list[ClassRow]:
    rows: list[ClassRow] = []
    for label, name in enumerate(classes):
        of_class = [outcome for outcome in outcomes if outcome.label == label]
        if of_class:
            clean = judge("clean", of_class).per_draw
            robust = judge("robust", of_class, submitted).per_draw
            rows.append(
                {
                    "name": name,
                    "n": len(of_class),
                    "clean": share_entry(clean),
                    "robust": share_entry(robust),
                }
            )
    return rows


def _cost(outcomes: Sequence[Outcome]) -> CostEntry:
    seconds = sum(outcome.seconds for outcome in outcomes)

    def total(name: str) -> int:
        return round(sum(outcome.cost.get(name, 0) for outcome in outcomes))

    return {
        "nfe_forward": total("nfe_forward"),
        "nfe_vjp": total("nfe_vjp"),
        "classifier_forward": total("classifier_forward"),
        "classifier_vjp": total("classifier_vjp"),
        "seconds": round(seconds, 2),
        "images_per_second": round(len(outcomes) / seconds, 4) if seconds else 0.0,
        "peak_bytes": int(max(outcome.cost.get("peak_bytes", 0) for outcome in outcomes)),
    }


def _pick_condition(name: str) -> Callable[[Outcome], Condition]:
    return lambda outcome: outcome.conditions[name]


def _pick_submitted(names: Sequence[str]) -> Callable[[Outcome], Condition]:
    """Return a function that picks what the attacker would submit.

    Its `undefended` is wrong if it is under any condition of `names`.
    """

    def pick(outcome: Outcome) -> Condition:
        tried = [outcome.conditions[name] for name in names if name in outcome.conditions]
        wrong = [c.undefended for c in tried if c.undefended not in (None, outcome.label)]
        chosen = outcome.conditions[outcome.chosen]
        return replace(chosen, undefended=wrong[0]) if wrong else chosen

    return pick


def _right(outcome: Outcome, name: str) -> bool:
    return outcome.conditions[name].won(outcome.label)
