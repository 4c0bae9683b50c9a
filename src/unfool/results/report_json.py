"""The types of `report.json`: the summary of a run, which tables, sentences, and figures read."""

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
        per_draw: The accuracy over all images and draws.
        majority: The share of images for which most draws give the true class.
        all_draws: The share of images for which all draws are right.
        k: The number of draws per image.
        draws: The number of first draws that `per_draw` is based on, if verdicts are curtailed
            (`evaluation.curtail`); missing otherwise.
        undefended: The accuracy of the classifier without its defense.
    """

    per_draw: ShareEntry
    majority: ShareEntry
    all_draws: ShareEntry
    k: int
    draws: NotRequired[int]
    undefended: NotRequired[ShareEntry]


class CleanReadings(ShareEntry, Readings):
    """The readings of the clean images; the one per draw is repeated at the top."""


class Row(TypedDict):
    """A condition of a run.

    Attributes:
        name: The attack's label.
        robust: The accuracies under the attack.
    """

    name: str
    robust: Readings


class AttackSummary(Row):
    """An attack that counts, with how many images it broke."""

    broken: int


class Rung(Row):
    """The accuracy after an attack and all earlier ones, with how many images it was tried on."""

    attacked: int


class KnownNoise(Row):
    """An attack that knows some of the noise, compared with the same attack without that knowledge.

    Attributes:
        knows: The noise that it knows.
        compared_with: The label of the same attack without that knowledge.
        gap: The accuracy without the knowledge minus the accuracy with it.
    """

    knows: str
    compared_with: NotRequired[str]
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
    """The accuracies on the `n` images of one class of the data set."""

    name: str
    n: int
    clean: ShareEntry
    robust: ShareEntry


class Resubmission(TypedDict):
    """How often the model is right every time, if an image is submitted several times."""

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
    """The cost of an evaluation: calls of the networks, time, and memory."""

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
        starts: The processes that worked on the run, the earliest first; empty if none was
            recorded.
        images: A hash of the images and labels.
        weights: A hash of the weights of the model and of the attacks, as built.
        code: A hash of your own code.
    """

    starts: list[Start]
    images: str
    weights: NotRequired[str]
    code: str


class SometimesThere(TypedDict, total=False):
    """What `report.json` holds only of some evaluations.

    Attributes:
        random: The accuracy under random noise, if anything is attacked.
        corrupted: The mean over corruptions, if there are any.
        forecast: The cost that was forecast, if any.
    """

    random: Readings
    corrupted: Readings
    forecast: KeptForecast


class Summary(SometimesThere):
    """What `report.json` holds of an evaluation.

    Attributes:
        version: The version of the format.
        run: The identity of the run.
        spec: The checked spec.
        n: The number of finished images.
        requested: The number of images of the spec.
        clean: The accuracy on clean images.
        robust: The accuracy under the attack that counts.
        resubmission: The accuracy if the same image may be submitted several times.
        flip_rate: The share of draws that disagree with the majority of their image.
        images_checked: The number of images on which the model itself was checked.
        attacks: The attacks that count.
        unbounded: Attacks that the threat does not limit.
        known_noise: Attacks that know some of the noise.
        by_attack: The accuracies after each attack, combined with all earlier ones.
        loss_curves: The loss of each attack over its steps.
        corruptions: Corruptions, which nobody chose to fool the model.
        quality: The distances of images from the clean ones.
        classes: The accuracies by class.
        number_of_classes: The number of classes of the data set.
        threat: What an attacker may change.
        threat_model: The threat model in words.
        not_tried: What the run did not try, in words.
        doubts: Reasons not to believe the result.
        cost: The calls of the networks, the time, and the memory.
        provenance: When, where, and how the run was made, and hashes of its data.
        versions: The versions of Python and of the libraries.
        unfool: The version of this package.
    """

    version: int
    run: str
    spec: EvaluationSpec
    n: int
    requested: int
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
    """The certificate of one image.

    Attributes:
        index: Its place in the data set.
        label: Its class.
        answer: The prediction of the smoothed classifier; None if it abstains.
        radius: The certified radius (l2, in units of [0, 1] pixels).
        rate: The lower bound of the answer's probability under noise.
        most: The class of most estimation draws; None on a tie.
        share: The share of the estimation draws that are right.
    """

    index: int
    label: int
    answer: int | None
    radius: float
    rate: float
    most: int | None
    share: float


class CertificationCost(TypedDict):
    """The cost of a certification: calls of the networks, time, and memory."""

    nfe_forward: int
    classifier_forward: int
    seconds: float
    seconds_per_image: float
    peak_bytes: int


class CertificationSummary(TypedDict):
    """What `report.json` holds of a certification.

    Attributes:
        version: The version of the format.
        kind: `certification`.
        run: The identity of the run.
        spec: The checked spec.
        n: The number of finished images.
        requested: The number of images of the spec.
        certified: For each radius, the share of images certified to be right.
        clean: The share of images for which most draws are right.
        one_draw: The accuracy of a single draw.
        abstained: The share of images for which nothing is certified.
        wrong: The share of images for which a wrong answer is certified.
        mean_radius: The mean certified radius, where wrong and abstained images count as 0.
        reach: The largest radius that this number of draws can prove.
        images: The result for each image.
        cost: The calls of the networks, the time, and the memory.
        provenance: When, where, and how the run was made, and hashes of its data.
        versions: The versions of Python and of the libraries.
        made_by: The versions of the software that computed it.
        unfool: The version of this package.
    """

    version: int
    kind: str
    run: str
    spec: CertificationSpec
    n: int
    requested: int
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
    return {"accuracy": share.value, "low": share.low, "high": share.high}


def share_from_entry(entry: ShareEntry) -> Share:
    """The proportion in an entry of `report.json`."""
    return Share(entry["accuracy"], entry["low"], entry["high"])


def mean_entry(mean: Mean) -> MeanEntry:
    """A mean as `report.json` holds it."""
    return {"mean": mean.mean, "low": mean.low, "high": mean.high}
