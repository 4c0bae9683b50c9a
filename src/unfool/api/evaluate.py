"""An evaluation from Python: model, data, and attacks are objects, without a spec or a command."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from unfool.api.inputs import (
    TorchImages,
    as_classifier,
    as_dataset,
    device_of,
    frozen_on,
    number_of_classes,
)
from unfool.api.result import Result
from unfool.api.run_result import folder_for
from unfool.api.spec_from_objects import attack_entry, hash_contents, model_parts, modules
from unfool.argument_checks import check_threat
from unfool.attacks.interop import ExternalAttack
from unfool.attacks.views import exact
from unfool.data.arrays import Arrays
from unfool.errors import SpecError
from unfool.evaluation.forecast import with_forecast
from unfool.evaluation.prepare import AttackOnView, fit_together, run_blocks
from unfool.evaluation.spec import RESERVED
from unfool.protocols import Attack, Classifier, Dataset
from unfool.ranges import Count, check_arguments
from unfool.results.run_folder import Run
from unfool.results.spec import EvaluationSpec
from unfool.results.starts import record_start
from unfool.spec import menu
from unfool.threat import Threat


def evaluate(
    model: Classifier | Callable[..., Any],
    data: Dataset | tuple[Any, Any] | Any,
    *,
    attacks: Mapping[str, Attack | Callable[..., Any]],
    threat: Threat,
    draws: Count = 8,
    images: Count | None = None,
    seed: int = 0,
    skip_broken: bool = False,
    curtail: bool = False,
    out: str | Path | None = None,
    classes: Sequence[str] | None = None,
    batch_size: Count | Literal["auto"] = 256,
    device: str | None = None,
    quiet: bool = False,
) -> Result:
    """Measure a model: clean, under random noise, and under each attack, with intervals and doubts.

    The results are the same as those of `unfool evaluate` with the same parts, options, and seed.

    Args:
        model: A classifier of unfool, called with (x, noise); or a torch module, called with images
            (B, C, H, W) in [0, 1] alone. While it is evaluated it is in eval mode and frozen.
        data: Images in [0, 1] (uint8: 0 to 255) with labels: a pair of tensors (N, C, H, W) and (N,),
            a torch `Dataset` of (image, label), or a data set of unfool.
        attacks: The attacks by name. An attack works on the whole model; `AttackOnView(attack,
            view)` works on a view of it, a function or a name of `unfool menu`. A function
            `f(model, x, y)` is an attack, too.
        threat: The changes that the attacks may make.
        draws: Held-out draws of the model's noise on which each image is evaluated.
        images: The number of images, chosen as the command chooses them; all by default.
        seed: Seed of all noise.
        skip_broken: Attack only images that no earlier attack made wrong on all of the attacker's
            draws.
        curtail: Stop the draws of an image once no further draw can change its majority, or whether
            all draws are right. The accuracy per draw is then that of the first half of the draws.
        out: A run folder, in which finished images are kept, and which can later be extended to
            more images; a temporary folder by default. It is an error if the folder holds another
            run: with another model (weights, buffers, or options), other attacks (their fields),
            other data, or another threat, seed, or number of draws. Your own code counts, too:
            every file of a module and of the modules that it imports, and the compiled classes and
            functions of a notebook or of the main script.
        classes: The name of each class; by default those of the data set, or numbers.
        batch_size: The largest number of images (times draws) in one call of the model; it changes
            only speed and memory.
        device: The device to compute on; by default that of the model's weights.
        quiet: Show no progress.

    Raises:
        ValueError: An option is out of range, or the parts do not fit each other.
        TypeError: The model cannot be called, or the data are of an unknown kind.
        RuntimeError: The folder holds another run, or an attack exceeded the threat.
    """
    check_arguments(evaluate, locals())
    check_threat(threat)
    classifier = as_classifier(model)
    target_device = device_of(classifier, device)
    if not isinstance(attacks, Mapping):
        raise TypeError(f'attacks must be a dictionary such as {{"PGD": PGD()}}, not {attacks!r}')
    viewed = {label: _viewed(label, attack) for label, attack in attacks.items()}
    with frozen_on(classifier, target_device):
        dataset = as_dataset(
            data, classes, lambda x: number_of_classes(classifier, x.to(target_device))
        )
        hashes = {label: hash_contents(attack) for label, attack in viewed.items()}
        code = [{"name": f"{name}:"} for name in modules([classifier, viewed])]
        spec: EvaluationSpec = {
            "python": "unfool.evaluate",
            "data": {"name": data_name(dataset)},
            **model_parts(classifier),
            "threat": {"norm": threat.norm, "eps": float(threat.eps)},
            "attacks": [attack_entry(label, attack) for label, attack in viewed.items()],
            "contents": {"model": hash_contents(classifier), "attacks": hashes, "code": code},
            "evaluation": {
                "subset_seed": 0,
                "examples": 8,
                "lpips": False,
                "images": images,
                "seed": seed,
                "draws": draws,
                "skip_broken": skip_broken,
                "curtail": curtail,
            },
            "machine": {
                "images_per_block": 32,
                "execution": "plain",
                "engine": "local",
                "device": target_device,
                "batch_size": batch_size,
            },
        }
        prepared = fit_together(spec, classifier, dataset, viewed, target_device)
        folder, home = folder_for(out)
        run = Run.begin(folder, prepared.manifest, prepared.fingerprint)
        record_start(run, target_device)
        machine = with_forecast(prepared.set_up_machine(spec, (0, 1), quiet), spec, prepared)
        run_blocks(spec, prepared, run, machine)
    return Result(run, home)


def data_name(data: Dataset) -> str:
    """Return the name of a data set in a report: `tensors`, or the name of its class."""
    inner = data.data if isinstance(data, TorchImages) else data
    return "tensors" if isinstance(inner, Arrays) else type(inner).__name__


def _viewed(label: str, attack: Any) -> AttackOnView:
    if label in RESERVED:
        raise ValueError(
            f"the name {label!r} is reserved for a row of the report: give the attack another name"
        )
    if not isinstance(attack, AttackOnView):
        attack = AttackOnView(attack, exact)
    inner: Any = attack.attack
    view = attack.view
    if _is_short(inner):
        inner = ExternalAttack(inner)
    if not callable(inner):
        raise TypeError(
            f"the attack {label!r} must be callable with (model, x, y, threat, noise), and a "
            f"{type(inner).__name__} is not"
        )
    if isinstance(inner, type):
        raise TypeError(f"the attack {label!r} is a class: pass an instance, {inner.__name__}(...)")
    if isinstance(view, str):
        try:
            view = menu.find("view", view)
        except SpecError as error:
            raise SpecError(f"the attack {label!r}: {error}") from error
    return AttackOnView(cast(Attack, inner), view, attack.knows)


def _is_short(attack: Any) -> bool:
    """Whether an attack is called with (model, x, y), like the attacks of other libraries."""
    return (
        callable(attack)
        and not isinstance(attack, type)
        and (menu.takes_short_call("attack", attack) or menu.makes_short_call("attack", attack))
    )
