"""What is installed, and whether a model keeps its contract."""

import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from unfool import __version__
from unfool import spec as specs
from unfool.attacks.losses import query_model
from unfool.checks import images_of_any_range
from unfool.compatibility import check_classes, logits_of
from unfool.data import fetch
from unfool.errors import SpecError
from unfool.evaluation.prepare import build_model
from unfool.evaluation.sanity_checks import are_probabilities, same_logits
from unfool.evaluation.spec import check_model
from unfool.noise import Noise
from unfool.runtime.device import pick_device


class Finding(NamedTuple):
    """Something the doctor saw: fine, worth knowing, or wrong."""

    mark: Literal["ok", "note", "FAIL"]
    what: str


def installed() -> list[Finding]:
    """The package, Python, the libraries and the device."""
    found = [Finding("ok", f"unfool {__version__}, Python {platform.python_version()}")]
    for name in (
        "torch",
        "diffusers",
        "numpy",
        "scipy",
        "scikit-learn",
        "safetensors",
        "matplotlib",
    ):
        try:
            found.append(Finding("ok", f"{name} {version(name)}"))
        except PackageNotFoundError:
            found.append(Finding("FAIL", f"{name} is missing; run: pip install unfool"))
    try:
        found.append(Finding("ok", f"transformers {version('transformers')}"))
    except PackageNotFoundError:
        extra = "no transformers, which Stable Diffusion needs: pip install 'unfool[latent]'"
        found.append(Finding("note", extra))
    try:
        import_module("torchvision")
        found.append(Finding("ok", f"torchvision {version('torchvision')}"))
    except ImportError:
        found.append(Finding("note", "torchvision is not installed; nothing here needs it"))
    except RuntimeError:
        found.append(
            Finding(
                "FAIL", "torchvision is installed and broken (not built for this torch); remove it"
            )
        )
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        found.append(Finding("ok", f"{name}, {free >> 20} of {total >> 20} MiB free"))
    else:
        found.append(Finding("note", f"no GPU; {torch.get_num_threads()} threads on the CPU"))
    free_disk = shutil.disk_usage(Path.cwd()).free >> 20
    found.append(Finding("ok" if free_disk > 500 else "FAIL", f"{free_disk} MiB of disk free here"))
    return found


def model(
    spec: str | Mapping[str, Any], changes: Sequence[str], folder: str | None, device: str
) -> list[Finding]:
    """Whether the classifier of a spec, and its defense, keep the contract of a classifier.

    Raises:
        SpecError: The spec is wrong.
    """
    table = specs.load(spec, changes)
    where = pick_device(device)
    if "data" not in table:
        raise SpecError("the doctor needs a spec with 'data' and 'classifier'")
    data = specs.build("data", specs.check_data(table["data"], folder))
    made = build_model(check_model(table), where)
    x, y = fetch(data, range(min(32, len(data))))
    found = examine(made, x.to(where), y.to(where), len(data.classes))
    try:
        check_classes(data)
    except SpecError as error:
        found.append(Finding("FAIL", str(error)))
    return found


def examine(model: Any, x: torch.Tensor, y: torch.Tensor, classes: int) -> list[Finding]:
    """Look at a classifier with a few images (B, C, H, W) of [0, 1] and their labels (B,)."""
    noise, found = Noise.of(0, range(len(x))), []

    def say(fine: bool, good: str, bad: str, mark: Literal["note", "FAIL"] = "FAIL") -> None:
        found.append(Finding("ok", good) if fine else Finding(mark, bad))

    with torch.no_grad():
        try:
            logits = logits_of(model, x, noise.child("a"))
        except SpecError as error:
            return [Finding("FAIL", str(error))]
        knows = logits.shape[1]
        if knows < classes:
            what = f"returns {tuple(logits.shape)} for {len(x)} images of {classes} classes"
            return [Finding("FAIL", what)]
        again, other = (model(x, noise.child(k)) for k in ("a", "b"))
        alone = model(x[:2], noise.take([0, 1]).child("a"))
    say(
        knows == classes,
        f"logits of {classes} classes",
        f"logits of {knows} classes, and the data set has {classes}: check that these are the "
        f"classifier's first {classes}, in its order",
        "note",
    )
    say(bool(logits.isfinite().all()), "logits are finite", "logits are not finite")
    softmax = bool(are_probabilities(logits).all())
    say(not softmax, "logits, not probabilities", "returns probabilities: remove its softmax")
    say(
        torch.equal(logits, again),
        "the same noise gives the same answer",
        "the same noise gives another answer: it draws numbers of its own; use its `noise`",
    )
    say(
        same_logits(alone, logits[:2]),
        "an answer does not depend on the batch",
        "an answer depends on the batch: is it in eval mode?",
    )
    training = isinstance(model, nn.Module) and any(m.training for m in model.modules())
    say(not training, "in eval mode", "in training mode: call eval()")
    random = not torch.equal(logits, other)
    found.append(
        Finding("note", "random: judge it on many draws, attack it with eot > 1")
        if random
        else Finding("ok", "deterministic")
    )
    try:
        steep = query_model(model, x, y, "margin", noise, 0, 1).gradient.flatten(1).abs().amax(1)
        say(
            bool((steep > 0).all()),
            "the gradient reaches every image",
            f"the gradient is zero on {int((steep == 0).sum())} of {len(x)} images",
        )
    except RuntimeError as error:
        found.append(Finding("FAIL", " ".join(str(error).split())))
    return [*found, _range(model, x, y, noise, classes)]


@torch.no_grad()
def _range(model: Any, x: torch.Tensor, y: torch.Tensor, noise: Noise, classes: int) -> Finding:
    """Whether the model takes images of [0, 1]: it should do no better on another range."""
    ranges = {"[0, 1]": x, "[-1, 1]": 2 * x - 1, "[0, 255]": 255 * x}
    with images_of_any_range():
        right = {
            name: float((model(images, noise).argmax(1) == y).float().mean())
            for name, images in ranges.items()
        }
    ours, best = right["[0, 1]"], max(right, key=lambda name: right[name])
    if right[best] > ours + 0.2 and right[best] > 1.5 / classes:
        return Finding(
            "FAIL",
            f"right on {ours:.0%} of {len(x)} images, but on {right[best]:.0%} when they are in {best}: "
            "it wants another range; give the classifier a `mean` and a `std`",
        )
    accuracy = f"right on {ours:.0%} of {len(x)} images in [0, 1]"
    if ours <= 1 / classes + 0.1:
        return Finding(
            "note",
            f"{accuracy}: are its weights loaded, its classes in order, its input normalized?",
        )
    return Finding("ok", accuracy)
