"""Files of torch and plain pickles, read as data: no code in them runs, and no class of theirs is needed.

An object of an unknown class becomes an inert one, which keeps its attributes. A pickle that calls an
unknown function, which is how code runs, is refused.
"""

import codecs
import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, TypedStorage
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2

from unfool.runtime.files import load_pickle


class RefusedError(ValueError):
    """A pickle calls a function that no file of weights needs; the message is the function's name."""


class _NeverCalled(type):
    """The type of classes that stand for unknown ones: their objects are made by `__new__` alone."""

    def __call__(cls, *_: Any, **__: Any) -> Any:  # how a pickle calls a function
        raise RefusedError(cls.__qualname__)


class Inert(metaclass=_NeverCalled):
    """An object of an unknown class: its attributes, and its items if it was a table."""

    state: dict[str, Any]

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        """An object without attributes."""
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)  # of slots, too
        for part in parts:
            self.state.update(part if isinstance(part, dict) else {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value

    def append(self, value: Any) -> None:
        """Keep the item of a list."""
        self.state[str(len(self.state))] = value

    def extend(self, values: Any) -> None:
        """Keep the items of a list."""
        for value in values:
            self.append(value)


def weights_of(network: Inert, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The weights and buffers of a pickled torch module by name."""
    for kind in ("_parameters", "_buffers"):
        for name, value in (network.state.get(kind) or {}).items():
            if isinstance(value, Tensor):
                yield prefix + name, value.detach()
    for name, inner in (network.state.get("_modules") or {}).items():
        if isinstance(inner, Inert):
            yield from weights_of(inner, f"{prefix}{name}.")


def read_pickle(path: Path) -> object:
    """What a file of `torch.save`, or a plain pickle, holds.

    Raises:
        RefusedError: It calls an unknown function.
        Exception: It is damaged, or another kind of file.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise RefusedError("torch.jit")  # a program, which torch would load as one
        return torch.load(path, "cpu", pickle_module=_Module, weights_only=False, mmap=True)
    with path.open("rb") as file:
        content = load_pickle(_Unpickler(file))
    if content == _OLD_TORCH_FILE:
        return torch.load(path, "cpu", pickle_module=_Module, weights_only=False)
    return content


_OLD_TORCH_FILE = 0x1950A86A20F9469CFC6C  # what files of torch begin with that are no archives
_OLD_TORCH_HEAD = pickle.dumps(_OLD_TORCH_FILE, protocol=2)


def _inert(name: str, state: Any = None) -> Inert:
    made = Inert.__new__(_NeverCalled(name, (Inert,), {}))
    made.__setstate__(state)
    return made


def _storage(content: bytes) -> Any:
    """The storage that `torch.save` wrote, in the memory of `content`: a copy would double the peak.

    The form before torch 1.6 is five pickles, of which the fourth tells type and length, then the length
    in 8 bytes, then the numbers.
    """
    if content.startswith(_OLD_TORCH_HEAD):
        file = io.BytesIO(content)  # shares the memory, too
        _, kind, _, _, length, part = [_Header(file).load() for _ in range(5)][3]
        dtype = getattr(getattr(torch, kind.__name__.rpartition(".")[2], None), "dtype", None)
        begin = file.tell() + 8
        size = len(content) - begin
        if part is None and dtype is not None and 0 < length * dtype.itemsize == size:
            held = torch.frombuffer(content, dtype=torch.uint8, offset=begin).untyped_storage()
            return TypedStorage(wrap_storage=held, dtype=dtype, _internal=True)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _scalar(kind: np.dtype, content: bytes = b"") -> Any:
    return np.frombuffer(content, kind)[0].item()


def _array(*_: Any) -> Inert:
    return _inert("ndarray")


def _persistent(meta: Any) -> Inert:
    """An object of `torch_utils.persistence`, which comes with the source of its class."""
    return _inert(str(meta.get("class_name")), meta.get("state"))


def _reconstructed(kind: Any, *_: Any) -> Any:
    """What copyreg makes of an object in the old protocols."""
    return kind.__new__(kind)


_CALLED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): lambda *_: defaultdict(),
    ("builtins", "set"): set,
    ("builtins", "object"): object,
    ("_codecs", "encode"): codecs.encode,
    ("copyreg", "_reconstructor"): _reconstructed,
    ("numpy", "dtype"): np.dtype,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    **{
        (f"numpy.{core}.multiarray", name): function
        for core in ("core", "_core")
        for name, function in (("scalar", _scalar), ("_reconstruct", _array))
    },
    **{
        ("pathlib", name): lambda *parts: "/".join(parts)
        for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
    **{
        ("torch", name): kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)
    },
}


_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # of Python 2


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = _OLD_NAMES.get(module, module)
        known = _CALLED.get((module, name))
        return known or _NeverCalled(f"{module}.{name}", (Inert,), {})


class _Header(_Unpickler):
    def persistent_load(self, pid: Any) -> Any:
        return pid


class _Module:
    """What `torch.load` asks of a `pickle_module`."""

    Unpickler = _Unpickler
    __name__ = "unfool.models.pickles"

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Unpickler(file, **options).load()
