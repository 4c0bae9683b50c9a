"""A hash of all the weights in a model, wherever they came from.

A spec identifies weights by the files that it names. A user's own class may load weights from
anywhere, so weights are also identified by their values, once the model is built.
"""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_STATE = frozenset(vars(nn.Module()))  # attributes that every module has


def weights_hash(*things: Any) -> str:
    """Hash the tensors and arrays in some objects: weights, buffers, and values of attributes.

    The search covers modules, objects, lists, mappings, and the closures and global networks of
    plain functions. It does not see weights that a class loads only at its first call.

    Args:
        things: Models, purifiers, attacks or objectives, after they were built.
    """
    digest = hashlib.sha256()
    for piece in _pieces(things, "", {}):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(thing: Any, name: str, seen: dict[int, Any]) -> Iterator[bytes]:
    if id(thing) in seen or isinstance(thing, _OPAQUE):
        return
    seen[id(thing)] = thing  # keeps the object alive, so that no other object gets the same id
    if isinstance(thing, Tensor | np.ndarray):
        yield f"{name} {thing.dtype} {tuple(thing.shape)};".encode()
        yield _bytes(thing)
        return
    for key, value in _members(thing):
        yield from _pieces(value, f"{name}.{key}", seen)


def _members(thing: Any) -> list[tuple[str, Any]]:
    if isinstance(thing, Mapping):
        return [(str(key), value) for key, value in thing.items()]
    if isinstance(thing, list | tuple | set | frozenset):
        return [(str(index), value) for index, value in enumerate(thing)]
    if isinstance(thing, partial):
        return [("", thing.func), ("args", thing.args), ("keywords", thing.keywords)]
    if inspect.ismethod(thing):
        return [("", thing.__func__), ("self", thing.__self__)]
    if isinstance(thing, FunctionType):
        return _captured(thing)
    if isinstance(thing, nn.Module):
        members: list[tuple[str, Any]] = list(thing.named_parameters(recurse=False))
        members += thing.named_buffers(recurse=False)
        members += thing.named_children()
        members += [(key, value) for key, value in sorted(vars(thing).items()) if key not in _STATE]
        return members + _methods(type(thing))
    members = sorted(vars(thing).items()) if hasattr(thing, "__dict__") else []
    slots = [key for kind in type(thing).__mro__ for key in getattr(kind, "__slots__", ())]
    members += [(key, getattr(thing, key)) for key in slots if hasattr(thing, key)]
    return members + _methods(type(thing))


def _methods(kind: type) -> list[tuple[str, Any]]:
    """Return the functions of a user's class, which may use global networks of its module."""
    if kind.__module__.partition(".")[0] in ("builtins", "torch", "numpy", "unfool"):
        return []
    return [(key, value) for key, value in vars(kind).items() if isinstance(value, FunctionType)]


def _captured(function: FunctionType) -> list[tuple[str, Any]]:
    """Return the closure of a function, and the global networks and arrays that it uses."""
    captured: list[tuple[str, Any]] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            captured.append((name, cell.cell_contents))
        except ValueError:  # the cell is still empty
            continue
    known = function.__globals__
    used = [(name, known[name]) for name in function.__code__.co_names if name in known]
    return captured + [
        (name, v) for name, v in used if isinstance(v, Tensor | np.ndarray | nn.Module)
    ]


def _bytes(value: Tensor | np.ndarray) -> bytes:
    if isinstance(value, np.ndarray):
        return b"" if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
    if value.is_meta or not value.numel():
        return b""
    value = value.detach()
    value = value.to_dense() if value.layout is not torch.strided else value
    return value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


_OPAQUE = (str, bytes, int, float, complex, type(None), type, torch.device, torch.dtype)
