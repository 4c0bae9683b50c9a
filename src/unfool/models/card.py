"""Weights with a card: a folder with `model.safetensors` and `card.json`, which describes it.

A card holds the part of a spec that builds the network, the training data and command, the metrics,
and the SHA-256 of the weights; nothing else is needed to load the model. For a large model with a
LoRA adapter, only the adapter is saved, and the card's part builds the model without it.
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
from unfool.models.checkpoints import load_state, read_state, sha256, weights_that_fit
from unfool.models.classifiers import NormalizedClassifier, ReportedAccuracy
from unfool.runtime.files import ADAPTER, write_bytes
from unfool.runtime.validate import read_json
from unfool.spec import Part
from unfool.spec.menu import find, hint

VERSION = 1
MERGED = 20_000_000  # bytes of a model up to which the merged weights are saved with an adapter
READ_FROM_WEIGHTS = ("cifar-network",)  # the network, mean, and std are read from its weights


@final
class ClassifierMetrics(TypedDict):
    """The accuracy of a classifier on images outside its training set, with a 95 % interval."""

    test_images: int
    accuracy: float
    interval: list[float]


@final
class DenoiserMetrics(TypedDict):
    """The loss of a denoiser, by time, on images outside its training set."""

    test_images: int
    denoising_loss: dict[str, float]


Metrics = ClassifierMetrics | DenoiserMetrics


class Card(TypedDict, extra_items=Any):
    """The contents of `card.json`, which may also have other facts about the training.

    Attributes:
        version: The version of the format.
        kind: The kind of the model.
        part: The part of a spec that builds the network.
        sha256: The SHA-256 of the weights, or of the adapter.
        base: The hash of the weights that an adapter belongs to (`lora.base_weights_hash`).
        objective: The training loss.
        metrics: Metrics on images outside the training set.
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
        folder: The folder, created if it is missing.
        kind: `"denoiser"` or `"classifier"`.
        part: The checked part of a spec that builds the model.
        model: The trained model.
        half: Whether weights are stored in float16 (loading converts them back to float32).
        facts: Other entries of the card: data, command, metrics, ...

    Raises:
        ValueError: A weight is not finite, or too large for float16; nothing is written.
    """
    from safetensors.torch import save as to_bytes

    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise ValueError(
            f"the weights are not finite, and were not saved in {folder}: train with a lower "
            "learning rate"
        )
    if half:
        state = {n: t.half() if t.dtype == torch.float32 else t for n, t in state.items()}
        if large := [n for n, t in state.items() if not bool(t.isfinite().all())]:
            raise ValueError(
                f"{large[0]} is too large for float16, so the weights were not saved in {folder}: "
                "set training.save_half: false, and run the command again"
            )
    path = folder / "model.safetensors"
    write_bytes(path, to_bytes(state))
    facts = {"dtype": "float16" if half else "float32", "sha256": sha256(path), **facts}
    _write(folder, kind, part, model, facts)
    return path


def save_adapter(folder: Path, part: Part, model: nn.Module, **facts: Any) -> Path:
    """Write the LoRA adapter of a denoiser and its card to `folder`.

    For a small float32 model (see `MERGED`), the weights with the adapter merged are also written,
    and the card describes these. Lower precision would round off what the adapter learned.

    Args:
        folder: The folder, created if it is missing.
        part: The checked part of a spec that builds the denoiser without the adapter.
        model: The denoiser with a trained adapter (see `lora`).
        facts: Other entries of the card.
    """
    path = folder / ADAPTER
    write_bytes(path, lora.save(model))
    small = sum(p.numel() * p.element_size() for p in model.parameters()) <= MERGED
    if small and all(p.dtype == torch.float32 for p in model.parameters()):
        network, origin = network_of("denoiser", part)
        save(folder, "denoiser", network, lora.merged(model), **origin, **facts)
    else:
        origin = {"dtype": "float32", "sha256": sha256(path), "base": lora.base_weights_hash(model)}
        _write(folder, "denoiser", part, model, origin | facts)
    return path


def network_of(kind: str, part: Part) -> tuple[Part, dict[str, Any]]:
    """Return the part that builds a model's network, and the card's entry on its initial weights.

    Args:
        kind: `"denoiser"` or `"classifier"`.
        part: A checked part of a spec; for a trained model, the network is read from its card.
    """
    if part["name"] == "trained":
        folder, card = read_card(part["weights"])
        check_trust(folder, card["part"], part.get("trust", False))
        return network_of(kind, card["part"])[0], {"began_as": part["weights"]}
    weights = inspect.signature(find(kind, part["name"])).parameters.get("weights")
    optional = weights and weights.default is None and part["name"] not in READ_FROM_WEIGHTS
    if part.get("weights") and optional:
        return {**part, "weights": None}, {"began_as": part["weights"]}
    return part, {}


def initialize_from(model: nn.Module, weights: str) -> list[str]:
    """Initialize a network with every weight of a trained model that fits by name and shape.

    All other weights stay random, except label embeddings, which become zero, and heads, which
    become copies of the trained model's output layer. A class-conditional network then starts as
    the unconditional one it was made from.

    Args:
        model: The network, which is changed in place.
        weights: The name of a shipped model, or a folder with a card.

    Returns:
        The names of the network's weights that the trained model lacks.

    Raises:
        ValueError: There is no such card, the file of weights does not match it, or no weight fits.
    """
    folder, card = read_card(weights)
    fitted = weights_that_fit(model, read_state(_file(folder, card)))
    if not fitted:
        raise ValueError(
            f"no weight of {weights} has a name and shape of the network, so training cannot start "
            "from it: name the weights of a similar network"
        )
    model.load_state_dict(fitted, strict=False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and f"{name}.weight" not in fitted:
            nn.init.zeros_(module.weight)
    return [name for name in model.state_dict() if name not in fitted]


def trained_denoiser(weights: str, trust: bool = False) -> Denoiser:
    """A denoiser trained by unfool, loaded from its card and frozen.

    Args:
        weights: The name of a shipped model, or a folder with a card.
        trust: Allow the card to name code (`module:attribute`), which is then run.

    Raises:
        ValueError: There is no such card, the file of weights does not match it, or the card names
            code and is not trusted.
    """
    model, card = _load("denoiser", weights, trust)
    adapted = card.get("training", {"lora": None}).get("lora")
    if not adapted:  # an adapter keeps what the model knew before
        model.t_max = card.get("objective", {"name": ""}).get("t_max", 1.0)
    return model


def trained_classifier(weights: str, trust: bool = False) -> NormalizedClassifier:
    """A classifier trained by unfool, loaded from its card and frozen.

    Args:
        weights: The name of a shipped model, or a folder with a card.
        trust: Allow the card to name code (`module:attribute`), which is then run.

    Raises:
        ValueError: There is no such card, the file of weights does not match it, or the card names
            code and is not trusted.
    """
    model, card = _load("classifier", weights, trust)
    accuracy = card.get("metrics", {}).get("accuracy")
    if isinstance(model, NormalizedClassifier):
        model.reported = None  # that of the weights from which training started
        if accuracy is not None and "data" in card:
            model.reported = ReportedAccuracy(
                accuracy, card["data"]["name"], f"the card of {Path(weights).name}"
            )
    return model


def read_card(weights: str) -> tuple[Path, Card]:
    """Return the folder of a model, and its card.

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
    """Refuse a card that names code, unless the user trusts it; loading a card should run no code.

    Args:
        folder: The folder of the card.
        part: The part in the card.
        trust: Whether the user trusts the card. A card cannot grant this itself.

    Raises:
        ValueError: The card names code and is not trusted, or refers back to itself.
    """
    _check_trust(folder, part, trust, ())


def resolve_part(part: Part) -> Part:
    """Follow references from card to card to the part that builds the network, importing nothing.

    Raises:
        ValueError: A card is missing, or refers back to itself.
    """
    if part.get("name") != "trained":
        return part
    folder, card = read_card(part["weights"])
    check_trust(folder, card["part"], True)  # only to find cards that refer back to themselves
    return resolve_part(card["part"])


def card_files(folder: Path, card: Card) -> tuple[Path, ...]:
    """Return the files of a model: its weights (or adapter) and `card.json`.

    Args:
        folder: The folder of the model.
        card: The card, as `read_card` returns it.

    Raises:
        ValueError: The file of weights is missing, or does not match the card.
    """
    return _file(folder, card), folder / "card.json"


def shipped() -> list[str]:
    """Return the names of the models that come with the package."""
    home = resources.files("unfool.weights")
    return sorted(f.name for f in home.iterdir() if f.joinpath("card.json").is_file())


def _check_trust(folder: Path, part: Any, trust: bool, visited: tuple[Path, ...]) -> None:
    if folder.resolve() in visited:
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
            _check_trust(inner, card["part"], trust, (*visited, folder.resolve()))


def _tables(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from _tables(inner)


def _load(kind: str, weights: str, trust: bool) -> tuple[Any, Card]:
    folder, card = read_card(weights)
    if card["kind"] != kind:
        raise ValueError(
            f"{folder} holds a {card['kind']}, not a {kind}: name the folder of a {kind}"
        )
    path, part = _file(folder, card), card["part"]
    check_trust(folder, part, trust)
    precision = part.get("precision", "float32")
    if "base" in card and precision != "float32":
        part: Part = {**part, "precision": "float32"}  # `lora.load` rounds after merging
    model = specs.build(kind, specs.check(kind, part))
    if "base" in card:
        lora.load(model, path, card["base"], precision)
    else:
        raw = read_state(path).items()
        state = {name: t.float() if t.is_floating_point() else t for name, t in raw}
        load_state(model, state, str(path))
    return model.eval().requires_grad_(False), card


def _renamed(part: Part) -> Part:
    """Rename old options: cards written by version 0.1 of `defuse` have `clip` for `clip_x0`."""
    return cast(Part, {("clip_x0" if k == "clip" else k): value for k, value in part.items()})


def _file(folder: Path, card: Card) -> Path:
    """Return the file of weights (or of the adapter) that a card describes.

    Raises:
        ValueError: The file is missing, or its hash differs from the card's.
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
