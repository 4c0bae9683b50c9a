"""The description of a run in its folder: `run.json`, `starts/`, and `forecast.json`."""

from typing import Annotated, NotRequired

from pydantic import SkipValidation
from typing_extensions import TypedDict

from unfool.results.spec import CertificationSpec, EvaluationSpec


class Format(TypedDict):
    """The version of a file's format."""

    version: int


class StatedAccuracy(TypedDict):
    """The clean accuracy that the source of a classifier states, a `ReportedAccuracy`."""

    accuracy: float
    data: str
    source: str


class Manifest(TypedDict):
    """The description of a run: `run.json`.

    Attributes:
        version: Version of the format.
        kind: `certification` or `collection` (of adversarial images); an evaluation has none.
        identity: A hash of what the spec asks.
        images: A hash of the images.
        code: A hash of your own code: the modules that the spec names, and what these import.
        weights: A hash of the weights of the model and of the attacks, as built.
        logits: The number of the model's classes.
        spec: The checked spec.
        indices: Places of the images in the data set.
        classes: The names of its classes.
        shape: Shape of an image, (C, H, W).
        versions: Versions of Python and of the libraries.
        stated: The accuracy that the source of the classifier states.
        sha256: A hash of all other entries (`run_folder.seal`), to detect changes.
    """

    version: NotRequired[int]
    kind: NotRequired[str]
    identity: str
    images: str
    code: str
    weights: NotRequired[str]
    logits: NotRequired[int]
    spec: Annotated[EvaluationSpec | CertificationSpec, SkipValidation]  # by the kind
    indices: list[int]
    classes: list[str]
    shape: NotRequired[list[int]]
    versions: dict[str, str]
    stated: NotRequired[StatedAccuracy]
    sha256: NotRequired[str]


class CostForecast(TypedDict):
    """The forecast cost of one image under one condition.

    Attributes:
        calls: Calls of each network, forward and backward.
        seconds: The time.
    """

    calls: dict[str, float]
    seconds: float


class KeptForecast(TypedDict):
    """The forecast cost of a run: `forecast.json`, as in `forecast.Forecast`."""

    images: int
    per_image: dict[str, CostForecast]
    is_upper_bound: bool
    batch_size: int
    low: float
    high: float
    workers: int
    calls: dict[str, float]
    seconds: float
