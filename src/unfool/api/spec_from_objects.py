"""Describe the objects of a run from Python as a spec, which the report and the doubts read."""

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any, cast

import torch
from torch import Tensor, nn

from unfool.attacks.interop import ExternalAttack
from unfool.evaluation.prepare import AttackOnView
from unfool.evaluation.spec import ATTACK_FLAGS
from unfool.models.classifiers import NormalizedClassifier
from unfool.protocols import Classifier, Defended
from unfool.results.spec import AttackEntry, ModelSpec
from unfool.runtime.text import kept_options
from unfool.spec import Part, menu

SPEED = ("batch_size", "row_limit", "training")  # attributes that do not change answers
MODULE = frozenset(vars(nn.Module())) | set(SPEED)  # attributes to skip in modules


def model_parts(model: Classifier) -> ModelSpec:
    """Return the part `classifier` and, for a defended model, `purifier` and maybe `paths`."""
    if not isinstance(model, Defended):
        return {"classifier": part("classifier", model)}
    parts: ModelSpec = {"classifier": part("classifier", model.classifier)}
    parts["purifier"] = part("purifier", model.purifier)
    if hasattr(model, "paths"):
        parts["paths"] = {"count": model.paths, "by": getattr(model, "by", "its own rule")}  # pyright: ignore
    return parts


def attack_entry(label: str, viewed: AttackOnView) -> AttackEntry:
    """Return the entry of an attack: its name, options, view, label, known noise, and flags."""
    attack: Any = viewed.attack
    if isinstance(attack, ExternalAttack):
        attack = attack.function
    row: dict[str, Any] = dict(part("attack", attack))
    view = part("view", viewed.view)
    row |= {"view": view["name"] if len(view) == 1 else view, "label": label}
    if viewed.knows is not None:
        row["knows"] = viewed.knows.word
    flags = {flag: False for flag in ATTACK_FLAGS if not getattr(viewed, flag)}
    return cast(AttackEntry, row | flags)


def part(kind: str, thing: Any) -> Part:
    """Describe an object as a part of a spec: its name, and the options that a spec can hold."""
    if isinstance(thing, partial):
        base: dict[str, Any] = dict(part(kind, thing.func))
        plain = {key: _plain(value) for key, value in thing.keywords.items()}
        return cast(Part, base | {key: entry for key, entry in plain.items() if entry != ()})
    if isinstance(thing, NormalizedClassifier):
        entry: dict[str, Any] = {"name": type(thing.network).__name__}
    else:
        entry = {"name": name_of(kind, thing)} | options(thing)
    return cast(Part, entry | _precision(thing))


def name_of(kind: str, thing: Any) -> str:
    """Return the menu's name of a function or an object's class; else `module:name`.

    If it belongs to unfool but is not in the menu, return its name alone.
    """
    named = thing if inspect.isfunction(thing) or inspect.isclass(thing) else type(thing)
    target = f"{named.__module__}:{named.__qualname__}"
    short = {address: name for name, address in menu.MENU[kind].items()}
    if target in short:
        return short[target]
    return named.__qualname__ if named.__module__.startswith("unfool.") else target


def options(thing: Any) -> dict[str, Any]:
    """Return the options of an object that a spec can hold: numbers, words, and inner parts."""
    if inspect.isroutine(thing) or inspect.isclass(thing):
        return {}
    result: dict[str, Any] = {}
    for name, value in kept_options(thing, defaults=True).items():
        if name in SPEED:
            continue
        if (plain := _plain(value)) != ():
            result[name] = plain
        elif name in menu.KIND_OF_OPTION:
            result[name] = part(menu.KIND_OF_OPTION[name], value)
    rule = getattr(thing, "rule", None)
    if hasattr(thing, "without_elimination") and rule is not None:
        result["elimination"] = type(rule).__name__.lower()
    return result


def hash_contents(thing: Any) -> str:
    """Hash the contents of an object: weights, buffers, options, and inner parts.

    Of its class, only the name counts, unless the class is defined in a notebook or in the main script;
    then its code counts. The device and the batch size do not count.
    """
    digest = hashlib.sha256()
    for piece in _pieces(thing, {}):
        digest.update(piece)
    return digest.hexdigest()[:16]


def modules(thing: Any) -> list[str]:
    """List the modules of an object's classes and functions, without torch, numpy, unfool, and stdlib."""
    names: set[str] = set()
    seen, todo = {}, [thing]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, Tensor | str | bytes | int | float):
            continue
        seen[id(thing)] = thing  # kept alive, so that no other object gets its id
        if inspect.ismodule(thing):
            continue
        has_module = inspect.isroutine(thing) or inspect.isclass(thing)
        names.add(str((thing if has_module else type(thing)).__module__))
        todo += [] if has_module else [value for _, value in _pairs(thing)]
    skipped = (*sys.stdlib_module_names, "torch", "numpy", "unfool")
    return sorted(name for name in names if name.partition(".")[0] not in skipped)


def _pieces(thing: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    if isinstance(thing, Tensor):
        flat = thing.detach().cpu().contiguous().reshape(-1)
        yield f"{thing.dtype} {tuple(thing.shape)}".encode()
        yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    elif hasattr(thing, "tobytes"):
        yield thing.tobytes()
    elif thing is None or isinstance(thing, bool | int | float | str | bytes | Path):
        yield repr(thing).encode() + b";"
    elif isinstance(thing, torch.device):
        return
    elif id(thing) in seen:
        yield b"again;"
    else:
        seen[id(thing)] = thing  # kept alive, so that no other object gets its id
        yield from _inside(thing, seen)


def _inside(thing: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    if inspect.ismodule(thing):
        yield thing.__name__.encode()
        return
    if inspect.isroutine(thing) or inspect.isclass(thing):
        yield f"{thing.__module__}:{thing.__qualname__};".encode()
        if thing.__module__ == "__main__":
            yield from _code(thing, seen)
        return
    if not isinstance(thing, Mapping | list | tuple | partial):
        yield f"{type(thing).__module__}:{type(thing).__qualname__};".encode()
        if type(thing).__module__ == "__main__":
            yield from _code(type(thing), seen)
    for name, value in _pairs(thing):
        yield f"{name}=".encode()
        yield from _pieces(value, seen)


def _code(thing: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """Yield the code of a function or class of a notebook or script, and of what it uses from there.

    Modules are hashed by their files. A notebook may have none, so this reads the compiled code.
    """
    if inspect.isclass(thing):
        for name, value in sorted(vars(thing).items()):
            member = getattr(value, "__func__", getattr(value, "fget", value))
            if inspect.isfunction(member) or isinstance(value, bool | int | float | str):
                yield f"{name}=".encode()
                yield from _pieces(member, seen)
        for base in thing.__bases__:
            if base.__module__ == "__main__":
                yield from _pieces(base, seen)
        return
    function = getattr(thing, "__func__", thing)
    if not inspect.isfunction(function):
        return
    yield from _pieces((function.__defaults__, function.__kwdefaults__), seen)
    for code in _nested(function.__code__):
        constants = [
            sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)
            for constant in code.co_consts
            if not inspect.iscode(constant)
        ]
        yield code.co_code + repr((code.co_names, constants)).encode()
        for name in code.co_names:
            value = function.__globals__.get(name)
            own = getattr(value, "__module__", None) == "__main__"
            if own or isinstance(value, bool | int | float | str | Tensor):
                yield from _pieces(value, seen)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if inspect.iscode(inner):
            yield from _nested(inner)


def _pairs(thing: Any) -> list[tuple[str, Any]]:
    """Return the contents of an object by name."""
    if isinstance(thing, Mapping):
        return [(str(key), value) for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return [(str(index), value) for index, value in enumerate(thing)]
    if isinstance(thing, partial):
        return [("", thing.func), ("args", thing.args), ("keywords", thing.keywords)]
    return _attributes(thing)


def _attributes(thing: Any) -> list[tuple[str, Any]]:
    if isinstance(thing, nn.Module):
        pairs: list[tuple[str, Any]] = list(thing.named_parameters(recurse=False))
        pairs += thing.named_buffers(recurse=False)
        pairs += thing.named_children()
        return pairs + [(k, v) for k, v in sorted(vars(thing).items()) if k not in MODULE]
    own = vars(thing) if hasattr(thing, "__dict__") else {}
    return [(k, v) for k, v in sorted(own.items()) if k not in SPEED]


def _plain(value: Any) -> Any:
    """Convert a value to one that YAML and JSON can hold; () if there is none."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple) and value:
        items = [_plain(item) for item in value]
        return items if () not in items else ()
    return ()


def _precision(thing: Any) -> dict[str, str]:
    """Return the half-precision type of a model's weights, if any, which raises a doubt."""
    halves = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
    weights = thing.parameters() if isinstance(thing, nn.Module) else ()
    types = sorted({halves[weight.dtype] for weight in weights if weight.dtype in halves})
    return {"precision": types[0]} if types else {}
