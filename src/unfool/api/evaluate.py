"""An evaluation from Python: a model, data and attacks as objects, no spec and no command."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from unfool.api.inputs import (
    TorchImages,
    as_classifier,
    as_dataset,
    device_of,
    lent,
    number_of_classes,
)
from unfool.api.result import Result
from unfool.api.run_result import place_for
from unfool.api.spec_from_objects import attack_entry, contents, model_parts, modules
from unfool.attacks.interop import ExternalAttack
from unfool.attacks.views import exact
from unfool.checks import check_threat
from unfool.data.arrays import Arrays
from unfool.errors import SpecError
from unfool.evaluation.forecast import watched
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
    """Measure a model: clean, under random noise and under each attack, with intervals and doubts.

    The outcomes are those of the command with the same parts, options and seed.

    Args:
        model: A classifier of unfool, called with (x, noise); or a torch module, called with images
            (B, C, H, W) in [0, 1] alone. While it is evaluated it is in eval mode and frozen.
        data: Images in [0, 1] (uint8: 0 to 255) with labels: a pair of tensors (N, C, H, W) and (N,),
            a torch `Dataset` of (image, label), or a data set of unfool.
        attacks: By name. An attack sees the whole model; `AttackOnView(attack, view)` sees what the view
            says, a function or its name in `unfool menu`. A function `f(model, x, y)` will do.
        threat: What they may change.
        draws: Held-out draws of the model's noise in each verdict.
        images: How many, the ones that the command would choose; all by default.
        seed: Of all noise.
        skip_broken: Attack only images that nothing before made wrong on all of the attacker's draws.
        curtail: Stop the verdict on an image once no further draw can change its majority, or whether
            all draws are right; the accuracy per draw is then that of the first half of the draws.
        out: A run folder. What is done there is not done again; a run on fewer of the same images grows.
            It is refused if it holds another run: other contents of the model (weights, buffers and
            options), of the attacks (their fields) or of the data, another threat, seed or number
            of draws. Code of your own counts if it is in a module, with the modules that it imports;
            not that of a notebook, or of the script that is run itself.
        classes: The name of each class; those of the data, or numbers, by default.
        batch_size: The most images (with their draws) in one call of the model; speed only.
        device: Where to compute; by default where the model's weights are.
        quiet: Show no progress.

    Raises:
        ValueError: An option is out of range, or the parts do not fit each other.
        TypeError: The model cannot be called, or the data are of no kind that is known.
        RuntimeError: The folder holds another run, or an attack left the threat.
    """
    check_arguments(evaluate, locals())
    check_threat(threat)
    asked = as_classifier(model)
    place = device_of(asked, device)
    if not isinstance(attacks, Mapping):
        raise TypeError(f'attacks is a dictionary, {{"PGD": PGD()}}, say, not {attacks!r}')
    viewed = {label: _viewed(label, attack) for label, attack in attacks.items()}
    with lent(asked, place):
        images_of = as_dataset(data, classes, lambda x: number_of_classes(asked, x.to(place)))
        hashes = {label: contents(attack) for label, attack in viewed.items()}
        code = [{"name": f"{name}:"} for name in modules([asked, viewed])]
        spec: EvaluationSpec = {
            "python": "unfool.evaluate",
            "data": {"name": data_name(images_of)},
            **model_parts(asked),
            "threat": {"norm": threat.norm, "eps": float(threat.eps)},
            "attacks": [attack_entry(label, attack) for label, attack in viewed.items()],
            "contents": {"model": contents(asked), "attacks": hashes, "code": code},
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
                "device": place,
                "batch_size": batch_size,
            },
        }
        made = fit_together(spec, asked, images_of, viewed, place)
        folder, home = place_for(out)
        run = Run.begin(folder, made.manifest, made.fingerprint)
        record_start(run, place)
        run_blocks(spec, made, run, watched(made.on(spec, (0, 1), quiet), spec, made))
    return Result(run, home)


def data_name(data: Dataset) -> str:
    """What a report calls a data set: `tensors`, or the name of its class."""
    inner = data.data if isinstance(data, TorchImages) else data
    return "tensors" if isinstance(inner, Arrays) else type(inner).__name__


def _viewed(label: str, attack: Any) -> AttackOnView:
    if label in RESERVED:
        raise ValueError(f"{label!r} is a row of its own: give the attack another name")
    if not isinstance(attack, AttackOnView):
        attack = AttackOnView(attack, exact)
    inner: Any = attack.attack
    view = attack.view
    if _is_short(inner):
        inner = ExternalAttack(inner)
    if not callable(inner):
        raise TypeError(f"the attack {label!r} is a {type(inner).__name__}, and cannot be called")
    if isinstance(inner, type):
        raise TypeError(f"the attack {label!r} is a class: make one of it, {inner.__name__}(...)")
    if isinstance(view, str):
        try:
            view = menu.find("view", view)
        except SpecError as error:
            raise SpecError(f"the attack {label!r}: {error}") from error
    return AttackOnView(cast(Attack, inner), view, attack.knows)


def _is_short(attack: Any) -> bool:
    """Whether an attack is called with (model, x, y), as those of other libraries are."""
    return (
        callable(attack)
        and not isinstance(attack, type)
        and (menu.takes_short_call("attack", attack) or menu.makes_short_call("attack", attack))
    )
