"""Defense by diffusion: defend an image classifier, and learn honestly what that is worth.

The public names are loaded when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Noise": "unfool.noise",
    "Threat": "unfool.threat",
    "Denoiser": "unfool.diffusion.denoiser",
    "DiffPure": "unfool.defenses.diffpure",
    "Purified": "unfool.defenses.purified",
    "NormalizedClassifier": "unfool.models.classifiers",
    "PGD": "unfool.attacks.pgd",
    "SpecError": "unfool.spec.menu",
    "as_module": "unfool.attacks.interop",
    "AttackOnView": "unfool.evaluation.prepare",
    "CertifyResult": "unfool.api.certify",
    "Comparison": "unfool.api.compare",
    "Result": "unfool.api.result",
    "SweepResult": "unfool.api.sweep",
    "certify": "unfool.api.certify",
    "compare": "unfool.api.compare",
    "evaluate": "unfool.api.evaluate",
    "load": "unfool.api.load",
    "load_run": "unfool.api.result",
    "sweep": "unfool.api.sweep",
    "load_classifier": "unfool.models.card",
    "load_denoiser": "unfool.models.card",
    "train": "unfool.training.train",
    "predict_draws": "unfool.defenses.purified",
}
__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'unfool' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
