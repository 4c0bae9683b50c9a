"""An evaluation spec, from its text to a run folder."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from defuse import menu
from defuse import spec as specs
from defuse.data import fetch
from defuse.data.made import Images
from defuse.diffusion.execution import execute
from defuse.evaluation.engine import check_machine
from defuse.evaluation.evaluate import Machine, evaluate
from defuse.evaluation.fit import fits, fits_sources
from defuse.evaluation.model import build_model, check_model, say_unknown
from defuse.evaluation.quality import check_perceptual
from defuse.evaluation.record import Keeper, Run
from defuse.machine import pick_device, versions
from defuse.menu import SpecError
from defuse.noise import Noise, permutation
from defuse.parts import fitting
from defuse.protocols import Attack, Classifier, Dataset
from defuse.spec import Table
from defuse.threat import Knowledge, Threat

SECTIONS = (
    "data",
    "classifier",
    "denoiser",
    "purifier",
    "paths",
    "threat",
    "attacks",
    "evaluation",
    "machine",
)
ROLE = ("bounded", "adversarial")  # what an attack says of itself
APART = ("adjoint", "bpda", "matched", "surrogate", "undefended")  # views that take a defence apart
RESERVED = ("clean", "random", "robust")  # rows of a report that are no attack's
EVALUATION: dict[str, tuple[Any, Any]] = {
    "images": (int | None, None),
    "subset_seed": (int, 0),
    "seed": (int, 0),
    "draws": (int, 8),
    "pictures": (int, 8),
    "survivors": (bool, False),
    "lpips": (bool, False),
}


@dataclass(frozen=True)
class Viewed:
    """An attack on what the attacker takes the model for."""

    attack: Attack
    view: Any
    knows: Knowledge | None = None

    @property
    def bounded(self) -> bool:
        """Whether it is held to the threat."""
        return getattr(self.attack, "bounded", True)

    @property
    def adversarial(self) -> bool:
        """Whether its images are chosen to fool the model."""
        return getattr(self.attack, "adversarial", True)

    def __call__(self, model: Classifier, x: Any, y: Any, threat: Threat, noise: Noise) -> Any:
        """Adversarial images, shaped like `x`."""
        return self.attack(self.view(model), x, y, threat, noise)


def check(spec: Table, folder: str | None = None) -> Table:
    """An evaluation spec with every option checked and filled in.

    Args:
        spec: What `spec.load` read.
        folder: Where data sets are read from.

    Raises:
        SpecError: What is wrong with it.
    """
    if spec.get("sweep") is not None:
        raise SpecError(
            "this spec has a sweep: run it by `defuse sweep`; or, for its values outside of the "
            "sweep alone, by `defuse evaluate` with `--set sweep=null`"
        )
    spec = {key: value for key, value in spec.items() if key != "sweep"}
    if "training" in spec:
        raise SpecError("this is a training spec: run it by `defuse train`, not `defuse evaluate`")
    if "certification" in spec:
        raise SpecError("this is a certification spec: run it by `defuse certify`")
    for key in spec:
        if key not in SECTIONS:
            near = menu.hint(key, SECTIONS)
            raise SpecError(f"an evaluation spec has no {key!r}; {near}")
    for key in ("data", "classifier", "threat", "attacks"):
        if key not in spec:
            raise SpecError(f"an evaluation spec needs {key!r}")
    checked = {"data": specs.check_data(spec["data"], folder)} | check_model(spec)
    threat = specs.fields("threat", spec["threat"], {"norm": (str, ...), "eps": (float, ...)})
    try:
        Threat(**threat)
    except ValueError as error:
        raise SpecError(f"threat: {error}") from error
    if threat["norm"] != "l2" and threat["eps"] > 1:
        units = {"linf": "in units of [0, 1] pixels (8/255, say)", "l0": "the share of places"}
        norm = threat["norm"]
        raise SpecError(f"threat.eps of {norm} is at most 1, {units[norm]}, not {threat['eps']}")
    options = specs.fields("evaluation", spec.get("evaluation", {}), EVALUATION)
    machine = check_machine(spec.get("machine", {}))
    for name, value in (options | machine).items():
        least = {"images": 1, "draws": 1, "pictures": 0, "rows": 1, "block": 1}.get(name)
        if least is not None and isinstance(value, int) and value < least:
            raise SpecError(f"{name} must be {least} or more, not {value}")
    if not options["survivors"]:  # so that a spec without it is what it was before there was it
        del options["survivors"]
    return checked | {
        "threat": threat,
        "attacks": _check_attacks(spec["attacks"], defended="purifier" in checked),
        "evaluation": options,
        "machine": machine,
    }


def run(spec: Table, folder: Path, shard: tuple[int, int] = (0, 1), quiet: bool = False) -> Run:
    """Evaluate what a checked `spec` asks, from where `folder` left off.

    Args:
        spec: What `check` returned.
        folder: The run folder.
        shard: (i, n): do the images i, i + n, i + 2 n, ... only.
        quiet: Show no progress.

    Raises:
        SpecError: A part refuses its options, or the parts do not fit each other.
        RuntimeError: The folder holds another run, or the result must not be believed.
    """
    made = parts(spec)
    if spec["machine"]["engine"] == "ray":
        from defuse.evaluation import ray

        return ray.run(spec, made, folder, shard, quiet)
    begun = Run.begin(folder, made.asked, made.fingerprint)
    work(spec, made, begun, made.on(spec, shard, quiet))
    return begun


def work(
    spec: Table,
    made: "Parts",
    keeper: Keeper,
    machine: Machine,
    only: Collection[int] | None = None,
) -> None:
    """Evaluate what a keeper still lacks of a checked `spec`.

    Args:
        spec: What `check` returned.
        made: Its parts.
        keeper: Where outcomes go.
        machine: What changes only the speed.
        only: The images to do; all of the run by default.
    """
    options = spec["evaluation"]
    evaluate(
        made.model,
        made.data,
        made.attacks,
        Threat(**spec["threat"]),
        keeper,
        indices=made.indices,
        only=only,
        seed=options["seed"],
        draws=options["draws"],
        pictures=options["pictures"],
        survivors=options.get("survivors", False),
        lpips=options["lpips"],
        machine=machine,
    )


class Parts(NamedTuple):
    """What a checked spec names, made, and found to fit together.

    Attributes:
        model: The classifier, behind its purifier if it has one.
        data: Images with labels.
        attacks: By label.
        indices: The images of the run.
        device: Where to compute.
        asked: What the run is asked (`question`).
        fingerprint: The hash of the images at some indices.
    """

    model: Classifier
    data: Dataset
    attacks: dict[str, Viewed]
    indices: list[int]
    device: str
    asked: Table
    fingerprint: Callable[[Sequence[int]], str]

    def on(self, spec: Table, shard: tuple[int, int], quiet: bool) -> Machine:
        """What changes only the speed."""
        machine, rows = spec["machine"], spec["machine"]["rows"]
        if rows == "auto":
            image, _ = self.data[self.indices[0]]
            rows = fitting(self.model, image[None].to(self.device))
        execute(self.model, machine["execution"], rows)
        return Machine(self.device, rows, machine["block"], shard, quiet)


def parts(spec: Table) -> Parts:
    """What a checked evaluation spec names.

    Raises:
        SpecError: A part refuses its options, or the parts do not fit each other.
    """
    options, device = spec["evaluation"], pick_device(spec["machine"]["device"])
    data: Dataset = specs.build("data", spec["data"])
    model = build_model(spec, device)
    attacks = dict(_attacks(spec["attacks"]))
    indices = subset(len(data), options["images"], options["subset_seed"])
    fits(model, data, indices, device)
    fits_sources(attacks, data, indices, device)
    say_unknown(model, data[indices[0]][0][None].to(device), spec["attacks"])
    if options["lpips"]:
        try:
            check_perceptual(data[indices[0]][0])
        except ValueError as error:
            raise SpecError(f"evaluation.lpips: {error}") from error
    for label, attack in attacks.items():
        attack.view(model)  # so that one that does not fit is told before the work begins
        if isinstance(attack.attack, Images):
            attacks[label] = replace(attack, attack=attack.attack.over(data, indices))
    given = (attack.attack for attack in attacks.values())
    brought = "".join(images.digest for images in given if isinstance(images, Images))
    asked = question(spec, data, indices, fingerprint(data, indices) + brought)
    made = partial(fingerprint, data, attacks=attacks)
    return Parts(model, data, attacks, indices, device, asked, made)


def question(spec: Table, data: Dataset, indices: Sequence[int], images: str) -> Table:
    """What a run is asked: a checked spec, the images at `indices`, and what tells it from others."""
    return {
        "identity": specs.identity(spec),
        "images": images,
        "code": specs.code(spec),
        "spec": spec,
        "indices": list(indices),
        "classes": list(data.classes),
        "shape": list(data[indices[0]][0].shape),
        "versions": versions(),
    }


def subset(size: int, images: int | None, seed: int) -> list[int]:
    """`images` of the numbers 0 .. size - 1, chosen by `seed`, in order; all of them if None.

    Raises:
        SpecError: There are not so many.
    """
    if images is None:
        return list(range(size))
    if images > size:
        raise SpecError(f"images: the data set has {size}, not {images}; null takes them all")
    return sorted(permutation(size, seed, "subset")[:images])


def fingerprint(
    data: Dataset, indices: Sequence[int], attacks: Mapping[str, Viewed] | None = None
) -> str:
    """A hash of the images and labels at `indices`, and of what was made of them before the run."""
    digest = hashlib.sha256()
    for first in range(0, len(indices), 256):
        x, y = fetch(data, indices[first : first + 256])
        if int(y.min()) < 0 or int(y.max()) >= len(data.classes):
            raise SpecError(
                f"the data set has {len(data.classes)} classes, and labels from {int(y.min())} to "
                f"{int(y.max())}"
            )
        digest.update(x.numpy().tobytes() + y.numpy().tobytes())
    given = [a.attack for a in (attacks or {}).values() if isinstance(a.attack, Images)]
    return digest.hexdigest() + "".join(made.over(data, indices).digest for made in given)


def _check_attacks(attacks: Any, defended: bool) -> list[Table]:
    if not isinstance(attacks, list):
        raise SpecError("attacks must be a list; each has a name, and may have a view and a label")
    checked: list[Table] = []
    for attack in attacks:
        table = dict(specs.part("attack", attack))
        view, label = _check_view(table.pop("view", "exact")), table.pop("label", None)
        knows = _check_knows(table.pop("knows", None))
        for key in ROLE:
            table.pop(key, None)  # of a checked spec; what is named says it
        if not isinstance(label or "", str):
            raise SpecError(f"attack.label must be a word, not {label!r}")
        seen = specs.part("view", view)["name"]
        if seen in APART and not defended:
            raise SpecError(f"the view {seen!r} needs a purifier: leave it out, or add a purifier")
        row = specs.check("attack", table)
        if not row.get("stop"):  # so that a spec without it is what it was before, as above
            row = {key: value for key, value in row.items() if key not in ("stop", "stop_share")}
        said = f"{row['name'].rpartition(':')[2]}-{seen}" + (f"-{knows}" if knows else "")
        row |= {"view": view, "label": label or said} | ({"knows": knows} if knows else {})
        found = menu.find("attack", row["name"])
        row |= {key: False for key in ROLE if not getattr(found, key, True)}
        if row["label"] in RESERVED:
            raise SpecError(
                f"{row['label']!r} is a row of its own: give the attack another `label`"
            )
        if row["label"] in {c["label"] for c in checked}:
            raise SpecError(f"two attacks are called {row['label']!r}: give one another `label`")
        checked.append(row)
    return checked


def _check_knows(word: Any) -> str | None:
    if word is None:
        return None
    try:
        return Knowledge(str(word)).word
    except ValueError as error:
        raise SpecError(f"attack.{error}") from error


def _check_view(view: Any) -> Any:
    """A view as its bare name; or with its options, if it takes any, as a table."""
    if not isinstance(view, str | dict):
        raise SpecError(f"attack.view must be a word, or a table with a name, not {view!r}")
    table = specs.part("view", view)
    if len(table) == 1 and not menu.is_itself("view", menu.find("view", table["name"])):
        return table["name"]  # a class of one's own, made from the model alone
    checked = specs.check("view", table)
    bare = len(checked) == 1 or checked == {"name": "whole", "draws": None}  # known by it for long
    return checked["name"] if bare else checked


def _attacks(rows: Sequence[Table]) -> list[tuple[str, Viewed]]:
    made = []
    for row in rows:
        asides = ("view", "label", "knows", *ROLE)
        table = {key: value for key, value in row.items() if key not in asides}
        attack = specs.build("attack", table)
        view = specs.part("view", row["view"])
        options = {key: value for key, value in view.items() if key != "name"}
        see = menu.find("view", view["name"])
        knows = Knowledge(row["knows"]) if "knows" in row else None
        seen = Viewed(attack, partial(see, **options) if options else see, knows)
        made.append((row["label"], seen))
    return made
