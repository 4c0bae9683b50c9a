"""Specs: a YAML file to the objects it names, with mistakes told in the user's words.

A part of a spec is a table with a `name` and options, or the bare name. A short name comes from the
menu below; `module:attribute` is its own address, and needs no registration. Options are checked
against the signature of what is named, by pydantic, before anything heavy is loaded.
"""

import hashlib
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

Table = dict[str, Any]

MENU: dict[str, dict[str, str]] = {
    "data": {
        "arrays": "defuse.data.arrays:npz",
        "blobs": "defuse.data.blobs:Blobs",
        "cifar10": "defuse.data.cifar:cifar10",
        "digits": "defuse.data.digits:digits",
        "folder": "defuse.data.folder:Folder",
        "mnist": "defuse.data.mnist:mnist",
    },
    "classifier": {
        "bayes": "defuse.data.blobs:bayes",
        "cifar-resnet": "defuse.models.build:cifar_resnet",
        "network": "defuse.models.build:network",
        "small-cnn": "defuse.models.build:small_cnn",
        "trained": "defuse.models.card:load_classifier",
        "wide-resnet": "defuse.models.build:wide_resnet",
    },
    "denoiser": {
        "mixture": "defuse.data.blobs:mixture",
        "network": "defuse.models.build:denoising_network",
        "trained": "defuse.models.card:load_denoiser",
        "unet": "defuse.diffusion.unet:unet",
    },
    "network": {},
    "schedule": {
        "discrete": "defuse.diffusion.schedule:Discrete",
        "vp": "defuse.diffusion.schedule:VP",
    },
    "purifier": {"diffpure": "defuse.defenses.diffpure:DiffPure"},
    "attack": {"pgd": "defuse.attacks.pgd:PGD"},
    "view": {
        "bpda": "defuse.attacks.views:bpda",
        "exact": "defuse.attacks.views:exact",
        "undefended": "defuse.attacks.views:undefended",
    },
    "objective": {
        "denoising": "defuse.training.objectives:Denoising",
        "plain": "defuse.training.objectives:cross_entropy",
    },
}

_HELP = {
    "data": "images with labels",
    "classifier": "images to logits",
    "denoiser": "the diffusion model",
    "network": "your own torch module, inside a classifier or denoiser of the name `network`",
    "schedule": "of a denoiser: times to noise levels",
    "purifier": "images to images",
    "attack": "images to adversarial images",
    "view": "of an attack: what the attacker takes the model for",
    "objective": "of a training: the loss",
}

# What the caller fills in, which a spec may not. A class named in a spec is filled with its options;
# a function that takes the arguments of a call is the thing itself.
CALL: dict[str, tuple[str, ...]] = {
    "attack": ("model", "x", "y", "threat", "noise"),
    "classifier": ("x", "noise"),
    "objective": ("model", "x", "y", "noise"),
    "purifier": ("x", "noise"),
}
GIVEN: dict[str, tuple[str, ...]] = {"purifier": ("denoiser", "classifier")}


class SpecError(ValueError):
    """A mistake in a spec or on the command line, in one sentence."""


def load(source: str | Path | Table, changes: Sequence[str] = ()) -> Table:
    """Read a spec and apply `path.to.key=value` changes to it.

    Args:
        source: The name of a shipped spec, the path of a YAML file, or a table.
        changes: What to change; values are YAML, and a number in a path counts into a list.

    Raises:
        SpecError: There is no such spec, it is no YAML table, or a change does not fit.
    """
    spec = json.loads(json.dumps(source)) if isinstance(source, Mapping) else _read(source)
    for change in changes:
        _change(spec, change)
    return _numbers(spec)


def shipped() -> dict[str, str]:
    """The specs that come with the package: name to the first line of its text."""
    files = sorted(resources.files("defuse.specs").iterdir(), key=lambda file: file.name)
    found = [(Path(f.name).stem, f.read_text("utf-8")) for f in files if f.name.endswith(".yaml")]
    return {name: text.splitlines()[0].lstrip("# ") for name, text in found}


def part(kind: str, value: Any) -> Table:
    """A part of a spec as a table with a name.

    Raises:
        SpecError: It is neither a name nor a table with one.
    """
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise SpecError(f"{kind} needs a name; choose from: {_choices(kind)}")
    return table


def find(kind: str, name: str) -> Any:
    """What `name` stands for: from the menu, or imported from `module:attribute`.

    Raises:
        SpecError: The menu has no such name, or the import fails.
    """
    target = name if ":" in name else MENU[kind].get(name)
    if target is None:
        raise SpecError(f"{kind}: there is no {name!r}; {_hint(name, MENU[kind], _choices(kind))}")
    module, _, attribute = target.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that `mine:Thing` is found beside the spec's user
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise SpecError(f"{kind}: cannot import {target!r}: {error}") from error


def check(kind: str, value: Any) -> Table:
    """A part with its options checked and its defaults filled in; nothing is built.

    Args:
        kind: A row of the menu.
        value: The part, as it stands in the spec.

    Raises:
        SpecError: An unknown name or option, or a value that does not fit.
    """
    table = part(kind, value)
    factory = find(kind, table["name"])
    options = {key: v for key, v in table.items() if key != "name"}
    filled_in = (*GIVEN.get(kind, ()), *(CALL.get(kind, ()) if _is_itself(kind, factory) else ()))
    signature = inspect.signature(factory).parameters
    parameters = {key: p for key, p in signature.items() if key not in filled_in}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {k: p for k, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for key in options:
        if key not in named and not open_ended:
            takes = ", ".join(named) or "no options"
            raise SpecError(
                f"{kind} {table['name']}: there is no option {key!r}; {_hint(key, named, takes)}"
            )
    hints = _hints(factory)
    filled: Table = {"name": table["name"]}
    for key, parameter in named.items():
        if key in MENU and key in options:
            filled[key] = check(key, options[key])
        elif key in options:
            filled[key] = _fit(f"{kind}.{key}", hints.get(key, Any), options[key])
        elif parameter.default is parameter.empty:
            raise SpecError(f"{kind} {table['name']}: the option {key!r} is missing")
        elif _plain(parameter.default):
            filled[key] = parameter.default
    if open_ended:
        filled |= {key: v for key, v in options.items() if key not in named}
    return filled


def check_data(value: Any, folder: str | None) -> Table:
    """A `data` part, checked, with the folder that the user named where it needs one.

    Raises:
        SpecError: As `check`; or it needs a folder and none was named.
    """
    table = part("data", value)
    takes = inspect.signature(find("data", table["name"])).parameters
    if "folder" in takes and "folder" not in table:
        if not folder:
            raise SpecError(
                f"data {table['name']} is read from a folder: name it by --data FOLDER or in the "
                "environment as DEFUSE_DATA"
            )
        table = {**table, "folder": folder}
    return check("data", table)


def build(kind: str, table: Table, **given: Any) -> Any:
    """Make the `kind` that a checked `table` names, from its options and what is `given`.

    Raises:
        SpecError: What it names refuses the options, in its own words.
    """
    factory = find(kind, table["name"])
    options = {k: build(k, v, **given) if k in MENU and isinstance(v, dict) else v
               for k, v in table.items() if k != "name"}  # fmt: skip
    known = inspect.signature(factory).parameters
    if _is_itself(kind, factory):
        return partial(factory, **options)
    try:
        return factory(**{k: v for k, v in given.items() if k in known}, **options)
    except (ValueError, OSError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{kind} {table['name']}: {error}") from error


def fields(name: str, values: Any, kinds: Mapping[str, tuple[Any, Any]]) -> Table:
    """A plain section of a spec (no `name`), checked: {key: (type, default)}; `...` is required.

    Raises:
        SpecError: An unknown key or a value that does not fit.
    """
    if not isinstance(values, dict):
        raise SpecError(f"{name} must be a table of options: {', '.join(kinds)}")
    for key in values:
        if key not in kinds:
            raise SpecError(
                f"{name}: there is no option {key!r}; {_hint(key, kinds, ', '.join(kinds))}"
            )
    model = create_model(name, __config__=ConfigDict(extra="forbid"), **kinds)  # pyright: ignore
    try:
        return model(**values).model_dump()
    except ValidationError as error:
        raise _told(name, error) from error


def identity(spec: Table) -> str:
    """A name for what `spec` asks, the same on every machine and for every batch size.

    `machine` is no part of it, nor where a file lies: of `weights` and `path` only what is in them
    counts, and of data its name and options.
    """
    asked = _by_contents({key: value for key, value in spec.items() if key != "machine"})
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:10]


def takes(kind: str, table: Table) -> list[str]:
    """The names of the arguments of what a part names."""
    return list(inspect.signature(find(kind, table["name"])).parameters)


def nearest(word: str, known: Sequence[str]) -> str:
    """Half a sentence: which of the known words was meant, or what there is to choose from."""
    return _hint(word, known, ", ".join(known))


def menu() -> dict[str, tuple[str, list[str]]]:
    """What a spec may name: kind to its meaning and its short names."""
    return {kind: (_HELP[kind], sorted(names)) for kind, names in MENU.items()}


def _read(source: str | Path) -> Table:
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.exists():
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"cannot read the spec {path}: {error}") from error
    else:
        names = shipped()
        if str(source) not in names:
            listed = ", ".join(names)
            raise SpecError(
                f"there is no spec {str(source)!r}; {_hint(str(source), names, listed)}"
            )
        text = resources.files("defuse.specs").joinpath(f"{source}.yaml").read_text("utf-8")
    try:
        spec = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(spec, dict):
        raise SpecError(f"{source} must hold a table of parts (data, classifier, ...)")
    return spec


def _change(spec: Table, change: str) -> None:
    path, equals, value = change.partition("=")
    if not equals or not path:
        raise SpecError(f"--set takes path.to.key=value, not {change!r}")
    try:
        value = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {change}: {' '.join(str(error).split())}") from error
    *parents, last = path.split(".")
    place: Any = spec
    for step in parents:
        if isinstance(place, list):
            place = place[_place(change, step, place)]
        elif isinstance(place, dict):
            if isinstance(place.get(step), str):
                place[step] = {"name": place[step]}
            place = place.setdefault(step, {})
        else:
            break
    if isinstance(place, list):
        place[_place(change, last, place)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise SpecError(f"--set {change}: {path.rpartition('.')[0]} is a value and has no parts")


def _place(change: str, step: str, place: list[Any]) -> int:
    if not step.isdigit() or int(step) >= len(place):
        raise SpecError(f"--set {change}: {step!r} must be a number from 0 to {len(place) - 1}")
    return int(step)


def _numbers(value: Any) -> Any:
    """Fractions such as 8/255, and numbers such as 1e-4 that YAML takes for text, as numbers."""
    if isinstance(value, dict):
        return {key: _numbers(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, str):
        if match := re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*/\s*(\d+(?:\.\d*)?)\s*", value):
            above, below = map(float, match.groups())
            if below == 0:
                raise SpecError(f"{value} divides by zero")
            return above / below
        if re.fullmatch(r"[+-]?\d+(?:\.\d*)?[eE][+-]?\d+", value):
            return float(value)
    return value


def _fit(where: str, kind: Any, value: Any) -> Any:
    if kind is inspect.Parameter.empty:
        return value
    try:
        fitted = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except TypeError:
        fitted = TypeAdapter(kind)
    except Exception:  # a type that pydantic cannot describe takes what it is given
        return value
    try:
        result = fitted.validate_python(value)
    except ValidationError as error:
        raise _told(where, error) from error
    return str(result) if isinstance(result, Path) else result


def _told(where: str, error: ValidationError) -> SpecError:
    first = error.errors()[0]
    inside = ".".join(str(step) for step in first["loc"] if not str(step).endswith("]"))
    place = f"{where}.{inside}" if inside and inside not in where else where
    said = first["msg"].removeprefix("Value error, ")
    return SpecError(f"{place}: {said[0].lower()}{said[1:]}, not {first.get('input')!r}")


def _by_contents(value: Any) -> Any:
    if isinstance(value, list):
        return [_by_contents(v) for v in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _digest(v) if key in ("weights", "path") and isinstance(v, str) else _by_contents(v)
        for key, v in value.items()
        if key not in ("folder", "download")
    }


def _digest(file: str) -> str:
    """The sha256 of a weights file, of the one in a folder, or of a shipped model."""
    home = Path(file)
    inside = Path(str(resources.files("defuse.weights").joinpath(file, "model.safetensors")))
    for path in (home, home / "model.safetensors", inside):
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()
    return file


def _is_itself(kind: str, found: Any) -> bool:
    """Whether what a part names is a function to be called as it is, not one that makes it."""
    call = CALL.get(kind)
    if call is None or inspect.isclass(found):
        return False
    return tuple(inspect.signature(found).parameters)[: len(call)] == call


def _hints(factory: Any) -> Table:
    try:
        return get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (NameError, TypeError, AttributeError):
        return {}


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | list | tuple | None)


def _hint(word: str, known: Mapping[str, Any] | Sequence[str], otherwise: str) -> str:
    near = get_close_matches(word, list(known), 1)
    return f"did you mean {near[0]!r}?" if near else f"choose from: {otherwise}"


def _choices(kind: str) -> str:
    return ", ".join([*sorted(MENU[kind]), "your own module:attribute"])
