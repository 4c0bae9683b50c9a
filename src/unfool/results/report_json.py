"""What `report.json` holds of a run, typed: the summary that tables, sentences and figures read."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from unfool.results.manifest import KeptForecast
from unfool.results.spec import CertificationSpec, EvaluationSpec, ThreatSection
from unfool.runtime.provenance import Start
from unfool.statistics import Mean, Share


class ShareEntry(TypedDict):
    """A proportion with its 95 % interval."""

    accuracy: float
    low: float
    high: float


class MeanEntry(TypedDict):
    """A mean with its 95 % interval; None where there is a single value."""

    mean: float
    low: float | None
    high: float | None


class Readings(TypedDict):
    """How often the model is right under one condition, in three readings (`summary.Judged`).

    Attributes:
        per_draw: Over images and draws.
        majority: Over images, by the class of most draws.
        all_draws: Over images, all of whose draws are right.
        k: Draws of an image.
        draws: Of these, the first ones that the accuracy per draw is of, where verdicts are curtailed.
        undefended: Of the classifier without its defense.
    """

    per_draw: ShareEntry
    majority: ShareEntry
    all_draws: ShareEntry
    k: int
    draws: NotRequired[int]
    undefended: NotRequired[ShareEntry]


class CleanReadings(ShareEntry, Readings):
    """The readings of the clean images, that per draw a second time at the top."""


class Row(TypedDict):
    """A condition of a run.

    Attributes:
        name: The attack's label.
        robust: What it left.
    """

    name: str
    robust: Readings


class AttackSummary(Row):
    """An attack that counts, with how many images it broke."""

    broken: int


class Rung(Row):
    """What the attacker has after an attack, with how many images it was tried on."""

    attacked: int


class KnownNoise(Row):
    """An attack that knows some of the noise, beside the same without.

    Attributes:
        knows: What it knows.
        beside: The attack that knows none.
        gap: By how much it leaves less right.
    """

    knows: str
    beside: NotRequired[str]
    gap: NotRequired[MeanEntry]


class LossBand(TypedDict):
    """The mean loss of `n` images over the steps of an attack, with 95 % intervals."""

    n: int
    mean: list[float]
    low: list[float]
    high: list[float]


class LossCurve(TypedDict):
    """How an attack's loss rose, on images that it left right, and on those it made wrong."""

    name: str
    right: LossBand
    wrong: LossBand


class QualityRow(TypedDict):
    """How far a condition's images are from the clean ones: a mean of each metric."""

    name: str
    before: NotRequired[dict[str, MeanEntry]]
    after: NotRequired[dict[str, MeanEntry]]


class ClassRow(TypedDict):
    """The accuracies of one class of the data set, of `n` images."""

    name: str
    n: int
    clean: ShareEntry
    robust: ShareEntry


class Resubmission(TypedDict):
    """How often the model is right every time, if an image is submitted so many times."""

    submissions: list[int]
    clean: list[ShareEntry]
    random: NotRequired[list[ShareEntry]]
    robust: NotRequired[list[ShareEntry]]


class DoubtEntry(TypedDict):
    """A reason not to believe a result (`doubt.Doubt`)."""

    name: str
    severity: Literal["red", "yellow"]
    why: str


class CostEntry(TypedDict):
    """What an evaluation took: calls of the networks, time and memory."""

    nfe_forward: int
    nfe_vjp: int
    classifier_forward: int
    classifier_vjp: int
    seconds: float
    images_per_second: float
    peak_bytes: int


class Provenance(TypedDict):
    """Where the numbers of a run come from.

    Attributes:
        starts: What worked on it, the earliest first; empty if it was not written down.
        images: A hash of the images and labels.
        weights: A hash of the weights of the model and of the attacks, as built.
        code: A hash of your own code.
    """

    starts: list[Start]
    images: str
    weights: NotRequired[str]
    code: str


class SometimesThere(TypedDict, total=False):
    """What `report.json` holds of some evaluations.

    Attributes:
        random: The accuracy under random noise, if anything is attacked.
        corrupted: The mean over corruptions, if there are any.
        forecast: What it was to take, if that was forecast.
    """

    random: Readings
    corrupted: Readings
    forecast: KeptForecast


class Summary(SometimesThere):
    """What `report.json` holds of an evaluation.

    Attributes:
        version: Of the format.
        run: The identity of the run.
        spec: What was asked.
        n: How many images are done,
        of: and how many were asked for.
        clean: The accuracy on clean images.
        robust: The accuracy under the attack that counts.
        resubmission: How it falls if an image may be submitted again.
        flip_rate: How often a draw disagrees with most draws of its image.
        images_checked: On how many images the model itself was looked at.
        attacks: The attacks that count.
        unbounded: Attacks that no threat bounds.
        known_noise: Attacks that know some of the noise.
        by_attack: What the attacker has after each attack.
        loss_curves: How the losses rose.
        corruptions: What nobody chose to fool the model.
        quality: How far images are from the clean ones.
        classes: The accuracies by class.
        number_of_classes: Of the data set.
        threat: What an attacker may change.
        threat_model: The same in words.
        not_tried: What the run says nothing about, in words.
        doubts: Reasons not to believe the result.
        cost: What it took.
        provenance: When, where, how and on what it was made.
        versions: Of Python and of the libraries.
        unfool: The version of this package.
    """

    version: int
    run: str
    spec: EvaluationSpec
    n: int
    of: int
    clean: CleanReadings
    robust: Readings
    resubmission: Resubmission
    flip_rate: ShareEntry
    images_checked: int
    attacks: list[AttackSummary]
    unbounded: list[Row]
    known_noise: list[KnownNoise]
    by_attack: list[Rung]
    loss_curves: list[LossCurve]
    corruptions: list[Row]
    quality: list[QualityRow]
    classes: list[ClassRow]
    number_of_classes: int
    threat: ThreatSection
    threat_model: dict[str, str]
    not_tried: list[str]
    doubts: list[DoubtEntry]
    cost: CostEntry
    provenance: Provenance
    versions: dict[str, str]
    unfool: str


class CertifiedShare(ShareEntry):
    """The share of images that are certified up to a radius."""

    radius: float


class CertifiedImage(TypedDict):
    """What the counts of one image prove.

    Attributes:
        index: Its place in the data set.
        label: Its class.
        answer: That of the smoothed classifier; None if it abstains.
        radius: Up to which the answer is the same.
        rate: What the answer's share of all noise exceeds.
        most: The class of most estimation draws; None of equals.
        share: Of the estimation draws that are right.
    """

    index: int
    label: int
    answer: int | None
    radius: float
    rate: float
    most: int | None
    share: float


class CertificationCost(TypedDict):
    """What a certification took: calls of the networks, time and memory."""

    nfe_forward: int
    classifier_forward: int
    seconds: float
    seconds_per_image: float
    peak_bytes: int


class CertificationSummary(TypedDict):
    """What `report.json` holds of a certification.

    Attributes:
        version: Of the format.
        kind: `certification`.
        run: The identity of the run.
        spec: What was asked.
        n: How many images are done,
        of: and how many were asked for.
        certified: By radius, how many images are right for certain.
        clean: How many images most draws are right on.
        one_draw: How often a single draw is right.
        abstained: On how many images nothing is certified.
        wrong: On how many a wrong answer is certified.
        mean_radius: Of the right ones; 0 for all others.
        reach: The largest radius that so many draws can prove.
        images: What is proved of each.
        cost: What it took.
        provenance: When, where, how and on what it was made.
        versions: Of Python and of the libraries.
        made_by: The versions of what did it.
        unfool: The version of this package.
    """

    version: int
    kind: str
    run: str
    spec: CertificationSpec
    n: int
    of: int
    certified: list[CertifiedShare]
    clean: ShareEntry
    one_draw: ShareEntry
    abstained: ShareEntry
    wrong: ShareEntry
    mean_radius: float
    reach: float
    images: list[CertifiedImage]
    cost: CertificationCost
    provenance: Provenance
    versions: dict[str, str]
    made_by: list[str]
    unfool: str


def share_entry(share: Share) -> ShareEntry:
    """A proportion as `report.json` holds it."""
    return {"accuracy": share.accuracy, "low": share.low, "high": share.high}


def mean_entry(mean: Mean) -> MeanEntry:
    """A mean as `report.json` holds it."""
    return {"mean": mean.mean, "low": mean.low, "high": mean.high}
