"""Weights with a card: a folder of `model.safetensors` and `card.json`, which says what it is.

A card holds the part of a spec that builds the network, what it was trained on, by which command,
how well it does, and the sha256 of the weights; nothing else is needed to load it. Of a model too
large for that, a LoRA adapter is kept alone, and the card's part builds what it stands beside.
"""

import inspect
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NotRequired, cast, final

import torch
from torch import nn
from typing_extensions import TypedDict

from unfool import __version__
from unfool import spec as specs
from unfool.diffusion.denoiser import Denoiser
from unfool.models import lora
from unfool.models.checkpoints import fitting, load_state, read_state, sha256
from unfool.models.classifiers import NormalizedClassifier, Stated
from unfool.runtime.files import ADAPTER, write_bytes
from unfool.runtime.validate import read_json
from unfool.spec import Part
from unfool.spec.menu import find, hint

VERSION = 1
MERGED = 20_000_000  # bytes up to which an adapter is kept merged, too


@final
class ClassifierMetrics(TypedDict):
    """How well a classifier does on images that it was not trained on, with a 95 % interval."""

    test_images: int
    accuracy: float
    interval: list[float]


@final
class DenoiserMetrics(TypedDict):
    """How well a denoiser does on images that it was not trained on: its loss, by time."""

    test_images: int
    denoising_loss: dict[str, float]


Metrics = ClassifierMetrics | DenoiserMetrics


class Card(TypedDict, extra_items=Any):
    """What `card.json` says of a model; other facts of its training stand beside these.

    Attributes:
        version: Of the format.
        kind: What it is.
        part: The part of a spec that builds its network.
        sha256: Of the weights, or of the adapter.
        base: The weights beside which an adapter stands (`lora.base_of`).
        objective: The loss that it was trained by.
        metrics: How well it does.
    """

    version: int
    kind: Literal["denoiser", "classifier"]
    part: Part
    sha256: str
    base: NotRequired[str]
    objective: NotRequired[Part]
    metrics: NotRequired[Metrics]


def save(
    folder: Path, kind: str, part: Part, model: nn.Module, half: bool = False, **facts: Any
) -> Path:
    """Write a model and its card to `folder`.

    Args:
        folder: Where to; made if it is not there.
        kind: `"denoiser"` or `"classifier"`.
        part: The checked part of a spec that builds it.
        model: What it built, trained.
        half: Whether weights are stored in float16 (they are float32 again when loaded).
        facts: What else the card should say: data, command, metrics, ...

    Raises:
        ValueError: Its weights are not finite; nothing is written.
    """
    from safetensors.torch import save as to_bytes

    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    if half:
        state = {n: t.half() if t.dtype == torch.float32 else t for n, t in state.items()}
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        where = " in float16" if half else ""
        raise ValueError(
            f"the weights are not finite{where}, and were not saved in {folder}: train with a "
            "lower learning rate"
        )
    path = folder / "model.safetensors"
    write_bytes(path, to_bytes(state))
    facts = {"dtype": "float16" if half else "float32", "sha256": sha256(path), **facts}
    _write(folder, kind, part, model, facts)
    return path


def save_adapter(folder: Path, part: Part, model: nn.Module, **facts: Any) -> Path:
    """Write the LoRA adapter of a denoiser and its card to `folder`; and, of a small one, all weights.

    Weights below float32 are not kept with it: they would round away what it learned.

    Args:
        folder: Where to; made if it is not there.
        part: The checked part of a spec that builds the denoiser as it began.
        model: What it built, with a trained adapter (see `lora`).
        facts: What else the card should say.
    """
    path = folder / ADAPTER
    write_bytes(path, lora.save(model))
    small = sum(p.numel() * p.element_size() for p in model.parameters()) <= MERGED
    if small and all(p.dtype == torch.float32 for p in model.parameters()):
        network, began = network_of("denoiser", part)
        save(folder, "denoiser", network, lora.merged(model), **began, **facts)
    else:
        began = {"dtype": "float32", "sha256": sha256(path), "base": lora.base_of(model)}
        _write(folder, "denoiser", part, model, began | facts)
    return path


def network_of(kind: str, part: Part) -> tuple[Part, dict[str, Any]]:
    """The part that builds the network of a model, with what its card should say of its beginning.

    Args:
        kind: `"denoiser"` or `"classifier"`.
        part: A checked part of a spec; that of a trained model says where it began, and not what
            builds its network.
    """
    if part["name"] == "trained":
        folder, card = read_card(part["weights"])
        check_trust(folder, card["part"], part.get("trust", False))
        return network_of(kind, card["part"])[0], {"began_as": part["weights"]}
    weights = inspect.signature(find(kind, part["name"])).parameters.get("weights")
    if part.get("weights") and weights and weights.default is None:  # it is built without, too
        return {**part, "weights": None}, {"began_as": part["weights"]}
    return part, {}


def begin(model: nn.Module, weights: str) -> list[str]:
    """Give a network every weight of a trained one that fits it by name and shape.

    What the trained one lacks stays random, except tables of labels, which become zero, and heads, which
    become copies of its output layer: a class-conditional network then begins as the unconditional one
    it was made from.

    Args:
        model: Gets the weights, in place.
        weights: The name of a shipped model, or a folder with a card.

    Returns:
        The names of the model's weights that were not found.

    Raises:
        ValueError: There is no such card, the weights are not those it describes, or not one fits.
    """
    folder, card = read_card(weights)
    found = fitting(model, read_state(_file(folder, card)))
    if not found:
        raise ValueError(
            f"no weight of {weights} has a name and shape of the network, so training cannot start "
            "from it: name the weights of a similar network"
        )
    model.load_state_dict(found, strict=False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and f"{name}.weight" not in found:
            nn.init.zeros_(module.weight)
    return [name for name in model.state_dict() if name not in found]


def trained_denoiser(weights: str, trust: bool = False) -> Denoiser:
    """The denoiser of a card, frozen.

    Args:
        weights: The name of a shipped model, or a folder with a card.
        trust: Allow the card to name code (`module:attribute`), which is then run.

    Raises:
        ValueError: There is no such card, the weights are not those it describes, or the card names
            code and is not trusted.
    """
    return _load("denoiser", weights, trust)


def trained_classifier(weights: str, trust: bool = False) -> NormalizedClassifier:
    """The classifier of a card, frozen.

    Args:
        weights: The name of a shipped model, or a folder with a card.
        trust: Allow the card to name code (`module:attribute`), which is then run.

    Raises:
        ValueError: There is no such card, the weights are not those it describes, or the card names
            code and is not trusted.
    """
    model, (_, card) = _load("classifier", weights, trust), read_card(weights)
    accuracy = card.get("metrics", {}).get("accuracy")
    if isinstance(model, NormalizedClassifier) and accuracy is not None and "data" in card:
        model.stated = Stated(accuracy, card["data"]["name"], f"the card of {Path(weights).name}")
    return model


def read_card(weights: str) -> tuple[Path, Card]:
    """The folder of a card, and what it says.

    Raises:
        ValueError: There is no such card, or it cannot be read.
    """
    for folder in (Path(weights), Path(str(resources.files("unfool.weights").joinpath(weights)))):
        path = folder / "card.json"
        if path.is_file():
            try:
                card = read_json(Card, path)
            except ValueError as error:
                raise ValueError(f"{error}: the file is not the card of a model") from error
            if card["version"] != VERSION:
                raise ValueError(
                    f"{path} has format {card['version']}, and this version of unfool reads format "
                    f"{VERSION}: use the version that wrote it"
                )
            return folder, {**card, "part": _renamed(card["part"])}
    raise ValueError(
        f"there is no folder {weights!r} with a card.json, and no shipped model of that name "
        f"(`unfool doctor FOLDER` says which name loads other weights); "
        f"{hint(weights, shipped())}"
    )


def check_trust(folder: Path, part: Part, trust: bool) -> None:
    """Refuse a card that names code, unless the user trusts it: a card is data, like its weights.

    Args:
        folder: Where the card is.
        part: The part that it says.
        trust: What the user said. The card cannot say it itself.

    Raises:
        ValueError: The card names code, or leads back to itself.
    """
    _check_trust(folder, part, trust, ())


def described(part: Part) -> Part:
    """The part that builds a network, read from card to card; nothing is imported.

    Raises:
        ValueError: A card is not there, or leads back to itself.
    """
    if part.get("name") != "trained":
        return part
    folder, card = read_card(part["weights"])
    check_trust(folder, card["part"], True)  # for the cards that lead back to themselves
    return described(card["part"])


def card_files(folder: Path, card: Card) -> tuple[Path, ...]:
    """The files that make up a model: its weights (or adapter), and `card.json`.

    Args:
        folder: Where they are.
        card: What `read_card` returned.

    Raises:
        ValueError: The weights are not there, or are not those the card describes.
    """
    return _file(folder, card), folder / "card.json"


def shipped() -> list[str]:
    """The names of the models that come with the package."""
    home = resources.files("unfool.weights")
    return sorted(f.name for f in home.iterdir() if f.joinpath("card.json").is_file())


def _check_trust(folder: Path, part: Any, trust: bool, above: tuple[Path, ...]) -> None:
    if folder.resolve() in above:
        raise ValueError(
            f"{folder / 'card.json'} refers to itself, so it describes no model: fetch it again"
        )
    named = sorted(set(specs.modules_named(part)))
    tables = list(_tables(part))
    if not trust and (named or any(table.get("trust") for table in tables)):
        raise ValueError(
            f"{folder / 'card.json'} names code ({', '.join(named) or 'and asks for trust'}), "
            "which loading would run: read that code, and if you trust it, add trust: true next to "
            "weights in the spec (in Python: trust=True)"
        )
    for table in tables:
        if table.get("name") == "trained" and isinstance(table.get("weights"), str):
            inner, card = read_card(table["weights"])
            _check_trust(inner, card["part"], trust, (*above, folder.resolve()))


def _tables(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, dict | list):
            yield from _tables(each)


def _load(kind: str, weights: str, trust: bool) -> Any:
    folder, card = read_card(weights)
    if card["kind"] != kind:
        raise ValueError(
            f"{folder} holds a {card['kind']}, not a {kind}: name the folder of a {kind}"
        )
    path, part = _file(folder, card), card["part"]
    check_trust(folder, part, trust)
    precision = part.get("precision", "float32")
    if "base" in card and precision != "float32":
        part: Part = {**part, "precision": "float32"}  # until the adapter is in (see `lora.load`)
    model = specs.build(kind, specs.check(kind, part))
    if "base" in card:
        lora.load(model, path, card["base"], precision)
        return model.eval().requires_grad_(False)
    state = {n: t.float() if t.is_floating_point() else t for n, t in read_state(path).items()}
    load_state(model, state, str(path))
    return model.eval().requires_grad_(False)


def _renamed(part: Part) -> Part:
    """The part of a card, in today's names: cards written by version 0.1 of `defuse` say `clip`."""
    return cast(Part, {("clip_x0" if k == "clip" else k): value for k, value in part.items()})


def _file(folder: Path, card: Card) -> Path:
    """The weights that a card describes, or the adapter.

    Raises:
        ValueError: They are not there, or others are.
    """
    path = folder / (ADAPTER if "base" in card else "model.safetensors")
    if not path.is_file():
        raise ValueError(f"{folder} has a card but no {path.name}: copy it there")
    if sha256(path) != card["sha256"]:
        raise ValueError(
            f"{path} is not the file that its card describes (the sha256 differs): copy it again"
        )
    return path


def _write(folder: Path, kind: str, part: Part, model: nn.Module, facts: Mapping[str, Any]) -> None:
    card = {
        "version": VERSION,
        "kind": kind,
        "part": part,
        "parameters": sum(p.numel() for p in model.parameters()),
        **facts,
        "unfool": __version__,
    }
    write_bytes(folder / "card.json", (json.dumps(card, indent=2) + "\n").encode())
