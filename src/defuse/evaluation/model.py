"""The model of a spec: a classifier, behind its purifier if it has one."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from defuse import spec as specs
from defuse.defenses.aggregate import Aggregated, By
from defuse.defenses.purified import Purified
from defuse.menu import SpecError
from defuse.noise import Noise
from defuse.protocols import Classifier, Purifier
from defuse.spec import Table
from defuse.threat import Knowledge

PATHS: dict[str, tuple[Any, Any]] = {"count": (int, ...), "by": (By, "softmax")}


def check_model(spec: Table) -> Table:
    """The parts of a spec that make the model: classifier, and denoiser, purifier, paths if any.

    Raises:
        SpecError: What is wrong with them.
    """
    if "classifier" not in spec:
        raise SpecError("the spec needs 'classifier'")
    checked = {"classifier": specs.check("classifier", spec["classifier"])} | check_purifier(spec)
    if spec.get("paths") is not None:
        if "purifier" not in checked:
            raise SpecError(
                "paths are purifications of one image: add a purifier, or leave them out"
            )
        checked["paths"] = specs.fields("paths", spec["paths"], PATHS)
        if checked["paths"]["count"] < 1:
            raise SpecError(f"paths.count must be 1 or more, not {checked['paths']['count']}")
    return checked


def check_purifier(spec: Table) -> Table:
    """The denoiser and the purifier of a spec, if it has them.

    Raises:
        SpecError: What is wrong with them.
    """
    checked: Table = {}
    if spec.get("denoiser") is not None:
        checked["denoiser"] = specs.check("denoiser", spec["denoiser"])
    if spec.get("purifier") is not None:
        checked["purifier"] = specs.check("purifier", spec["purifier"])
        needs = specs.takes("purifier", checked["purifier"])
        if "denoiser" in needs and "denoiser" not in checked:
            name = checked["purifier"]["name"]
            raise SpecError(f"the purifier {name} needs a denoiser: add that part to the spec")
    return checked


def build_model(spec: Table, device: str) -> Classifier:
    """The classifier of a checked spec, behind its purifier if it has one; frozen, on `device`.

    Raises:
        SpecError: A part refuses its options, or the parts do not fit each other.
    """
    model: Any = specs.build("classifier", spec["classifier"])
    if "purifier" in spec:
        model = Purified(model, build_purifier(spec, device, model))
    if "paths" in spec:
        model = Aggregated(model, paths=spec["paths"]["count"], by=spec["paths"]["by"])
    return _frozen(model, device)


@torch.no_grad()
def say_unknown(model: Classifier, x: Tensor, attacks: Sequence[Table]) -> None:
    """Say which attackers are told of a stream of noise from which the model never draws.

    Args:
        model: The defended model.
        x: An image (1, C, H, W).
        attacks: Checked rows of a spec.
    """
    told = {row["knows"] for row in attacks if row.get("knows") in ("forward", "reverse")}
    for word in sorted(told):
        known = [Knowledge(word).told(Noise.of(0, [0]), Noise.of(seed, [0])) for seed in (1, 2)]
        if torch.equal(*(model(x, noise.draws(0)) for noise in known)):
            print(
                f"the defence draws no {word} noise: `knows: {word}` is the white box here",
                file=sys.stderr,
            )


def build_purifier(spec: Table, device: str, classifier: Classifier | None = None) -> Purifier:
    """The purifier of a checked spec, with its denoiser; frozen, on `device`.

    Args:
        spec: What `check_purifier` or `check_model` returned.
        device: Where to compute.
        classifier: For a purifier that is guided by one.

    Raises:
        SpecError: A part refuses its options.
    """
    denoiser = specs.build("denoiser", spec["denoiser"]) if "denoiser" in spec else None
    given = {"denoiser": denoiser, "classifier": classifier}
    return _frozen(specs.build("purifier", spec["purifier"], **given), device)


def _frozen(part: Any, device: str) -> Any:
    """A part that never trains, if it holds a network; a plain function as it is."""
    if isinstance(part, nn.Module):
        part = part.eval().requires_grad_(False).to(device)
    return part
