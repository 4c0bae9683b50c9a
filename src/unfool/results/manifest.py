"""The description of a run in its folder: `run.json`, `starts/`, and `forecast.json`."""

from typing import Annotated, NotRequired

from pydantic import SkipValidation
from typing_extensions import TypedDict

from unfool.results.spec import CertificationSpec, EvaluationSpec


class Format(TypedDict):
    """What tells the format of a file."""

    version: int


class StatedAccuracy(TypedDict):
    """The clean accuracy that the source of a classifier states (`models.classifiers.Stated`)."""

    accuracy: float
    data: str
    source: str


class Manifest(TypedDict):
    """What a run was asked: `run.json`.

    Attributes:
        version: Of the format.
        kind: `certification` or `collection` (of adversarial images); an evaluation has none.
        identity: A hash of what the spec asks.
        images: A hash of the images.
        code: A hash of your own code: the modules that the spec names, and what these import.
        weights: A hash of the weights of the model and of the attacks, as built.
        logits: How many classes the model tells apart.
        spec: The checked spec.
        indices: Which images of the data set.
        classes: The names of its classes.
        shape: Of an image, (C, H, W).
        versions: Of Python and of the libraries.
        stated: What the source of the classifier states of it.
        sha256: Of all the others (`run_folder.seal`): what a report says of the threat is what was run.
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
    """What was forecast of one image, by condition.

    Attributes:
        calls: Of each network, forward and back.
        seconds: The time.
    """

    calls: dict[str, float]
    seconds: float


class KeptForecast(TypedDict):
    """What was forecast of a run's cost: `forecast.json`, as `forecast.Forecast` says."""

    images: int
    per_image: dict[str, CostForecast]
    most: bool
    batch_size: int
    low: float
    high: float
    workers: int
    calls: dict[str, float]
    seconds: float
