"""Load the model, classifier, or denoiser that a spec describes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

from unfool import spec as specs
from unfool.diffusion.denoiser import Denoiser
from unfool.errors import SpecError
from unfool.evaluation.prepare import build_model
from unfool.evaluation.spec import check_model
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.runtime.device import pick_device

load_spec = specs.load


class LoadedClassifier(Classifier, Protocol):
    """A classifier that draws fresh noise if it gets none."""

    def __call__(self, x: Tensor, noise: Noise | None = None, /) -> Tensor:
        """Compute the logits (B, K) of images (B, C, H, W) in [0, 1]."""
        ...


def load(
    spec: str | Path | dict[str, Any], changes: Sequence[str] = (), device: str = "auto"
) -> LoadedClassifier:
    """Load the model that a spec describes: its classifier, behind its defense if it has one.

    Args:
        spec: A YAML file, the name of a shipped spec (`"demo"`), or a table.
        changes: `path.to.key=value`, as `--set` takes them.
        device: The device of the model; `"auto"` takes the GPU if there is one.

    Returns:
        A classifier, frozen and in eval mode: `model(x)` with images (B, C, H, W) in [0, 1] gives
        logits (B, K) with fresh noise, and `model(x, noise)` with the given noise.

    Raises:
        ValueError: The spec is wrong; the message says how.
    """
    model = build_model(check_model(specs.load(spec, changes)), pick_device(device))
    return cast(LoadedClassifier, model)


def load_classifier(
    weights: str | Path | None = None,
    *,
    name: str = "trained",
    device: str = "auto",
    **options: Any,
) -> LoadedClassifier:
    """Load a classifier by the name and the options that it has in a spec.

    Args:
        weights: For `"trained"`, the name of a shipped model or a folder with a card; for others,
            the value of their option `weights`.
        name: A classifier of the menu (`"timm"`, `"cifar-network"`, ...), or your own `module:attribute`.
        device: The device of the model; `"auto"` takes the GPU if there is one.
        options: The options of that classifier; `unfool menu NAME` lists them.

    Returns:
        A classifier, frozen and in eval mode: `model(x)` with images (B, C, H, W) in [0, 1] gives
        logits (B, K).

    Raises:
        ValueError: The name or an option is wrong; the message says how.
    """
    if weights is None and name == "trained":
        raise SpecError("give the `weights` of a shipped model, or a classifier's `name`")
    weights_option = {} if weights is None else {"weights": str(weights)}
    return load({"classifier": {"name": name, **weights_option, **options}}, device=device)


def load_denoiser(
    weights: str | Path | None = None,
    *,
    name: str = "trained",
    device: str = "auto",
    **options: Any,
) -> Denoiser:
    """Load a denoiser by the name and the options that it has in a spec.

    `load_denoiser("digits-denoiser")` loads a shipped model, and
    `load_denoiser(name="score-sde", weights="checkpoint_8.pth")` a published checkpoint.

    Args:
        weights: For `"trained"`, the name of a shipped model or a folder with a card; for others,
            the value of their option `weights`.
        name: A denoiser of the menu (`"score-sde"`, `"edm"`, ...), or your own `module:attribute`.
        device: The device of the model; `"auto"` takes the GPU if there is one.
        options: The options of that denoiser; `unfool menu NAME` lists them.

    Returns:
        A denoiser, frozen and in eval mode: `denoiser(x_t, t, label)` gives E[x_0 | x_t].

    Raises:
        ValueError: The name or an option is wrong; the message says how.
    """
    if weights is None and name == "trained":
        raise SpecError("give the `weights` of a shipped model, or a denoiser's `name`")
    weights_option = {} if weights is None else {"weights": str(weights)}
    part = specs.check("denoiser", {"name": name, **weights_option, **options})
    denoiser: Denoiser = specs.build("denoiser", part)
    return denoiser.to(pick_device(device)).eval().requires_grad_(False)
