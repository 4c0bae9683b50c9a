"""The types of checked specs, as `run.json` and `report.json` hold them."""

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
        norm: How a change is measured: `linf` (the largest change of a pixel), `l2` (the Euclidean
            length), `l1` (the sum of all changes), or `l0` (the share of pixels that are changed at
            all).
        eps: The budget, in units of [0, 1] pixels (such as 8/255); for l0, a share of the pixels.
    """

    norm: Norm
    eps: NotNegative


class Paths(TypedDict):
    """Several purifications of an image, classified together.

    Attributes:
        count: The number of purifications.
        by: The rule that combines them into one answer: `logits`, `softmax`, or `votes`.
    """

    count: Count
    by: str


class EvaluationSection(TypedDict):
    """The section `evaluation`: how much is measured, and with which seed.

    Attributes:
        images: How many images of the data set; null takes all.
        subset_seed: Which images of the data set are chosen.
        seed: Seed of all noise.
        draws: Held-out draws of the model's noise on which each image is evaluated.
        examples: Images that the report shows.
        skip_broken: Whether later attacks skip the images that earlier ones broke.
        lpips: Whether the perceptual distance LPIPS is measured, too.
        curtail: Whether the verdict on an image stops once no further draw can change its majority,
            or whether all draws are right; the accuracy per draw is then of the first half of the
            draws.
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
        device: The device to compute on: `auto`, `cpu`, `cuda`, `cuda:1`, or `mps`.
        batch_size: The largest number of images (times draws) in one call of the model; `auto`
            finds it.
        images_per_block: The number of images that are attacked and saved together.
        execution: How networks are executed; `auto` takes the fastest way that gives the same
            answers.
        engine: `local` uses this process alone, and `ray` uses Ray on many machines.
        cluster: The address of Ray; null uses a running Ray on this machine, or starts one.
    """

    device: str
    batch_size: Count | Literal["auto"]
    images_per_block: Count
    execution: Execution
    engine: Literal["local", "ray"]
    cluster: NotRequired[str | None]


class AttackEntry(TypedDict, extra_items=Any):
    """An attack of a spec: its name, its options, and entries that any attack may have.

    Attributes:
        name: A name of the menu, or `module:attribute`.
        view: The version of the model that the attack works on.
        label: The name of the attack in the report.
        knows: The noise of the defense that the attacker knows.
        bounded: False if the threat does not limit the attack.
        adversarial: False if the images are not made to fool the model.
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
    """A checked evaluation spec, or the description of a run from Python in the same form.

    Attributes:
        python: The function of the library that was called.
        contents: Hashes of the objects that the function was given.
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
        sigma: The standard deviation of the noise, in units of [0, 1] pixels.
        n0: Draws that choose the answer.
        n: Further draws, which measure how likely the answer is.
        alpha: The largest probability that a certificate is wrong.
        images: How many images of the data set; null takes all.
        subset_seed: Which images of the data set are chosen.
        seed: Seed of all noise.
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
        device: The device to compute on: `auto`, `cpu`, `cuda`, `cuda:1`, or `mps`.
        batch_size: The largest number of draws in one call of the model.
    """

    device: str
    batch_size: Count


class CertificationSpec(ModelSpec):
    """A checked certification spec, or the description of a run from Python in the same form."""

    data: Part
    certification: CertificationSection
    machine: CertificationMachine
    python: NotRequired[str]
    contents: NotRequired[dict[str, Any]]
