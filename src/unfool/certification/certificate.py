"""Certificates: the answers counted for an image under noise, and what they prove.

A certificate says that the smoothed classifier gives the same answer on every image closer than its
radius, in Euclidean distance (Cohen et al., 2019, theorem 1). It is wrong with a probability of at
most alpha, over the draws of the noise. Everything here is a pure function of the counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from unfool import __version__
from unfool.results.report_json import (
    CertificationCost,
    CertificationSummary,
    CertifiedImage,
    ShareEntry,
    share_entry,
)
from unfool.results.run_folder import Run
from unfool.results.spec import CertificationSpec
from unfool.results.starts import provenance
from unfool.statistics import Share, lower_bound, mean_rate_interval, wilson

VERSION = 1
KIND = "certification"
RADII = (0.0, 0.25, 0.5, 0.75, 1.0)  # the radii in the report's table


@dataclass(frozen=True)
class ClassCounts:
    """The counts of the answers to noisy draws of one image.

    Attributes:
        index: The index of the image in the data set.
        label: The label of the image.
        selected: The count of each class in the draws that choose the answer.
        estimated: The count of each class in the other draws, which measure how sure the answer is.
        seconds: The time spent on the image.
        cost: The network calls spent on the image, and the peak memory in bytes.
        made_by: The versions of the software that counted.
    """

    index: int
    label: int
    selected: dict[int, int]
    estimated: dict[int, int]
    seconds: float
    cost: dict[str, float]
    made_by: str = ""


@dataclass(frozen=True)
class Certificate:
    """What the counts of one image prove.

    Attributes:
        answer: The class of the smoothed classifier; None if it abstains.
        rate: A lower bound on the probability of the answer under noise, at confidence 1 - alpha.
        radius: Every image closer than this, in Euclidean distance of [0, 1] pixels, has the same
            answer; 0 if the classifier abstains.
    """

    answer: int | None
    rate: float
    radius: float


def certificate(count: ClassCounts, sigma: float, alpha: float) -> Certificate:
    """The certificate of an image (Cohen et al., 2019, `Certify`).

    Args:
        count: The counts of its answers under noise.
        sigma: The standard deviation of the noise, in units of [0, 1] pixels.
        alpha: The probability with which the certificate may be wrong.
    """
    answer, total = _most_frequent_class(count.selected), sum(count.estimated.values())
    rate = lower_bound(count.estimated.get(answer, 0), total, alpha)
    if rate <= 0.5:
        return Certificate(None, rate, 0.0)
    return Certificate(answer, rate, sigma * _normal_quantile(rate))


def largest_radius(sigma: float, n: int, alpha: float) -> float:
    """The largest radius that `n` draws can prove, when all agree; 0 if they prove nothing."""
    rate = lower_bound(n, n, alpha)
    return sigma * _normal_quantile(rate) if rate > 0.5 else 0.0


def certified_at(radius: float, images: Sequence[CertifiedImage]) -> Share:
    """The share of a summary's `images` that are certified to be answered right within `radius`."""
    return wilson(sum(_is_correct(row) and row["radius"] >= radius for row in images), len(images))


def summary(run: Run) -> CertificationSummary:
    """The contents of `report.json` for a certification, finished or not.

    Raises:
        RuntimeError: The run is not a certification, has no images yet, or has a damaged file.
    """
    if run.kind != KIND:
        raise RuntimeError(
            f"{run.folder} holds an {run.kind}, not a {KIND}: name the folder of a certification"
        )
    counts = run.read(ClassCounts)
    if not counts:
        raise RuntimeError(f"{run.folder} has no certified images yet: run the certification first")
    spec = cast(CertificationSpec, run.manifest["spec"])
    options = spec["certification"]
    sigma, n, alpha = options["sigma"], options["n"], options["alpha"]
    images = [_image(count, certificate(count, sigma, alpha)) for count in counts]
    mean_radius = sum(row["radius"] for row in images if _is_correct(row)) / len(images)

    def share(holds: Callable[[CertifiedImage], bool]) -> ShareEntry:
        return share_entry(wilson(sum(map(holds, images)), len(images)))

    return {
        "version": VERSION,
        "kind": KIND,
        "run": run.manifest["identity"],
        "spec": spec,
        "n": len(counts),
        "requested": len(run.manifest["indices"]),
        "certified": [{"radius": r, **share_entry(certified_at(r, images))} for r in RADII],
        "clean": share(lambda row: row["most"] == row["label"]),
        "one_draw": share_entry(mean_rate_interval([row["share"] for row in images], n)),
        "abstained": share(lambda row: row["answer"] is None),
        "wrong": share(lambda row: row["answer"] not in (None, row["label"])),
        "mean_radius": mean_radius,
        "reach": largest_radius(sigma, n, alpha),
        "images": images,
        "cost": _cost(counts),
        "provenance": provenance(run),
        "versions": run.manifest["versions"],
        "made_by": sorted({count.made_by for count in counts}),
        "unfool": __version__,
    }


def _image(count: ClassCounts, certified: Certificate) -> CertifiedImage:
    """A row of `report.json`; `most` is the class of most estimation draws, or None on ties."""
    largest, *others = sorted(count.estimated.values(), reverse=True)
    tied = bool(others) and others[0] == largest
    return {
        "index": count.index,
        "label": count.label,
        "answer": certified.answer,
        "radius": certified.radius,
        "rate": certified.rate,
        "most": None if tied else _most_frequent_class(count.estimated),
        "share": count.estimated.get(count.label, 0) / sum(count.estimated.values()),
    }


def _is_correct(row: CertifiedImage) -> bool:
    return row["answer"] == row["label"]


def _most_frequent_class(counts: dict[int, int]) -> int:
    """The class chosen most often; on ties, the lowest number."""
    return min(counts, key=lambda label: (-counts[label], label))


def _cost(counts: Sequence[ClassCounts]) -> CertificationCost:
    seconds = sum(count.seconds for count in counts)
    return {
        "nfe_forward": round(sum(count.cost.get("nfe_forward", 0) for count in counts)),
        "classifier_forward": round(
            sum(count.cost.get("classifier_forward", 0) for count in counts)
        ),
        "seconds": round(seconds, 2),
        "seconds_per_image": round(seconds / len(counts), 4),
        "peak_bytes": int(max(count.cost.get("peak_bytes", 0) for count in counts)),
    }


def _normal_quantile(share: float) -> float:
    """The quantile of the standard normal distribution."""
    from scipy.special import ndtri

    return float(ndtri(share))
