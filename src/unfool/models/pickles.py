"""Reading PyTorch files and plain pickles as data, without running code or importing their classes.

An object of an unknown class becomes an inert object that keeps its attributes. A pickle that calls
an unknown function is refused, because that is how a pickle runs code.
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
    """Raised when a pickle calls a function that weights do not need; the message is its name."""


class _NeverCalled(type):
    """The metaclass of stand-ins for unknown classes and functions, which refuse to be called."""

    def __call__(cls, *_: Any, **__: Any) -> Any:  # unpickling an object calls `__new__` instead
        raise RefusedError(cls.__qualname__)


class Inert(metaclass=_NeverCalled):
    """An object of an unknown class, with its attributes and, for a container, its items."""

    state: dict[str, Any]

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        """Make an object without attributes."""
        instance = super().__new__(cls)
        instance.state = {}
        return instance

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)  # a tuple if there are slots
        for part in parts:
            self.state.update(part if isinstance(part, dict) else {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value

    def append(self, value: Any) -> None:
        """Store an item of a list."""
        self.state[str(len(self.state))] = value

    def extend(self, values: Any) -> None:
        """Store the items of a list."""
        for value in values:
            self.append(value)


def weights_of(network: Inert, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the weights and buffers of a pickled torch module by name."""
    for kind in ("_parameters", "_buffers"):
        for name, value in (network.state.get(kind) or {}).items():
            if isinstance(value, Tensor):
                yield prefix + name, value.detach()
    for name, inner in (network.state.get("_modules") or {}).items():
        if isinstance(inner, Inert):
            yield from weights_of(inner, f"{prefix}{name}.")


def read_pickle(path: Path) -> object:
    """Read the content of a file written by `torch.save`, or of a plain pickle.

    Raises:
        RefusedError: The file calls an unknown function, or holds a TorchScript program.
        Exception: The file is damaged, or has another format.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise RefusedError("torch.jit")  # torch would load it as a program
        return torch.load(path, "cpu", pickle_module=_Module, weights_only=False, mmap=True)
    with path.open("rb") as file:
        content = load_pickle(_Unpickler(file))
    if content == _OLD_TORCH_FILE:
        return torch.load(path, "cpu", pickle_module=_Module, weights_only=False)
    return content


_OLD_TORCH_FILE = 0x1950A86A20F9469CFC6C  # first value in PyTorch files that are not zip archives
_OLD_TORCH_HEAD = pickle.dumps(_OLD_TORCH_FILE, protocol=2)


def _inert(name: str, state: Any = None) -> Inert:
    instance = Inert.__new__(_NeverCalled(name, (Inert,), {}))
    instance.__setstate__(state)
    return instance


def _storage(content: bytes) -> Any:
    """Read a storage written by `torch.save`; in the old format, it shares the memory of `content`.

    A copy would double the peak memory. The format before torch 1.6 has five pickles, the fourth
    with type and length, then the length in 8 bytes, then the values.
    """
    if content.startswith(_OLD_TORCH_HEAD):
        file = io.BytesIO(content)  # also shares the memory
        _, kind, _, _, length, part = [_Header(file).load() for _ in range(5)][3]
        dtype = getattr(getattr(torch, kind.__name__.rpartition(".")[2], None), "dtype", None)
        begin = file.tell() + 8
        size = len(content) - begin
        if part is None and dtype is not None and 0 < length * dtype.itemsize == size:
            storage = torch.frombuffer(content, dtype=torch.uint8, offset=begin).untyped_storage()
            return TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _scalar(kind: np.dtype, content: bytes = b"") -> Any:
    return np.frombuffer(content, kind)[0].item()


def _array(*_: Any) -> Inert:
    return _inert("ndarray")


def _persistent(meta: Any) -> Inert:
    """Make an inert object from one of `torch_utils.persistence`, ignoring its source code."""
    return _inert(str(meta.get("class_name")), meta.get("state"))


def _reconstructed(kind: Any, *_: Any) -> Any:
    """Make an empty object, as copyreg does in the old pickle protocols."""
    return kind.__new__(kind)


_ALLOWED: dict[tuple[str, str], Any] = {
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
        known = _ALLOWED.get((module, name))
        return known or _NeverCalled(f"{module}.{name}", (Inert,), {})


class _Header(_Unpickler):
    def persistent_load(self, pid: Any) -> Any:
        return pid


class _Module:
    """The interface that `torch.load` needs of a `pickle_module`."""

    Unpickler = _Unpickler
    __name__ = "unfool.models.pickles"

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Unpickler(file, **options).load()
