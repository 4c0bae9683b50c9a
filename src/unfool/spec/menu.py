"""The menu: the short names that a spec may use, and how names are resolved.

Short names are in the literal table below; `module:attribute` is resolved by import and needs no
registration.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from unfool.errors import SpecError

MENU: dict[str, dict[str, str]] = {
    "data": {
        "arrays": "unfool.data.arrays:npz",
        "blobs": "unfool.toy.blobs:Blobs",
        "cifar10": "unfool.data.cifar:cifar10",
        "celeba-hq": "unfool.data.celeba:celeba_hq",
        "cifar10-c": "unfool.data.cifar_c:cifar10_c",
        "cifar10-sample": "unfool.data.sample:cifar10_sample",
        "cifar100": "unfool.data.cifar:cifar100",
        "digits": "unfool.data.digits:digits",
        "folder": "unfool.data.folder:Folder",
        "huggingface": "unfool.data.hub_table:huggingface",
        "imagenet": "unfool.data.imagenet_folders:imagenet",
        "mnist": "unfool.data.mnist:mnist",
        "tiny-imagenet": "unfool.data.imagenet_folders:tiny_imagenet",
    },
    "classifier": {
        "bayes": "unfool.toy.blobs:bayes",
        "cifar-network": "unfool.models.build:cifar_network",
        "cifar-resnet": "unfool.models.build:cifar_resnet",
        "diffusion": "unfool.defenses.diffusion_classifier.classifier:DiffusionClassifier",
        "jem": "unfool.models.build:jem",
        "network": "unfool.models.build:network",
        "noised-diffusion": "unfool.defenses.diffusion_classifier.noised:NoisedDiffusionClassifier",
        "locally-smoothed": "unfool.defenses.local_smoothing:LocalSmoothing",
        "robustbench": "unfool.models.robustbench_zoo:robustbench",
        "small-cnn": "unfool.models.build:small_cnn",
        "timm": "unfool.models.hub_classifiers:timm_classifier",
        "torchvision": "unfool.models.hub_classifiers:torchvision_classifier",
        "trained": "unfool.models.card:trained_classifier",
        "transformers": "unfool.models.hub_classifiers:transformers_classifier",
        "wide-resnet": "unfool.models.build:wide_resnet",
        "quick-resnet": "unfool.models.build:quick",
    },
    "denoiser": {
        "consistency": "unfool.models.published.openai:consistency",
        "ddpm": "unfool.models.published.ddpm:ddpm",
        "diffusers": "unfool.models.published.ddpm:diffusers",
        "dit": "unfool.models.latent:dit",
        "edm": "unfool.models.published.edm:edm",
        "empirical": "unfool.toy.empirical_denoiser:empirical",
        "energy": "unfool.defenses.energy_denoiser:Energy",
        "guided-diffusion": "unfool.models.published.openai:guided_diffusion",
        "improved-diffusion": "unfool.models.published.openai:improved_diffusion",
        "mixture": "unfool.toy.blobs:mixture",
        "network": "unfool.models.build:denoising_network",
        "score-sde": "unfool.models.published.score_sde:score_sde",
        "stable-diffusion": "unfool.models.latent:stable_diffusion",
        "trained": "unfool.models.card:trained_denoiser",
        "unet": "unfool.models.unet:unet",
    },
    "network": {},
    "schedule": {
        "discrete": "unfool.diffusion.schedule:Discrete",
        "vp": "unfool.diffusion.schedule:VP",
    },
    "purifier": {
        "coup": "unfool.defenses.coup:COUP",
        "densepure": "unfool.defenses.denoised_smoothing:DensePure",
        "diffpure": "unfool.defenses.diffpure:DiffPure",
        "flowpure": "unfool.defenses.flowpure:FlowPure",
        "gdmp": "unfool.defenses.gdmp:GDMP",
        "gradual": "unfool.defenses.gradual:Gradual",
        "langevin": "unfool.defenses.langevin:Langevin",
        "likelihood": "unfool.defenses.likelihood:LikelihoodMaximization",
        "one-step": "unfool.defenses.denoised_smoothing:OneStep",
        "resized": "unfool.defenses.resized:Resized",
        "distribution-transfer": "unfool.defenses.distribution_transfer:DistributionTransfer",
    },
    "sampler": {
        "ddim": "unfool.diffusion.reverse:DDIM",
        "ddpm": "unfool.diffusion.reverse:Ancestral",
        "heun": "unfool.diffusion.reverse:Heun",
        "ode": "unfool.diffusion.reverse:flow",
        "sde": "unfool.diffusion.reverse:euler_maruyama",
    },
    "guide": {
        "confidence": "unfool.defenses.coup:Confidence",
        "mimic": "unfool.defenses.mimic:Mimic",
    },
    "correction": {"freqpure": "unfool.defenses.freqpure:FreqPure"},
    "noise_level": {"score-norm": "unfool.defenses.ssni:ScoreNorm"},
    "shaping": {"spectrum": "unfool.defenses.mani:Spectrum"},
    "attack": {
        "apgd": "unfool.attacks.apgd:APGD",
        "autoattack": "unfool.attacks.autoattack:AutoAttack",
        "carlini-wagner": "unfool.attacks.carlini_wagner:CarliniWagner",
        "corruption": "unfool.attacks.corruptions:Corruption",
        "deepfool": "unfool.attacks.deepfool:DeepFool",
        "fab": "unfool.attacks.fab:FAB",
        "fgsm": "unfool.attacks.pgd:fgsm",
        "images": "unfool.attacks.precomputed:PrecomputedAttack",
        "lf": "unfool.attacks.low_frequency:LowFrequency",
        "pgd": "unfool.attacks.pgd:PGD",
        "ppgd": "unfool.attacks.perceptual:PerceptualPGD",
        "random-search": "unfool.attacks.random_search:RandomSearch",
        "salt-and-pepper": "unfool.attacks.salt_and_pepper:SaltAndPepper",
        "square": "unfool.attacks.square:Square",
        "stadv": "unfool.attacks.stadv:StAdv",
        "transfer": "unfool.attacks.transfer:Transfer",
    },
    "view": {
        "adjoint": "unfool.attacks.views:adjoint",
        "bfloat16": "unfool.attacks.views:bfloat16",
        "bpda": "unfool.attacks.views:bpda",
        "exact": "unfool.attacks.views:exact",
        "first-stage": "unfool.attacks.views:first_stage",
        "per-step": "unfool.attacks.views:per_step",
        "surrogate-same-noise": "unfool.attacks.views:surrogate_same_noise",
        "surrogate": "unfool.attacks.views:surrogate",
        "classifier-only": "unfool.attacks.views:classifier_only",
        "no-elimination": "unfool.attacks.views:no_elimination",
    },
    "objective": {
        "addt": "unfool.training.objectives.addt:ADDT",
        "adversarial-bridge": "unfool.training.objectives.adversarial_bridge:AdversarialBridge",
        "alp": "unfool.training.objectives.logit_pairing:ALP",
        "awp": "unfool.training.objectives.weight_perturbation:AWP",
        "consistency": "unfool.training.objectives.consistency:ConsistencyDistillation",
        "denoising": "unfool.training.objectives.denoising:Denoising",
        "pgd-at": "unfool.training.objectives.adversarial:PGDAT",
        "cross-entropy": "unfool.training.objectives.cross_entropy:CrossEntropy",
        "macer": "unfool.training.objectives.macer:MACER",
        "purified": "unfool.training.objectives.purified_copies:PurifiedCopies",
        "trades": "unfool.training.objectives.adversarial:TRADES",
        "truth-maximization": "unfool.training.objectives.truth_maximization:TruthMaximization",
    },
}

MEANINGS = {
    "data": "images with labels",
    "classifier": "images to logits",
    "denoiser": "the diffusion model",
    "network": "your own torch module, inside a classifier or denoiser called `network`",
    "schedule": "of a denoiser: times to noise levels",
    "purifier": "images to images",
    "sampler": "of a purifier: how a reverse step is computed",
    "guide": "of a purifier: a term of the score",
    "correction": "of a purifier: what corrects the estimate of the clean image",
    "noise_level": "of a purifier: the time that each image is noised to",
    "shaping": "of a purifier: what shapes the forward noise",
    "attack": "images to adversarial images",
    "view": "of an attack: the version of the model that the attack works on",
    "objective": "of a training: the loss",
}

# Arguments that the caller fills in, so a spec may not. A class that a spec names is instantiated
# with its options; a function that takes the arguments of a call is itself the part.
CALL_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "attack": ("model", "x", "y", "threat", "noise"),
    "classifier": ("x", "noise"),
    "correction": ("x_hat", "x", "now"),
    "noise_level": ("x", "t", "noise"),
    "guide": ("x_t", "x_hat", "now", "then", "noise"),
    "objective": ("model", "x", "y", "noise"),
    "purifier": ("x", "noise"),
    "sampler": ("x_t", "x_hat", "now", "then", "noise"),
    "shaping": ("eps", "x"),
    "view": ("model",),
}
# The arguments of shorter functions, as other libraries have them, and the class that wraps them
# as a part. A function may also name the other arguments of the call.
SHORT_CALLS: dict[str, tuple[tuple[str, ...], str]] = {
    "attack": (("model", "x", "y"), "unfool.attacks.interop:ExternalAttack"),
}
# Options that contain a part but are not named after its kind.
KIND_OF_OPTION = {"source": "classifier"}
# Kinds whose short names are passed on as text, because the enclosing part resolves them and has
# their options.
WORDS = ("sampler",)
PROVIDED: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("purifier", "sampler", "guide", "correction", "noise_level", "shaping"),
    ("denoiser", "classifier"),
)


def shipped() -> dict[str, str]:
    """Return the specs that come with the package: name to the first line of its text."""
    files = sorted(resources.files("unfool.specs").iterdir(), key=lambda file: file.name)
    found = [(Path(f.name).stem, f.read_text("utf-8")) for f in files if f.name.endswith(".yaml")]
    return {name: text.splitlines()[0].lstrip("# ") for name, text in found}


def find(kind: str, name: str) -> Any:
    """Import the class or function that `name` stands for: a short name or `module:attribute`.

    Raises:
        SpecError: The menu has no such name, the import fails, or the result is not a class or
            a Python function.
    """
    target = name if ":" in name else MENU[kind].get(name)
    if target is None:
        raise SpecError(f"{kind}: there is no {name!r}; {hint(name, MENU[kind], choices(kind))}")
    module, _, attribute = target.partition(":")
    if ":" in name and not {"", os.getcwd()} & set(sys.path):
        # Last, so that no file in the current folder shadows an installed module.
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module may raise anything
        raise SpecError(f"{kind}: {target!r} cannot be imported: {error}") from error
    try:
        inspect.signature(found)
    except (TypeError, ValueError) as error:
        what = f"{type(found).__name__} {found!r}" if not callable(found) else "built-in function"
        raise SpecError(
            f"{kind}: {target!r} is the {what}: name a class or a function written in Python"
        ) from error
    return found


def kind_of(key: str) -> str | None:
    """Return the kind of part that an option of this name contains; None if it is not a part."""
    return key if key in MENU else KIND_OF_OPTION.get(key)


def is_callable_part(kind: str, found: Any) -> bool:
    """Return whether a part names a function that is itself the part, not a factory of it."""
    call = CALL_ARGUMENTS.get(kind)
    if call is None or inspect.isclass(found):
        return False
    return tuple(inspect.signature(found).parameters)[: len(call)] == call


def takes_short_call(kind: str, found: Any) -> bool:
    """Return whether a part names a function with the fewer arguments of `SHORT_CALLS`."""
    first, _ = SHORT_CALLS.get(kind, ((), ""))
    if not first or inspect.isclass(found) or is_callable_part(kind, found):
        return False
    return tuple(inspect.signature(found).parameters)[: len(first)] == first


def makes_short_call(kind: str, made: Any) -> bool:
    """Return whether an object that a part made is called with the arguments of `SHORT_CALLS`."""
    if kind not in SHORT_CALLS or not callable(made) or not takes_short_call(kind, made):
        return False
    taken = inspect.signature(made).parameters.values()
    return sum(p.default is p.empty for p in taken) < len(CALL_ARGUMENTS[kind])


def options_of(kind: str, found: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters that a spec may set; the caller fills in the others."""
    called = is_callable_part(kind, found) or takes_short_call(kind, found)
    filled_in = (*PROVIDED.get(kind, ()), *(CALL_ARGUMENTS.get(kind, ()) if called else ()))
    signature = inspect.signature(found).parameters
    return {key: p for key, p in signature.items() if key not in filled_in}


def menu() -> dict[str, tuple[str, list[str]]]:
    """Return what a spec may name: kind to its meaning and its short names."""
    return {kind: (MEANINGS[kind], sorted(names)) for kind, names in MENU.items()}


def hint(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return half a sentence: the known word that is closest to `word`, or else all choices."""
    words = list(known)
    near = get_close_matches(word, words, 1)
    return f"did you mean {near[0]!r}?" if near else f"choose from: {otherwise or ', '.join(words)}"


def choices(kind: str) -> str:
    """Return the names that a part of this kind may have, as text."""
    return ", ".join([*sorted(MENU[kind]), "your own module:attribute"])
