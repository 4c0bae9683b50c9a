"""Builds the model, data, and attacks of a checked evaluation spec, and checks that they fit."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unfool import spec as specs
from unfool.attacks.precomputed import PrecomputedAttack
from unfool.batching import estimate_batch_size
from unfool.compatibility import check_fit, check_sources, undefended
from unfool.data.subset import choose_indices, hash_images, labels_of
from unfool.defenses.aggregate import Aggregated, By
from unfool.defenses.purified_classifier import Purified
from unfool.diffusion.execution import execute
from unfool.errors import SpecError
from unfool.evaluation.evaluate import Machine, evaluate_into
from unfool.evaluation.image_quality import check_perceptual
from unfool.evaluation.spec import ATTACK_FLAGS
from unfool.models.weights_hash import weights_hash
from unfool.noise import Noise
from unfool.protocols import Attack, Classifier, Dataset, Purifier
from unfool.results.manifest import Manifest, StatedAccuracy
from unfool.results.run_folder import OutcomeStore
from unfool.results.spec import (
    AttackEntry,
    CertificationSpec,
    DefenseSpec,
    EvaluationSpec,
    ModelSpec,
)
from unfool.runtime.device import pick_device, versions
from unfool.runtime.validate import truncated_repr
from unfool.spec import Part, menu
from unfool.threat import Knowledge, Threat


@dataclass(frozen=True)
class AttackOnView:
    """An attack on a view of the model.

    Attributes:
        attack: The attack.
        view: A function from model to model (such as `unfool.bpda`), or its name in `unfool menu`.
        knows: What the attacker knows of the defense's noise; None for nothing.
    """

    attack: Attack
    view: Any
    knows: Knowledge | None = None

    @property
    def bounded(self) -> bool:
        """Whether the threat limits the attack."""
        return getattr(self.attack, "bounded", True)

    @property
    def adversarial(self) -> bool:
        """Whether its images are made to fool the model."""
        return getattr(self.attack, "adversarial", True)

    def __call__(self, model: Classifier, x: Any, y: Any, threat: Threat, noise: Noise) -> Any:
        """Return adversarial images, shaped like `x`."""
        return self.attack(self.view(model), x, y, threat, noise)


def run_blocks(
    spec: EvaluationSpec,
    prepared: "Prepared",
    store: OutcomeStore,
    machine: Machine,
    only: Collection[int] | None = None,
) -> None:
    """Evaluate the images of a checked `spec` whose outcomes `store` lacks.

    Args:
        spec: What `check` returned.
        prepared: Its parts.
        store: The store of the outcomes.
        machine: Settings that change only the speed.
        only: The images to evaluate; all of the run by default.
    """
    options = spec["evaluation"]
    evaluate_into(
        prepared.model,
        prepared.data,
        prepared.attacks,
        Threat(**spec["threat"]),
        store,
        indices=prepared.indices,
        only=only,
        seed=options["seed"],
        draws=options["draws"],
        examples=options["examples"],
        skip_broken=options["skip_broken"],
        lpips=options["lpips"],
        curtail=options.get("curtail", False),
        machine=machine,
    )


class Prepared(NamedTuple):
    """The parts that a checked spec names, built and checked to fit together.

    Attributes:
        model: The classifier, behind its purifier if it has one.
        data: Images with labels.
        attacks: The attacks by label.
        indices: The images of the run.
        device: Where to compute.
        manifest: The description of the run (`make_manifest`).
        fingerprint: A function that hashes the images at some indices.
    """

    model: Classifier
    data: Dataset
    attacks: dict[str, AttackOnView]
    indices: list[int]
    device: str
    manifest: Manifest
    fingerprint: Callable[[Sequence[int]], str]

    def set_up_machine(self, spec: EvaluationSpec, shard: tuple[int, int], quiet: bool) -> Machine:
        """Prepare the model's execution; return the settings that change only the speed."""
        machine, rows = spec["machine"], spec["machine"]["batch_size"]
        if rows == "auto":
            image, _ = self.data[self.indices[0]]
            rows = estimate_batch_size(self.model, image[None].to(self.device))
        execute(self.model, machine["execution"], rows)
        return Machine(self.device, rows, machine["images_per_block"], shard, quiet)


def prepare(spec: EvaluationSpec) -> Prepared:
    """Build the parts that a checked evaluation spec names.

    Raises:
        SpecError: A part refuses its options, or the parts do not fit each other.
    """
    device = pick_device(spec["machine"]["device"])
    data: Dataset = specs.build("data", spec["data"])
    return fit_together(
        spec, build_model(spec, device), data, dict(_attacks(spec["attacks"])), device
    )


def fit_together(
    spec: EvaluationSpec,
    model: Classifier,
    data: Dataset,
    attacks: dict[str, AttackOnView],
    device: str,
) -> Prepared:
    """Check that the parts of an evaluation fit each other, and describe the run.

    Args:
        spec: The checked spec, whose parts are given.
        model: On `device`, frozen.
        data: Images with labels.
        attacks: The attacks by label.
        device: Where to compute.

    Raises:
        SpecError: The parts do not fit each other.
    """
    options = spec["evaluation"]
    made_here = [a for a in attacks.values() if not isinstance(a.attack, PrecomputedAttack)]
    weights = weights_hash(model, *made_here)  # before any call, as models may cache results
    indices = choose_indices(
        len(data), options["images"], options["subset_seed"], labels=labels_of(data)
    )
    logits = check_fit(model, data, indices, device)
    check_sources(attacks, data, indices, device)
    warn_of_unused_knowledge(model, data[indices[0]][0][None].to(device), spec["attacks"])
    if options["lpips"]:
        try:
            check_perceptual(data[indices[0]][0])
        except ValueError as error:
            raise SpecError(f"evaluation.lpips: {error}") from error
    for label, attack in attacks.items():
        _check_view(label, attack.view, model)
        if isinstance(attack.attack, PrecomputedAttack):
            attacks[label] = replace(attack, attack=attack.attack.over(data, indices))
    sources = (attack.attack for attack in attacks.values())
    precomputed_digests = "".join(
        images.digest for images in sources if isinstance(images, PrecomputedAttack)
    )
    images = fingerprint(data, indices) + precomputed_digests
    manifest = make_manifest(spec, data, indices, images, weights)
    manifest["logits"] = logits
    if (stated := getattr(undefended(model), "reported", None)) is not None:
        manifest["stated"] = cast(StatedAccuracy, asdict(stated))
    hash_images_at = partial(fingerprint, data, attacks=attacks)
    return Prepared(model, data, attacks, indices, device, manifest, hash_images_at)


def _check_view(label: str, view: Callable[[Classifier], Any], model: Classifier) -> None:
    """Refuse a view that does not fit the model, before the work begins.

    Raises:
        SpecError: The view does not take a model, or returns something that cannot be called.
        ValueError: The view refuses the model, in its own words.
    """
    try:
        viewed = view(model)
    except TypeError as error:
        raise SpecError(
            f"the view of the attack {label} does not work with this model: {error}"
        ) from error
    if not callable(viewed):
        raise SpecError(
            f"the view of the attack {label} must return a model that can be called with (x, "
            f"noise), not {truncated_repr(viewed)}"
        )


def make_manifest(
    spec: EvaluationSpec | CertificationSpec,
    data: Dataset,
    indices: Sequence[int],
    images: str,
    weights: str,
) -> Manifest:
    """Describe a run: a checked spec, the images at `indices`, and what distinguishes the run.

    Args:
        spec: The checked spec.
        data: The data set.
        indices: The images of the run.
        images: Their hash (`fingerprint`).
        weights: A hash of the weights of the model and of the attacks (`weights_hash`).
    """
    return {
        "identity": specs.identity(spec),
        "images": images,
        "code": specs.code_hash(spec),
        "weights": weights,
        "spec": spec,
        "indices": list(indices),
        "classes": list(data.classes),
        "shape": list(data[indices[0]][0].shape),
        "versions": versions(),
    }


def fingerprint(
    data: Dataset, indices: Sequence[int], attacks: Mapping[str, AttackOnView] | None = None
) -> str:
    """Hash the images and labels at `indices`, and adversarial images made before the run."""
    precomputed = [
        a.attack for a in (attacks or {}).values() if isinstance(a.attack, PrecomputedAttack)
    ]
    data_hash = hash_images(data, indices).hexdigest()
    return data_hash + "".join(attack.over(data, indices).digest for attack in precomputed)


def _attacks(rows: Sequence[AttackEntry]) -> list[tuple[str, AttackOnView]]:
    attacks = []
    for row in rows:
        asides = ("view", "label", "knows", *ATTACK_FLAGS)
        table = cast(Part, {key: value for key, value in row.items() if key not in asides})
        attack = specs.build("attack", table)
        view = specs.part("view", row["view"])
        options = {key: value for key, value in view.items() if key != "name"}
        view_function = menu.find("view", view["name"])
        knows = Knowledge(row["knows"]) if "knows" in row else None
        on_view = AttackOnView(
            attack, partial(view_function, **options) if options else view_function, knows
        )
        attacks.append((row["label"], on_view))
    return attacks


def build_model(spec: ModelSpec, device: str) -> Classifier:
    """Build the classifier of a checked spec, behind its purifier if any; frozen, on `device`.

    Raises:
        SpecError: A part refuses its options, or the parts do not fit each other.
    """
    model: Any = specs.build("classifier", spec["classifier"])
    if "purifier" in spec:
        model = Purified(model, build_purifier(spec, device, model))
    if "paths" in spec:
        model = Aggregated(model, paths=spec["paths"]["count"], by=cast(By, spec["paths"]["by"]))
    return _frozen(model, device)


@torch.no_grad()
def warn_of_unused_knowledge(model: Classifier, x: Tensor, attacks: Sequence[AttackEntry]) -> None:
    """Say which attackers know a stream of noise from which the model never draws.

    Args:
        model: The defended model.
        x: An image (1, C, H, W).
        attacks: Entries of a checked spec.
    """
    known_streams = {row.get("knows", "") for row in attacks} & {"forward", "reverse"}
    for word in sorted(known_streams):
        known = [Knowledge(word).reveal(Noise.of(0, [0]), Noise.of(seed, [0])) for seed in (1, 2)]
        if torch.equal(*(model(x, noise.for_query(0)) for noise in known)):
            print(
                f"unfool: the defense draws no {word} noise, so `knows: {word}` is an ordinary "
                "white-box attack here",
                file=sys.stderr,
            )


def build_purifier(
    spec: DefenseSpec, device: str, classifier: Classifier | None = None
) -> Purifier:
    """Build the purifier of a checked spec, with its denoiser; frozen, on `device`.

    Args:
        spec: What `check_purifier` or `check_model` returned.
        device: Where to compute.
        classifier: The classifier, for a purifier that is guided by one.

    Raises:
        SpecError: A part refuses its options.
    """
    denoiser = specs.build("denoiser", spec["denoiser"]) if "denoiser" in spec else None
    # frozen and moved here, because a guide that is not a module may hide one from the purifier
    parts = {"denoiser": _frozen(denoiser, device), "classifier": _frozen(classifier, device)}
    return _frozen(
        specs.build("purifier", specs.part("purifier", spec.get("purifier")), **parts), device
    )


def _frozen(part: Any, device: str) -> Any:
    """Return a network frozen, in evaluation mode, on `device`; a plain function as it is."""
    if isinstance(part, nn.Module):
        part = part.eval().requires_grad_(False).to(device)
    return part
