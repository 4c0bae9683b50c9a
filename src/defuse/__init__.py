"""Defence by diffusion: defend an image classifier, and learn honestly what that is worth.

The public names are loaded when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Noise": "defuse.noise",
    "Threat": "defuse.threat",
    "Denoiser": "defuse.diffusion.denoise",
    "DiffPure": "defuse.defenses.diffpure",
    "Purified": "defuse.defenses.purified",
    "Plain": "defuse.models.classifiers",
    "PGD": "defuse.attacks.pgd",
    "SpecError": "defuse.menu",
    "as_module": "defuse.attacks.outside",
    "evaluate": "defuse.evaluation.evaluate",
    "load_classifier": "defuse.models.card",
    "load_denoiser": "defuse.models.card",
    "train": "defuse.training.train",
    "votes": "defuse.defenses.purified",
}
__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'defuse' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
