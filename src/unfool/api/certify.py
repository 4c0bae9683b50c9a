"""A certification from Python, and its result."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unfool.api.evaluate import data_name
from unfool.api.inputs import as_classifier, as_dataset, device_of, frozen_on, number_of_classes
from unfool.api.run_result import RunResult, folder_for
from unfool.api.spec_from_objects import hash_contents, model_parts, modules
from unfool.certification.certificate import certified_at, summary
from unfool.certification.certify import certify_model, check_options
from unfool.protocols import Classifier, Dataset
from unfool.ranges import Count, check_arguments
from unfool.report import certification
from unfool.results.report_json import CertificationSummary, share_from_entry
from unfool.results.run_folder import Run
from unfool.results.spec import CertificationSpec
from unfool.statistics import Share, percent


class CertifyResult(RunResult[CertificationSummary]):
    """The result of a certification. Printing it gives the tables that the command prints.

    Args:
        run: The run.
        home: The temporary folder of the run, if it has one; it is deleted together with the
            result.

    Raises:
        RuntimeError: The run has no images yet, or is not a certification.
    """

    _report = certification

    def __init__(self, run: Run, home: "TemporaryDirectory[str] | None" = None) -> None:
        super().__init__(run, summary(run), home)

    @cached_property
    def certified(self) -> dict[float, Share]:
        """Radius (l2, pixels in [0, 1]) to the share of images certified and right at that radius."""
        rows = self._summary["certified"]
        return {row["radius"]: share_from_entry(row) for row in rows}

    def certified_at(self, radius: float) -> Share:
        """Return the share of images certified and right for every change shorter than `radius`."""
        return certified_at(radius, self._summary["images"])

    @property
    def clean(self) -> Share:
        """The share of images whose true class gets the most draws, certified or not."""
        return share_from_entry(self._summary["clean"])

    @property
    def one_draw(self) -> Share:
        """The share of single noisy draws that are right."""
        return share_from_entry(self._summary["one_draw"])

    @property
    def abstained(self) -> Share:
        """The share of images for which nothing is certified."""
        return share_from_entry(self._summary["abstained"])

    @property
    def wrong(self) -> Share:
        """The share of images for which a wrong answer is certified."""
        return share_from_entry(self._summary["wrong"])

    @property
    def mean_radius(self) -> float:
        """The mean certified radius, counting 0 for images with a wrong answer or none."""
        return self._summary["mean_radius"]

    def to_records(self) -> list[dict[str, Any]]:
        """Return a row per image: `index`, `label`, `answer` (None: abstained), `radius`, `correct`."""
        return [
            {key: row[key] for key in ("index", "label", "answer", "radius")}
            | {"correct": row["answer"] == row["label"]}
            for row in self._summary["images"]
        ]

    def __repr__(self) -> str:
        at = ", ".join(f"{percent(self.certified[r].value)} at {r:g}" for r in (0.25, 0.5))
        return f"<CertifyResult: certified {at} (l2); {self.n} of {self.requested} images>"


def certify(
    model: Classifier | Callable[..., Any],
    data: Dataset | tuple[Any, Any] | Any,
    *,
    sigma: float,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    images: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    classes: Sequence[str] | None = None,
    batch_size: Count = 256,
    device: str | None = None,
    quiet: bool = False,
) -> CertifyResult:
    """Certify answers in l2 by randomized smoothing (Cohen et al., 2019).

    Args:
        model: A model as for `unfool.evaluate`. A purifier needs a method `denoise(x, sigma,
            noise)`.
        data: Images with labels, as for `unfool.evaluate`.
        sigma: The standard deviation of the noise, in units of [0, 1] pixels.
        n0: Draws that choose the answer.
        n: Further draws, which measure how likely the answer is.
        alpha: The largest probability that an image's certificate is wrong.
        images: The number of images, chosen as the command chooses them; all by default.
        seed: Seed of all noise.
        out: A run folder, as for `unfool.evaluate`.
        classes: The name of each class.
        batch_size: The largest number of draws in one call of the model; it changes only speed and
            memory.
        device: The device to compute on; by default that of the model's weights.
        quiet: Show no progress.

    Raises:
        ValueError: An option is out of range, or the parts do not fit each other.
        TypeError: The model cannot be called, or the data are of an unknown kind.
        RuntimeError: The folder holds another run.
    """
    check_arguments(certify, locals())
    classifier = as_classifier(model)
    target_device, trained_sigma = (
        device_of(classifier, device),
        getattr(classifier, "sigma", sigma),
    )
    if getattr(classifier, "noised", False) and trained_sigma != sigma:
        raise ValueError(
            f"the model classifies images with noise of {trained_sigma:g}, not of sigma {sigma:g}: "
            "use the same sigma for both"
        )
    options = {"sigma": sigma, "n0": n0, "n": n, "alpha": alpha, "images": images, "seed": seed}
    with frozen_on(classifier, target_device):
        dataset = as_dataset(
            data, classes, lambda x: number_of_classes(classifier, x.to(target_device))
        )
        code = [{"name": f"{name}:"} for name in modules(classifier)]
        spec: CertificationSpec = {
            "python": "unfool.certify",
            "data": {"name": data_name(dataset)},
            **model_parts(classifier),
            "contents": {"model": hash_contents(classifier), "code": code},
            "certification": check_options(options),
            "machine": {"device": target_device, "batch_size": batch_size},
        }
        folder, home = folder_for(out)
        run = certify_model(spec, classifier, dataset, folder, device=target_device, quiet=quiet)
    return CertifyResult(run, home)
