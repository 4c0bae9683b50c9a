"""Doubts about the model itself, from the sanity checks on a few images."""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, inf
from statistics import mean

from unfool.results.attack_roles import draws_per_step, exact_attacks
from unfool.results.doubts.doubt import Doubt
from unfool.results.outcome import SanityCheck
from unfool.results.spec import AttackEntry
from unfool.statistics import percent

ZERO_GRADIENT = 1e-10  # of [0, 1] images; a gradient up to this counts as zero
COSINE = 0.5  # of a step's gradient and that over all draws; below, the step is mostly noise
MOST_DRAWS = 10_000  # draws per step; no attack takes more
CLAMPED_SHARE = 0.1  # of the pixels, with a gradient of 0


def model_doubts(
    probes: Sequence[SanityCheck], attacks: Mapping[str, AttackEntry]
) -> Iterator[Doubt]:
    """Yield every doubt about the model, given the attacks by label."""
    if not probes:
        return
    yield from _probabilities(probes)
    yield from _no_gradient(probes, attacks)
    yield from _wrong_gradient(probes, attacks)
    yield from _clamped(probes, attacks)
    yield from _batch_matters(probes)
    yield from _one_draw(probes, attacks)
    yield from _draws_disagree(probes, attacks)


def _probabilities(probes: Sequence[SanityCheck]) -> Iterator[Doubt]:
    if all(probe["probabilities"] for probe in probes):
        yield Doubt(
            "probabilities-for-logits",
            "red",
            "the classifier returns probabilities instead of logits, so attacks get almost no "
            "gradient, and the model looks more robust than it is: remove its softmax",
        )


def _no_gradient(
    probes: Sequence[SanityCheck], attacks: Mapping[str, AttackEntry]
) -> Iterator[Doubt]:
    for loss in sorted({row.get("loss", "margin") for row in exact_attacks(attacks).values()}):
        gradients = [probe["gradients"].get(loss, probe["gradients"]["margin"]) for probe in probes]
        dead = sum(not ZERO_GRADIENT < gradient < inf for gradient in gradients)
        if dead:
            yield Doubt(
                "zero-gradient",
                "red" if dead > len(probes) / 2 else "yellow",
                f"the gradient of the loss `{loss}` is below {ZERO_GRADIENT:g} or not finite on "
                f"{dead} of {len(probes)} images, so an attack that follows it gets nowhere, and "
                "these images only seem robust: look for rounding or clipping in the model, and "
                "try the loss `margin` and the view `bpda`",
            )


def _wrong_gradient(
    probes: Sequence[SanityCheck], attacks: Mapping[str, AttackEntry]
) -> Iterator[Doubt]:
    slopes = [probe["slope"] for probe in probes]
    disagreeing = sum(
        not 0.5 * predicted <= observed <= 2 * predicted for predicted, observed in slopes
    )
    if exact_attacks(attacks) and disagreeing > len(slopes) / 2:
        yield Doubt(
            "gradient-disagrees",
            "red",
            f"on {disagreeing} of {len(slopes)} images, a small step raises the loss by less than "
            "half or more than twice what the gradient predicts, so the gradient misleads attacks (it is "
            "wrong, or masked by rounding or clipping), and the model may be less robust than it "
            "looks: add an attack with the view `bpda`",
        )


def _clamped(probes: Sequence[SanityCheck], attacks: Mapping[str, AttackEntry]) -> Iterator[Doubt]:
    # if the whole gradient is zero, `zero-gradient` reports it
    alive = [probe for probe in probes if probe["gradients"]["margin"] > ZERO_GRADIENT]
    shares = [probe.get("clamped", 0) for probe in alive]
    large_shares = [share for share in shares if share > CLAMPED_SHARE]
    if exact_attacks(attacks) and len(large_shares) > len(probes) / 2:
        yield Doubt(
            "clamped",
            "yellow",
            f"on {len(large_shares)} of {len(probes)} images, {percent(mean(large_shares), 0)} of "
            "the pixels have a gradient of exactly 0 at every draw, because the model clips there or "
            "ignores them, so the attacks leave these pixels alone and may miss a way to fool the "
            "model: add an attack with the view `bpda`, or `square`",
        )


def _batch_matters(probes: Sequence[SanityCheck]) -> Iterator[Doubt]:
    if not all(probe["alike"] for probe in probes):
        yield Doubt(
            "batch-matters",
            "red",
            "the model answers differently for an image alone and in a batch, so its accuracy "
            "depends on the batch size and cannot be reproduced: call eval() on it, and let it "
            "draw random numbers only from `noise`",
        )


def _one_draw(probes: Sequence[SanityCheck], attacks: Mapping[str, AttackEntry]) -> Iterator[Doubt]:
    random = any(probe["random"] for probe in probes)
    single_draw = [
        n
        for n, row in attacks.items()
        if draws_per_step(row) == 1 and row["view"] != "classifier-only"
    ]
    if random and single_draw:
        yield Doubt(
            "random-model-eot-1",
            "yellow",
            f"the model is random, and {', '.join(single_draw)} follows a single random draw per "
            "step, so the attack is weaker than it could be and the robust accuracy is too high: "
            "raise `eot`",
        )


def _draws_disagree(
    probes: Sequence[SanityCheck], attacks: Mapping[str, AttackEntry]
) -> Iterator[Doubt]:
    agreements = [share for p in probes if (share := p.get("agreement")) is not None]
    draws_by_attack = {
        name: draws_per_step(row) or 0 for name, row in exact_attacks(attacks).items()
    }
    draws = max(draws_by_attack.values(), default=0)
    if not agreements or not draws:
        return
    # `common` is the share of a gradient's mean square that comes from the mean over all draws. For
    # the mean over some draws, that share is common / (common + (1 - common) / draws), which equals
    # the squared cosine between the two means.
    common = max(mean(agreements), 0.0)
    cosine = (common / (common + (1 - common) / draws)) ** 0.5 if common else 0.0
    if cosine < COSINE:
        needed = (1 - common) / common / (COSINE**-2 - 1) if common else MOST_DRAWS + 1
        advice = (
            f"raise `eot` to about {ceil(needed)}, which would make it {COSINE:g}"
            if needed <= MOST_DRAWS
            else (
                f"find out why the gradients differ so much, for even {MOST_DRAWS} draws (`eot`) "
                f"would not make it {COSINE:g}"
            )
        )
        strongest = ", ".join(name for name, count in draws_by_attack.items() if count == draws)
        yield Doubt(
            "eot-gradients-disagree",
            "yellow",
            f"the gradient changes so much from one random draw to the next that {strongest}, "
            f"which averages {draws} per step, mostly follows noise (the cosine with the mean over "
            f"all draws is {cosine:.2f}), and the robust accuracy is too high: {advice}",
        )
