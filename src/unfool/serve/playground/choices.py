"""The choices that the page offers: samples, the attack's budget, and purifiers to compare."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from torch import Tensor, nn

from unfool import __version__
from unfool import spec as specs
from unfool.api.apply import Loaded
from unfool.data.sample import cifar10_sample
from unfool.data.subset import labels_of
from unfool.defenses.purified_classifier import image_shape
from unfool.protocols import Defended, Purifier
from unfool.serve.defense import Defense
from unfool.serve.playground.settings import Settings
from unfool.spec import Part, RawSpec
from unfool.threat import Norm, Threat

PER_CLASS, CLASSES = 10, 20
IMAGES = 64  # images that the page's spec evaluates
NORMS = ("linf", "l2", "l1")  # norms that PGD supports


class Sample(NamedTuple):
    """A sample image (C, H, W), its label, and the names of all classes."""

    x: Tensor
    label: int
    classes: Sequence[str]


class Choice(NamedTuple):
    """A purifier to compare: its name on the page, its part of a spec, and the object."""

    name: str
    part: Part
    purifier: Purifier


class Choices(NamedTuple):
    """The choices that the page offers.

    Attributes:
        table: The spec.
        norm: The norm of the attack.
        eps: The budget of the attack, times `unit`.
        unit: 255 for linf and color images, whose budgets are shown as n/255; else 1.
        purifiers: The purifiers by key; `own` is the spec's.
        images: Number of images in the spec's data; None if the data are not available.
    """

    table: RawSpec
    norm: Norm
    eps: float
    unit: int
    purifiers: dict[str, Choice]
    images: int | None

    @classmethod
    def of(cls, table: RawSpec, model: Defended | None, defense: Defense) -> "Choices":
        """Return the choices for a spec and its model."""
        section: Any = table.get("threat")
        threat: Any = (
            section
            if section and section.get("norm") in NORMS
            else {"norm": "linf", "eps": "8/255"}
        )
        eps, data = Threat(threat["norm"], threat["eps"]).eps, defense.loaded.data
        color = defense.loaded.shape is not None and defense.loaded.shape[0] == 3
        unit = 255 if color and threat["norm"] == "linf" else 1
        size = None if data is None else len(data)
        purifiers = {} if model is None else _purifiers(table, model, defense.device)
        return cls(table, threat["norm"], round(eps * unit, 6), unit, purifiers, size)

    @property
    def max_eps(self) -> float:
        """The largest budget that the page offers."""
        limit = 4 * (self.eps or self.unit / 16)
        return min(limit, self.unit) if self.norm == "linf" else limit

    @property
    def defense(self) -> str:
        """The spec's purifier and its options in one line; empty if it has none."""
        if not self.purifiers:
            return ""
        name, *options = self.purifiers["own"].part.items()
        options_text = ", ".join(
            f"{key} {value}" for key, value in _with_file_names_only(dict(options)).items()
        )
        return f"{name[1]} ({options_text})" if options_text else name[1]

    def spec(self, settings: Settings) -> str:
        """Write the settings as a spec (YAML), for `unfool sweep` if several purifiers are chosen.

        Files of the server appear only by name, without their folders.
        """
        parts = ("data", "classifier", "denoiser", "purifier", "paths")
        table: dict[str, Any] = {k: v for k in parts if (v := self.table.get(k)) is not None}
        eps = f"{settings.eps:g}/255" if self.unit == 255 else float(f"{settings.eps:g}")
        table["threat"] = {"norm": self.norm, "eps": eps}
        attack = {"name": "pgd", "view": settings.gradient, "loss": "margin"}
        table["attacks"] = [attack | {"steps": settings.steps, "eot": settings.eot}]
        table["evaluation"] = {"draws": settings.votes}
        if settings.seed is not None:
            table["evaluation"]["seed"] = settings.seed
        if self.images is not None:
            table["evaluation"]["images"] = min(IMAGES, self.images)
        chosen = [self.purifiers[key] for key in settings.purifiers if key in self.purifiers]
        if len(chosen) > 1:
            table["sweep"] = {
                "purifier": [{"label": choice.name} | choice.part for choice in chosen]
            }
        text = yaml.safe_dump(
            _with_file_names_only(table), sort_keys=False, default_flow_style=None, width=100
        )
        command = "sweep" if "sweep" in table else "evaluate"
        return f"# unfool {command} FILE (from the playground of unfool {__version__})\n{text}"


def samples_of(loaded: Loaded, table: RawSpec) -> list[Sample]:
    """Return up to 10 images of each of the first 20 classes, sorted by class.

    The images are the spec's; if its data are CIFAR-10 or CIFAR-10-C and not available, those of
    the package. If the data do not list their labels, the first images are taken instead.
    """
    data = loaded.data
    if data is None and loaded.shape == (3, 32, 32) and _name(table) in ("cifar10", "cifar10-c"):
        data = cifar10_sample()
    if data is None:
        return []
    labels, size = labels_of(data), len(data)
    if labels is None:
        chosen = list(range(min(size, PER_CLASS * CLASSES)))
    else:
        indices_of_class: dict[int, list[int]] = {}
        for index, label in enumerate(labels):
            if label < CLASSES and len(indices_of_class.setdefault(label, [])) < PER_CLASS:
                indices_of_class[label].append(index)
        chosen = [index for label in sorted(indices_of_class) for index in indices_of_class[label]]
    return [Sample(x, int(label), data.classes) for x, label in (data[i] for i in chosen)]


def _name(table: RawSpec) -> str:
    return specs.part("data", table["data"])["name"] if "data" in table else ""


def _purifiers(table: RawSpec, model: Defended, device: str) -> dict[str, Choice]:
    """Return the spec's purifier, and those of the package that work with its denoiser."""
    own = specs.part("purifier", table.get("purifier"))
    purifiers = {"own": Choice("this model's", own, model.purifier)}
    denoiser = getattr(model.purifier, "denoiser", None)
    if denoiser is None or image_shape(model.purifier) is None:
        return purifiers
    t = own.get("t", 0.1)
    for key, (name, part) in _other_purifiers(
        float(t) if isinstance(t, int | float) else 0.1
    ).items():
        if part == own:
            continue
        try:
            checked = specs.check("purifier", part)
            purifier = specs.build(
                "purifier", checked, denoiser=denoiser, classifier=model.classifier
            )
        except (ValueError, specs.SpecError):
            continue  # this purifier does not work with the denoiser
        if isinstance(purifier, nn.Module):
            purifier = purifier.eval().requires_grad_(False).to(device)
        purifiers[key] = Choice(name, cast(Part, part), purifier)
    return purifiers


def _other_purifiers(t: float) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return purifiers by key: their names and parts, for noise up to time `t`."""

    def diffpure(sampler: str, steps: int) -> dict[str, Any]:
        return {"name": "diffpure", "sampler": sampler, "t": t, "steps": steps}

    return {
        "ddpm": ("DiffPure, DDPM, 5 steps", diffpure("ddpm", 5)),
        "sde": ("DiffPure, SDE, 20 steps", diffpure("sde", 20)),
        "ddim": ("DiffPure, DDIM, 5 steps", diffpure("ddim", 5)),
        "ode": ("DiffPure, ODE, 10 steps", diffpure("ode", 10)),
        "one-step": ("one step", {"name": "one-step", "t": t}),
        "gdmp": ("GDMP", {"name": "gdmp", "t": 0.036, "steps": 6}),
        "coup": ("COUP, 20 steps", {"name": "coup", "t": t, "steps": 20}),
        "langevin": ("Langevin", {"name": "langevin"}),
        "likelihood": ("likelihood", {"name": "likelihood"}),
    }


def _with_file_names_only(value: Any) -> Any:
    """Return a copy of a table with the paths of files and folders cut to their names."""
    if isinstance(value, list):
        return [_with_file_names_only(item) for item in value]
    if not isinstance(value, dict):
        return value
    files = (*specs.FILE_KEYS, "folder")
    return {
        key: Path(item).name
        if key in files and isinstance(item, str)
        else _with_file_names_only(item)
        for key, item in value.items()
    }
