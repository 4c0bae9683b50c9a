"""Weights from files, without running what a file may hold, and without a silent misfit."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unfool.networks.unet import UNet, rename, repeat_heads

_TABLES = ("state_dict", "model_state_dict", "model", "net", "last")
_PREFIXES = ("module.", "_orig_mod.")


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights in a file, by name, on the CPU.

    Reads .safetensors, and torch's own files as far as they hold plain values only. Weights may lie
    in a table `state_dict`, `model_state_dict`, `model`, `net` or `last`; the prefixes that DataParallel
    and torch.compile put before every name are taken off.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, would run code, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; name a file of weights")
    content = _content(path)
    if isinstance(content, Mapping):
        tables = (content[name] for name in _TABLES if isinstance(content.get(name), Mapping))
        content = next(tables, content)
    if not isinstance(content, Mapping) or not content or not _tensors_by_name(content):
        raise ValueError(
            f"{path} holds no table of weights by name, neither directly nor under "
            f"{', '.join(_TABLES)}; save the network's state_dict()"
        )
    return _stripped(dict(content))


def load_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Put weights into a network, all of them and into all of it.

    Args:
        network: Gets the weights; if they do not fit, it may be left with some of them.
        state: The weights by name.
        source: Where they come from, for the message.

    Raises:
        ValueError: The network lacks a weight, has one more, or one of another shape.
    """
    own = network.state_dict()
    for name, value in state.items():
        if name in own and own[name].shape != value.shape:
            raise ValueError(
                f"{source} does not fit the network: {name} is {tuple(value.shape)} there and "
                f"{tuple(own[name].shape)} in the network; check its depth, width and classes"
            )
    # torch first mends what old files lack, and then says what does not fit.
    missing, unexpected = network.load_state_dict(state, strict=False)
    faults = [_listed(kind, names) for kind, names in
              (("lacks", missing), ("has unexpected", unexpected)) if names]  # fmt: skip
    if faults:
        raise ValueError(f"{source} does not fit the network: it {' and '.join(faults)}")


def fitting(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a network has by name and shape, under the names that it has for them.

    A U-Net with several heads takes the output layer of one without for each of them.
    """
    own, state = network.state_dict(), dict(state)
    for name, module in network.named_modules():
        if isinstance(module, UNet):
            rename(state, f"{name}." if name else "")
            repeat_heads(module, state, f"{name}." if name else "")
    return {n: v for n, v in state.items() if n in own and v.shape == own[n].shape}


def sha256(path: Path) -> str:
    """The SHA-256 of a file's contents, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        if refused := re.search(r"(?i)unsupported global:? (?:global )?([\w.]+)", str(error)):
            raise ValueError(
                f"{path} was refused, for it holds more than plain weights ({refused[1]}) and "
                "could run code, or is damaged; if you trust it, load it yourself and save its "
                "weights as .safetensors"
            ) from error
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) cannot be read: it is truncated, damaged or no "
            "file of weights; fetch it again"
        ) from error


def _tensors_by_name(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _stripped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _stripped({name.removeprefix(prefix): v for name, v in state.items()})
    return state


def _listed(kind: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{kind} {len(names)} ({', '.join(names[:3])}{more})"
