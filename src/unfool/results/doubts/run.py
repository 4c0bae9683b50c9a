"""The doubts about a run: reasons not to believe it, each a function of what it recorded.

docs/doubts.md explains for each when it is raised, what it means, and what to do.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from statistics import mean, variance
from typing import Any, cast

from unfool.results.attack_roles import (
    EXACT_VIEWS,
    GRADIENT_FREE,
    PRECOMPUTED,
    TRANSFER,
    exact_attacks,
    is_custom,
    roles,
    view_name,
)
from unfool.results.doubts.attacks import (
    blind_beats_gradient,
    cheap_beats_exact,
    paired_gap,
    special_beats_plain,
    unbounded_beats_bounded,
)
from unfool.results.doubts.doubt import Doubt
from unfool.results.doubts.model import model_doubts
from unfool.results.loss_curves import mostly_right
from unfool.results.outcome import Outcome, SanityCheck
from unfool.results.spec import AttackEntry, EvaluationSpec
from unfool.statistics import mean_interval, percent

# Views whose loss comes from the whole model.
WHOLE_MODEL_VIEWS = ("adjoint", "bfloat16", "bpda", *EXACT_VIEWS)
STRONG_ATTACK = (
    "an attack by the exact gradient (`pgd`, view `exact`; with `eot` if the model is random)"
)
REMEDIES = {  # what may help an attack that has this option
    "queries": "more `queries`",
    "loss": "the `loss` margin",
    "restarts": "more `restarts`",
    "steps": "more `steps`",
    "eot": "more draws (`eot`)",
}
STILL_RISING_SHARE = 0.05  # of the whole rise of a loss, in the last part of the search
MIN_CURVES = 5  # the fewest images on which a rise is judged
FAR_BELOW = 0.03  # how far a stated accuracy must lie above the measured interval
WIDE_INTERVAL = 0.1  # a wider interval is checked for too few draws


def all_doubts(
    spec: EvaluationSpec,
    outcomes: Sequence[Outcome],
    judged: Mapping[str, Any],
    robust: Any,
    classes: Sequence[str],
    logits: int | None = None,
    stated: Mapping[str, Any] | None = None,
) -> list[Doubt]:
    """Return every doubt about a run.

    Args:
        spec: The checked spec.
        outcomes: The outcome of each image.
        judged: `summary.Judged` of each condition, by name.
        robust: `summary.Judged` of the attack that counts or, without attacks, of the corruptions.
        classes: The names of the data set's classes.
        logits: The number of the model's classes; None in runs made before it was recorded.
        stated: The `models.classifiers.ReportedAccuracy` of the classifier, as a table, if it has one.
    """
    probes = [cast(SanityCheck, outcome.sanity) for outcome in outcomes if outcome.sanity]
    attacks = {row["label"]: row for row in roles(spec["attacks"]).attacks}
    return [
        *model_doubts(probes, attacks),
        *_versions(outcomes),
        *(_unchanged(outcomes, attacks) if spec["threat"]["eps"] else ()),
        *_weaker_than_random(outcomes, attacks),
        *cheap_beats_exact(outcomes, attacks),
        *blind_beats_gradient(outcomes, attacks),
        *special_beats_plain(outcomes, attacks),
        *unbounded_beats_bounded(spec, outcomes, attacks),
        *_known_is_harder(spec, outcomes, attacks),
        *_still_rising(outcomes, attacks),
        *_low_precision(spec, attacks),
        *(_no_exact_view(spec, attacks) if attacks or not spec["attacks"] else ()),
        *_no_whole_view(spec, attacks),
        *_guessing(judged, len(classes)),
        *(_less_than_stated(spec["data"], judged, stated) if stated else ()),
        *_more_logits(logits, classes),
        *_classes_missing(outcomes, classes),
        *_few_images(robust),
        *(_few_draws(outcomes, probes, robust) if robust.name == "robust" else ()),
    ]


def _versions(outcomes: Sequence[Outcome]) -> Iterator[Doubt]:
    made_by = sorted({outcome.made_by for outcome in outcomes})
    if len(made_by) > 1:
        yield Doubt(
            "mixed-versions",
            "yellow",
            "parts of the run were computed by different versions of the software "
            f"({'; '.join(made_by)}), so their numbers may not be comparable: run everything again "
            "with one version if that matters",
        )


def _unchanged(outcomes: Sequence[Outcome], attacks: Mapping[str, AttackEntry]) -> Iterator[Doubt]:
    for name, row in attacks.items():
        if row.get("name") in PRECOMPUTED:
            continue
        unbroken = [o for o in outcomes if o.conditions[name].attacker_error_rate < 0.5]
        unchanged = sum(o.conditions[name].size == 0 for o in unbroken)
        remedies = ", ".join(words for option, words in REMEDIES.items() if option in row)
        if view_name(row) in EXACT_VIEWS and unbroken and unchanged > len(unbroken) / 10:
            free = row.get("name") in GRADIENT_FREE
            meaning = (
                "its search found nothing there, and a longer one may"
                if free
                else "it got no useful gradient there, and these images only seem robust"
            )
            yield Doubt(
                "images-unchanged",
                "yellow" if free else "red",
                f"{name} returned {unchanged} of the {len(unbroken)} images that it did not break "
                f"without any change, so {meaning}: try {remedies or 'another attack'}",
            )


def _weaker_than_random(
    outcomes: Sequence[Outcome], attacks: Mapping[str, AttackEntry]
) -> Iterator[Doubt]:
    for name, row in attacks.items():
        gap = paired_gap(outcomes, name, "random") if row.get("bounded", True) else 0.0
        if gap > 0:
            yield Doubt(
                "weaker-than-random",
                "red",
                f"{name} leaves more images right than random noise of the same size, by at least "
                f"{percent(gap)} on the same images and draws, so the attack does not work and its "
                "number says nothing about the defense: fix its loss, step size, or gradient",
            )


def _known_is_harder(
    spec: EvaluationSpec, outcomes: Sequence[Outcome], attacks: Mapping[str, AttackEntry]
) -> Iterator[Doubt]:
    informed = {
        row["label"]: row
        for row in roles(spec["attacks"]).known_noise
        if row.get("knows") == "both"
    }
    for name in [
        *exact_attacks(informed),
        *(name for name, row in informed.items() if is_custom(row)),
    ]:
        gap = max(
            (paired_gap(outcomes, name, other) for other in exact_attacks(attacks)), default=0
        )
        if gap > 0:
            yield Doubt(
                "known-noise-is-harder",
                "red",
                f"{name}, which knows all of the defense's noise, leaves more images right than an "
                f"attack that knows none, by at least {percent(gap)} on the same images, although it has "
                "an easier task, so it is too weak, and the run says nothing about the value of "
                "secret noise: give it as many steps and restarts, and the loss `margin`",
            )


def _still_rising(
    outcomes: Sequence[Outcome], attacks: Mapping[str, AttackEntry]
) -> Iterator[Doubt]:
    for name, row in attacks.items():
        if view_name(row) not in WHOLE_MODEL_VIEWS:
            continue
        unbroken = [outcome for outcome in outcomes if mostly_right(outcome, name)]
        curves = [curve for o in unbroken if len(curve := o.loss_curves.get(name, [])) > 2]
        if len(curves) < MIN_CURVES:
            continue
        total_rise, last_rise = (mean(c[-1] - c[since] for c in curves) for since in (0, -2))
        late = [c[-1] - c[-2] - STILL_RISING_SHARE * (c[-1] - c[0]) for c in curves]
        if total_rise > 0 and mean_interval(late).low > 0:
            yield Doubt(
                "still-rising",
                "yellow",
                f"on the {len(curves)} images that {name} left right, its loss still rises when it "
                f"ends ({percent(last_rise / total_rise, 0)} of the whole rise came in the last "
                f"{percent(1 / len(curves[0]), 0)} of its steps), so the attack stopped too early and "
                "the robust accuracy is too high: give it more steps, or larger ones",
            )


def _no_exact_view(spec: EvaluationSpec, attacks: Mapping[str, AttackEntry]) -> Iterator[Doubt]:
    has_transfer = any(row.get("name") in TRANSFER for row in attacks.values())
    has_first_stage = any(view_name(row) == "first-stage" for row in attacks.values())
    custom = [
        name for name, row in attacks.items() if is_custom(row) and view_name(row) in EXACT_VIEWS
    ]
    if exact_attacks(attacks) or has_first_stage:
        return
    if custom:
        yield Doubt(
            "unknown-attack",
            "yellow",
            f"{', '.join(custom)} is not an attack of unfool, so nobody here knows how strong it "
            f"is, and a robust accuracy from it alone may be too high: add {STRONG_ATTACK}",
        )
    elif spec.get("purifier") or has_transfer:
        advice = (
            STRONG_ATTACK
            if spec["threat"]["norm"] != "l0"
            else "one in another norm, for unfool has none in l0"
        )
        yield Doubt(
            "no-adaptive-attack",
            "red",
            "no attack used the gradient through the defense, so this run does not show how robust "
            f"it is against an attacker who knows it: add {advice}",
        )


def _no_whole_view(spec: EvaluationSpec, attacks: Mapping[str, AttackEntry]) -> Iterator[Doubt]:
    covered = any(view_name(row) == "no-elimination" for row in exact_attacks(attacks).values())
    if spec["classifier"].get("elimination") and attacks and not covered:
        yield Doubt(
            "no-whole-view",
            "yellow",
            "the classifier drops classes early, which hides gradients from the attacks, so the "
            "robust accuracy may be too high: add an attack with the view `no-elimination`",
        )


def _low_precision(spec: EvaluationSpec, attacks: Mapping[str, AttackEntry]) -> Iterator[Doubt]:
    low_precision = [name for name, row in attacks.items() if view_name(row) == "bfloat16"]
    if low_precision:
        yield Doubt(
            "low-precision",
            "yellow",
            f"{', '.join(low_precision)} computes gradients in bfloat16, so the attack may be weaker "
            "than in full precision (answers are not affected): run it with the view `exact` as well",
        )
    model = [spec.get(name) for name in ("classifier", "denoiser", "purifier")]
    if half := sorted(set(_halves(model))):
        yield Doubt(
            "low-precision",
            "yellow",
            f"a part of the model computes answers and gradients in {', '.join(half)}, so in "
            "float32 the model may answer differently and be easier to attack: evaluate some "
            "images in float32, and compare the runs",
        )


def _halves(part: Any) -> Iterator[str]:
    """Yield the half precisions that a part of a spec asks for, at any depth."""
    if isinstance(part, Mapping):
        if part.get("precision") in ("float16", "bfloat16"):
            yield part["precision"]
        part = list(part.values())
    for inner in part if isinstance(part, list) else ():
        yield from _halves(inner)


def _guessing(judged: Mapping[str, Any], classes: int) -> Iterator[Doubt]:
    clean = judged["clean"].undefended or judged["clean"].per_draw
    chance = 1 / classes
    if clean.low <= chance and clean.high < (1 + chance) / 2:  # with few images, it may be perfect
        yield Doubt(
            "no-better-than-guessing",
            "red",
            f"on clean images the classifier is right {clean} of the time, and guessing would be "
            f"right {percent(chance)} of the time, so this is probably not the model you meant to "
            "measure: check its weights, the order of its classes, and its `mean` and `std` (`unfool "
            "doctor`)",
        )


def _less_than_stated(
    data: Mapping[str, Any], judged: Mapping[str, Any], stated: Mapping[str, Any]
) -> Iterator[Doubt]:
    same = data.get("name") in (stated["data"], f"{stated['data']}-sample")
    clean = judged["clean"].undefended or judged["clean"].per_draw
    if same and data.get("split") != "train" and clean.high + FAR_BELOW < stated["accuracy"]:
        yield Doubt(
            "less-than-stated",
            "red",
            f"on clean images the classifier is right {clean} of the time, and {stated['source']} "
            f"states {percent(stated['accuracy'])}, so the model is probably not set up as it was "
            "published: check its weights, `mean` and `std`, activation and layout, and the order of its "
            "classes",
        )


def _more_logits(logits: int | None, classes: Sequence[str]) -> Iterator[Doubt]:
    if logits is not None and logits > len(classes):
        yield Doubt(
            "more-logits-than-classes",
            "yellow",
            f"the model has {logits} classes, and the data set has {len(classes)} "
            f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}): if one is missing "
            "in between, all later labels are wrong and right answers count as errors, so compare "
            "the data set's classes with those of the model's training",
        )


def _classes_missing(outcomes: Sequence[Outcome], classes: Sequence[str]) -> Iterator[Doubt]:
    present = {outcome.label for outcome in outcomes}
    missing = [name for label, name in enumerate(classes) if label not in present]
    if missing and len(outcomes) >= len(classes):
        named = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        yield Doubt(
            "classes-missing",
            "yellow",
            f"the run has no image of {len(missing)} of the {len(classes)} classes ({named}), so "
            "its numbers say nothing about these: evaluate more images",
        )


def _few_images(robust: Any) -> Iterator[Doubt]:
    if robust.per_draw.high - robust.per_draw.low > 0.2:
        yield Doubt(
            "few-images",
            "yellow",
            f"the interval of the {robust.name} accuracy is "
            f"{100 * (robust.per_draw.high - robust.per_draw.low):.0f} points wide, so the number "
            "is a rough estimate, and small differences between defenses mean nothing: evaluate "
            "more images",
        )


def _few_draws(
    outcomes: Sequence[Outcome], probes: Sequence[SanityCheck], robust: Any
) -> Iterator[Doubt]:
    width, k, n = robust.per_draw.high - robust.per_draw.low, robust.draws, len(outcomes)
    if width <= WIDE_INTERVAL or n < 2:
        return
    width_words = f"the interval of the {robust.name} accuracy is {100 * width:.0f} points wide"
    if k == 1:
        if any(probe["random"] for probe in probes):
            yield Doubt(
                "few-draws",
                "yellow",
                f"{width_words}, the model is random, and with one draw per image nobody can tell "
                "how far chance alone moves the number: set evaluation.draws to 8 or more",
            )
        return
    rates = [outcome.rate("robust") for outcome in outcomes]
    total_variance = variance(rates)
    draw_variance = mean(rate * (1 - rate) for rate in rates) / (k - 1)  # the part that k draws add
    if draw_variance <= total_variance / 2:
        return
    share = min(draw_variance / total_variance, 1) if total_variance else 1.0
    if share > 3 / 4:
        advice = f"about {ceil(robust.k * share / (share - 3 / 4))} would halve the width"
    else:
        images = f"{1 + 3 * (1 - share):.1f} times as many images"
        advice = f"{4 * robust.k}, and {images}, would halve the width"
    yield Doubt(
        "few-draws",
        "yellow",
        f"{width_words}, and {percent(share, 0)} of its variance comes from the model's random draws "
        f"({k} per image) and not from the choice of images, so the same images would give "
        f"another number with another seed: raise evaluation.draws ({advice})",
    )
