"""Checked specs of runs, typed: what a run was asked, as `run.json` and `report.json` hold it."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from unfool.diffusion.execution import Execution
from unfool.ranges import Count, CountFromZero, InPixels, NotNegative
from unfool.spec import Part
from unfool.threat import Norm


class ThreatSection(TypedDict):
    """The section `threat`: what an attacker may change.

    Attributes:
        norm: How a change is measured: the largest of a pixel, the Euclidean length, the sum, or
            the share of places that are changed at all.
        eps: The budget, in units of [0, 1] pixels (8/255, say); of l0 a share of the places.
    """

    norm: Norm
    eps: NotNegative


class Paths(TypedDict):
    """Several purifications of an image, classified together.

    Attributes:
        count: How many purifications.
        by: How they become one answer: the name of a rule.
    """

    count: Count
    by: str


class EvaluationSection(TypedDict):
    """The section `evaluation`: how much is measured, and with which seed.

    Attributes:
        images: How many images of the data set; null takes all.
        subset_seed: Which images of the data set are chosen.
        seed: Of all noise.
        draws: Held-out draws of the model's noise in each verdict.
        examples: Images that the report shows.
        skip_broken: Whether an image that one attack broke is left alone by those after it.
        lpips: Whether the perceptual distance LPIPS is measured, too.
        curtail: Whether the verdict on an image stops once no further draw can change its majority, or
            whether all draws are right; the accuracy per draw is then of the first half of the draws.
    """

    images: Count | None
    subset_seed: int
    seed: int
    draws: Count
    examples: CountFromZero
    skip_broken: bool
    lpips: bool
    curtail: NotRequired[bool]


class MachineSection(TypedDict):
    """The section `machine`: what changes the speed and no result.

    Attributes:
        device: Where to compute: `auto`, `cpu`, `cuda`, `cuda:1`, or `mps`.
        batch_size: The most images (with their draws) in one call of the model; `auto` finds it.
        images_per_block: Images that are done, and written, together.
        execution: How networks are executed; `auto` takes the fastest that gives the same answers.
        engine: This process alone, or Ray on many machines.
        cluster: The address of Ray; null for the one that is here, or for one of its own.
    """

    device: str
    batch_size: Count | Literal["auto"]
    images_per_block: Count
    execution: Execution
    engine: Literal["local", "ray"]
    cluster: NotRequired[str | None]


class AttackEntry(TypedDict, extra_items=Any):
    """An attack of a spec: its name and options, and what stands beside them.

    Attributes:
        name: A name of the menu, or `module:attribute`.
        view: What the attacker takes the model for.
        label: What the report calls the attack.
        knows: The noise of the defense that the attacker knows.
        bounded: False if the attack is not held to the threat.
        adversarial: False if its images are not chosen to fool the model.
    """

    name: str
    view: str | Part
    label: str
    knows: NotRequired[str]
    bounded: NotRequired[bool]
    adversarial: NotRequired[bool]


class DefenseSpec(TypedDict):
    """The parts of a checked spec that make the purifier."""

    denoiser: NotRequired[Part]
    purifier: NotRequired[Part]


class ModelSpec(DefenseSpec):
    """The parts of a checked spec that make the model."""

    classifier: Part
    paths: NotRequired[Paths]


class EvaluationSpec(ModelSpec):
    """A checked evaluation spec; of a run from Python, its objects in the words of a spec.

    Attributes:
        python: The function of the library that was called.
        contents: Hashes of the objects that it was given.
    """

    data: Part
    threat: ThreatSection
    attacks: list[AttackEntry]
    evaluation: EvaluationSection
    machine: MachineSection
    python: NotRequired[str]
    contents: NotRequired[dict[str, Any]]


class CertificationSection(TypedDict):
    """The section `certification`: how answers are certified in l2.

    Attributes:
        sigma: The standard deviation of the noise.
        n0: Draws that choose the answer.
        n: Draws, apart from these, that measure how sure it is.
        alpha: The chance that a certificate may be wrong.
        images: How many images of the data set; null takes all.
        subset_seed: Which images of the data set are chosen.
        seed: Of all noise.
    """

    sigma: InPixels
    n0: Count
    n: Count
    alpha: Annotated[float, Field(gt=0, lt=0.5, description="the chance of a wrong certificate")]
    images: Count | None
    subset_seed: int
    seed: int


class CertificationMachine(TypedDict):
    """The section `machine` of a certification: what changes the speed and no result.

    Attributes:
        device: Where to compute: `auto`, `cpu`, `cuda`, `cuda:1`, or `mps`.
        batch_size: The most draws in one call of the model.
    """

    device: str
    batch_size: Count


class CertificationSpec(ModelSpec):
    """A checked certification spec; of a run from Python, its objects in the words of a spec."""

    data: Part
    certification: CertificationSection
    machine: CertificationMachine
    python: NotRequired[str]
    contents: NotRequired[dict[str, Any]]
