"""Identification of a file or folder of weights, with the line of a spec that loads it.

Weights are identified by their names and shapes. No code in the file runs.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from unfool.models.card import read_card, shipped
from unfool.models.checkpoints import find_state, read_content
from unfool.models.cifar_layouts import recognize
from unfool.models.published.edm2 import FAMILY as EDM2
from unfool.models.published.openai import family_of
from unfool.models.published.parts import FAMILIES
from unfool.models.robustbench_zoo import ACCURACY
from unfool.runtime.published_files import find_file
from unfool.spec import Part

ENDINGS = (".pt", ".pth", ".ckpt", ".pkl", ".bin", ".safetensors", ".th", ".tar", ".t7")
_FAMILY_NAMES = {
    "score-sde": "score_sde (Song et al., 2021)",
    "guided-diffusion": "guided-diffusion (Dhariwal and Nichol, 2021)",
    "improved-diffusion": "improved-diffusion (Nichol and Dhariwal, 2021)",
    "consistency": "consistency models (Song et al., 2023)",
    "edm": "EDM (Karras et al., 2022)",
    "ddpm": "DDPM (Ho et al., 2020), as ermongroup/ddim and SDEdit have it",
    "dit": "DiT (Peebles and Xie, 2023)",
    "diffusers": "a UNet2DModel of diffusers",
    "stable-diffusion": "Stable Diffusion (Rombach et al., 2022)",
}
_BASIC = {2: "resnet18", 6: "resnet34"}  # by the number of blocks of the third stage
_DEEP = {6: "resnet50", 23: "resnet101", 36: "resnet152"}
# By the number of blocks of the third stage, and the groups of the first 3x3 convolution and the
# channels of each.
_GROUPED = {
    (6, 32, 4): "resnext50_32x4d",
    (23, 32, 4): "resnext101_32x4d",
    (23, 32, 8): "resnext101_32x8d",
    (23, 64, 4): "resnext101_64x4d",
}


class Identified(NamedTuple):
    """The identification of a file or folder of weights.

    Attributes:
        form: The format of the file or folder.
        family: The family of the weights, or their network.
        kind: The kind of model, or None if it is unknown.
        part: The part of a spec that loads the weights, or None if there is none.
        average: Whether the weights are averaged (EMA), in words.
        advice: What to do or specify before the weights load; empty if nothing.
    """

    form: str
    family: str
    kind: Literal["denoiser", "classifier"] | None
    part: Part | None
    average: str
    advice: str = ""


def is_weights(argument: str) -> bool:
    """Return whether a command-line argument looks like weights rather than a spec."""
    path = Path(argument)
    if path.suffix in (".yaml", ".yml"):
        return False
    return path.suffix in ENDINGS or path.is_dir() or path.is_file() or argument in shipped()


def identify(path: Path) -> Identified:
    """Identify a file or folder of weights.

    Args:
        path: The file or folder, or the name of a shipped model.

    Raises:
        FileNotFoundError: No file, folder, or shipped model has that name.
        ValueError: The path cannot be read, or holds no weights.
    """
    if path.is_dir() or str(path) in shipped():
        return _folder(path)
    file = find_file(path)
    content = read_content(file)
    state, location = find_state(content, path)
    if location is not None:
        average = f"averaged weights (EMA), found in {location}"
    elif path.name.startswith("ema") or "ema" in path.parent.name.split("_"):
        average = "averaged weights (EMA), by the name of the file"
    else:
        average = "one table of weights; the file does not say whether they are averaged (EMA)"
    form = _file_format(file)
    return _denoiser(path, state, form, average) or _classifier(path, state, form, average)


def _denoiser(
    path: Path, state: Mapping[str, Tensor], form: str, average: str
) -> Identified | None:
    family = next(
        (o for o, key in FAMILIES.items() if key in state or f"model.{key}" in state), None
    )
    if EDM2 in state:
        return Identified(
            form, "EDM2 (Karras et al., 2024)", "denoiser", _part("edm", path), average
        )
    if family is None:
        return None
    if family == "guided-diffusion":
        family = family_of(state, path.name)
    part: Part | None = _part(family, path)
    advice = ""
    if family == "diffusers":
        part = None
        advice = "name the folder that contains it, with its config.json and scheduler_config.json"
    elif family == "stable-diffusion":
        if not (find_file(path).parent / "tokenizer").is_dir():
            part = {**_part(family, path), "tokenizer": "tokenizer"}
            advice = (
                "name the folder of a tokenizer (vocab.json, merges.txt) of any Stable Diffusion "
                "as tokenizer, or put it next to the file under this name"
            )
        if any(name.startswith("model_ema.diffusion_model") for name in state):
            average = "averaged weights (EMA), found in 'model_ema'"
    elif family == "dit":
        part = {**_part(family, path), "vae": "sd-vae-ft-ema"}
        advice = "name the folder of the autoencoder it was trained with as vae"
    return Identified(form, _FAMILY_NAMES[family], "denoiser", part, average, advice)


def _classifier(path: Path, state: dict[str, Tensor], form: str, average: str) -> Identified:
    if (model := _of_torchvision(state)) is not None:
        part: Part = {**_part("timm", path), "model": model}
        return Identified(form, f"{model} in the names of torchvision and timm", "classifier", part,
                          average)  # fmt: skip
    try:
        layout = recognize(state, str(path))
    except ValueError:
        first = ", ".join(list(state)[:3])
        advice = (
            f"its {len(state)} weights begin with {first}: name your own network, {{name: network, "
            f"network: {{name: 'mine:Net'}}, weights: {path}}}, as classifier or denoiser"
        )
        return Identified(form, "an unknown network", None, None, average, advice)
    part = _of_robustbench(path, layout.classes) or _part("cifar-network", path)
    description = f"{layout.name} for images of 32 x 32" + (
        ", with its normalization inside" if layout.normalization_in_file else ""
    )
    advice = "" if part["name"] == "robustbench" else (
        "for a model of RobustBench, use name: robustbench with the model's name, which sets its "
        "input range"
    )  # fmt: skip
    return Identified(form, description, "classifier", part, average, advice)


def _folder(path: Path) -> Identified:
    if (path / "card.json").is_file() or str(path) in shipped():
        _, card = read_card(str(path))
        kind, network = card.get("kind"), card["part"].get("name", "?")
        kind = kind if kind in ("denoiser", "classifier") else None
        training = card.get("training")
        decay = training.get("ema_decay", 0) if isinstance(training, dict) else None
        average = (
            "its card does not say whether its weights are averaged (EMA)" if decay is None
            else f"averaged weights (EMA of decay {decay}), as its card says" if decay
            else "weights as trained, not averaged, as its card says"
        )  # fmt: skip
        return Identified("weights with a card", f"{network}, trained by unfool", kind,
                          _part("trained", path), average)  # fmt: skip
    unknown = "the folder does not say whether its weights are averaged (EMA)"
    if (path / "transformer").is_dir():
        return Identified(
            "folder of diffusers", _FAMILY_NAMES["dit"], "denoiser", _part("dit", path), unknown
        )
    if (path / "text_encoder").is_dir():
        part = _part("stable-diffusion", path)
        return Identified(
            "folder of diffusers", _FAMILY_NAMES["stable-diffusion"], "denoiser", part, unknown
        )
    for file in (path / "unet" / "config.json", path / "config.json"):
        config = _settings(file)
        if config.get("_class_name") == "UNet2DModel":
            part = _part("diffusers", path)
            return Identified(
                "folder of diffusers", _FAMILY_NAMES["diffusers"], "denoiser", part, unknown
            )
        if any("ImageClassification" in str(name) for name in config.get("architectures") or ()):
            (model,) = config["architectures"][:1]
            return Identified("folder of transformers", str(model), "classifier",
                              _part("transformers", path), unknown)  # fmt: skip
    raise ValueError(
        f"{path} is not a folder of weights, for it has no card.json (unfool), no config.json of a "
        "UNet2DModel or an image classifier, and no unet, transformer, or text_encoder "
        "(diffusers): name a file in it"
    )


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again") from error
    return settings if isinstance(settings, dict) else {}


def _part(name: str, path: Path) -> Part:
    return {"name": name, "weights": str(path)}


def _file_format(path: Path) -> str:
    if path.suffix == ".safetensors":
        return "safetensors"
    if zipfile.is_zipfile(path):
        return "file of torch"
    with path.open("rb") as file:
        old = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" in file.read(16)
    return "file of torch before 1.6" if old else "plain pickle"


def _of_robustbench(path: Path, classes: int) -> Part | None:
    """Return the part for a file named as in RobustBench's zoo, in its folders or elsewhere."""
    data = "cifar100" if classes == 100 else "cifar10"
    fits = [threat for of, threat in ACCURACY if of == data and path.stem in ACCURACY[of, threat]]
    threat = next((t for t in fits if t == path.parent.name), next(iter(fits), None))
    if threat is None:
        return None
    part: Part = {**_part("robustbench", path), "model": path.stem}
    if threat != "Linf":
        part["threat"] = threat
    if data != "cifar10":
        part["dataset"] = data
    return part


def _of_torchvision(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of an ImageNet ResNet or ResNeXt by its names and shapes, or None."""
    first = state.get("conv1.weight")
    if first is None or first.shape[-1] != 7 or "layer3.0.conv1.weight" not in state:
        return None
    blocks = len({name.split(".")[1] for name in state if name.startswith("layer3.")})
    if "layer1.0.conv3.weight" not in state:
        return _BASIC.get(blocks)
    outputs, inputs, *_ = state["layer1.0.conv2.weight"].shape
    if inputs < outputs:
        return _GROUPED.get((blocks, outputs // inputs, inputs))
    wide = outputs == 128
    return {6: "wide_resnet50_2", 23: "wide_resnet101_2"}.get(blocks) if wide else _DEEP.get(blocks)
