"""Reading weights from files without running code in them, and loading them with strict checks."""

import hashlib
import sys
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unfool.models.pickles import Inert, RefusedError, read_pickle, weights_of
from unfool.networks.unet import UNet, rename, repeat_heads
from unfool.runtime.files import raise_system_error
from unfool.runtime.published_files import find_file

_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net", "last")
_AVERAGE_KEYS = ("ema", "ema_state_dict", "state_dict_ema", "model_ema")
_NESTED_KEYS = ("module", "state_dict", "shadow")  # keys of the weights in an average with options
_PREFIXES = ("module.", "_orig_mod.")
# Names of buffers, which lists of averaged parameters lack; the last two are from score_sde.
_NOT_TRAINED = ("running_mean", "running_var", "num_batches_tracked", "sigmas", "all_modules.0.W")


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the weights in a file, by name, onto the CPU.

    The file is .safetensors, a PyTorch file, or a plain pickle. No code in it runs, but it may hold
    whole networks, NumPy scalars and objects of unknown classes. The weights may be under the key
    `state_dict`, `model_state_dict`, `model`, `net` or `last`. If the file also has averaged
    weights (under `ema`, `ema_state_dict`, `state_dict_ema` or `model_ema`, or as the last table of
    a list), these are read, with a message on stderr. The prefixes that DataParallel and
    torch.compile put before all names are removed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, would run code, or holds no weights.
    """
    path = Path(path)
    return choose_state(read_content(path), path)


def choose_state(content: object, path: Path) -> dict[str, Tensor]:
    """Return the weights in a file's content by name; the averaged ones if there are any.

    Args:
        content: The content, as `read_content` returns it.
        path: The file, for messages.

    Raises:
        ValueError: There are no weights, or averaged weights have an unknown form.
    """
    state, average = find_state(content, path)
    if average is not None:
        print(f"unfool: {path}: using the averaged weights ({average})", file=sys.stderr)
    return state


def find_state(content: object, path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Do what `choose_state` does silently, and also return the place of averaged weights, or None.

    Raises:
        ValueError: There are no weights, or averaged weights have an unknown form.
    """
    entries = _entries(content)
    raw = next(
        (table for name in _STATE_KEYS if (table := _state_of(entries.get(name)))),
        _state_of(content),
    )
    for name in _AVERAGE_KEYS:
        if not _holds_weights(value := entries.get(name)):
            continue
        average = _state_of(value) or _with_averages(raw or {}, value)
        if average is None:
            raise ValueError(
                f"{path} has averaged weights under {name!r}, in an unknown form: save them as a "
                "state dict"
            )
        average = _without_prefixes(average)
        return _with_buffers(average, _without_prefixes(raw)) if raw else average, repr(name)
    tables = [t for part in content if (t := _state_of(part))] if isinstance(content, list) else []
    if len(tables) > 1 and tables[-1].keys() == tables[0].keys():
        return _without_prefixes(tables[-1]), "the last table of its list"
    raw = raw or next(iter(tables), None)
    if raw is None:
        raise ValueError(
            f"{path} holds no state dict, neither directly nor under "
            f"{', '.join(_STATE_KEYS)}: save the network's state_dict()"
        )
    return _without_prefixes(raw), None


def read_content(path: Path) -> object:
    """Read the content of a file of weights in any supported format.

    Zip archives of PyTorch are memory-mapped. The name of a published file stands for the file in
    the cache (see `runtime.published_files`).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or would run code.
    """
    path = find_file(Path(path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: name a file of weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # such as those about changed source code
            try:
                return torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            except Exception:  # the file has more than plain values, or is not a PyTorch file
                return read_pickle(path)
    except RefusedError as error:
        raise ValueError(
            f"{path} was refused, because it is damaged or calls functions that weights do not "
            f"need ({error}) and that could run code: if you trust it, load it yourself and save "
            "its weights as .safetensors"
        ) from error
    except Exception as error:  # a damaged pickle can raise any exception
        raise_system_error(error)
        if description := _describe_text_file(path):
            raise ValueError(f"{path} {description}") from error
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) cannot be read: it is truncated, damaged, or "
            "not a file of weights; fetch it again"
        ) from error


def _describe_text_file(path: Path) -> str:
    """Describe a text file found in place of weights, with advice; "" if the file is not text."""
    with path.open("rb") as file:
        head = file.read(200).lstrip()
    if not head:
        return "is empty; fetch it again" if not path.stat().st_size else ""
    if head.lower().startswith((b"<!doctype", b"<html")):
        return (
            "is a web page, which servers send when they refuse a file; open its address in a browser, "
            "and fetch the file there"
        )
    if head.startswith(b"version https://git-lfs"):
        return (
            "is a pointer of Git LFS and not the file itself; run `git lfs pull` in its repository"
        )
    text = head.decode("ascii", "replace")
    if not all(c.isprintable() or c.isspace() for c in text) or "\ufffd" in text:
        return ""
    return (
        f"is text and begins with {' '.join(text.split())[:50]!r}, so it holds no weights; if a server "
        "sent this instead of the file, fetch it again"
    )


def load_state(
    network: nn.Module, state: Mapping[str, Tensor], source: str, assign: bool = False
) -> None:
    """Load a state dict into a network. The names and shapes must match exactly.

    Args:
        network: The network; after an error, it may have some of the new weights.
        state: The weights by name.
        source: The source of the weights, for error messages.
        assign: Whether the network uses the tensors themselves instead of copies.

    Raises:
        ValueError: Names or shapes differ, or a tensor is complex or integer where the network's is
            not, sparse, or without values (on the device meta).
    """
    own = network.state_dict()
    for name, value in state.items():
        if name in own and own[name].shape != value.shape:
            raise ValueError(
                f"{source} does not fit the network: {name} is {tuple(value.shape)} in the file "
                f"and {tuple(own[name].shape)} in the network: check its depth, width, and classes"
            )
        if name in own and (wrong := _wrong_kind(value, own[name])):
            raise ValueError(
                f"{source} does not fit the network: {name} is {wrong}; save its weights as plain "
                "floating point numbers"
            )
    # torch first renames and completes the weights of old files, and then reports what differs.
    missing, unexpected = network.load_state_dict(state, strict=False, assign=assign)
    faults = [_summary(kind, names) for kind, names in
              (("lacks", missing), ("has unexpected", unexpected)) if names]  # fmt: skip
    if faults:
        raise ValueError(f"{source} does not fit the network: it {' and '.join(faults)}")


def _wrong_kind(value: Tensor, own: Tensor) -> str:
    """Say why a tensor with the right shape cannot be loaded without a change; "" if it can."""
    if value.is_meta:
        return "without values in the file (on the device meta)"
    if value.layout != torch.strided:
        return f"sparse there ({value.layout})"
    if value.is_complex() and not own.is_complex():
        return f"complex in the file ({value.dtype}), so its imaginary part would be dropped"
    if own.is_floating_point() and not (value.is_floating_point() or value.is_complex()):
        return f"of integers in the file ({value.dtype}) and of {own.dtype} in the network"
    return ""


def weights_that_fit(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights in `state` that fit a network by name and shape, by the network's names.

    For a U-Net with several heads, a single output layer is repeated for each head.
    """
    own, state = network.state_dict(), dict(state)
    for name, module in network.named_modules():
        if isinstance(module, UNet):
            rename(state, f"{name}." if name else "")
            repeat_heads(module, state, f"{name}." if name else "")
    return {n: v for n, v in state.items() if n in own and v.shape == own[n].shape}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's contents in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entries(content: object) -> Mapping[Any, Any]:
    """Return the named entries of an object in a file; {} if it has none."""
    if isinstance(content, Inert):
        return content.state
    return content if isinstance(content, Mapping) else {}


def _state_of(value: object) -> dict[str, Tensor] | None:
    """Return the weights by name if `value` is a state dict or a whole network, otherwise None."""
    if isinstance(value, Inert) and "_modules" in value.state:
        return dict(weights_of(value)) or None
    entries = _entries(value)
    if not entries:
        return None
    if inner := next((t for name in _NESTED_KEYS if (t := _state_of(entries.get(name)))), None):
        return inner
    state = {k: v for k, v in entries.items() if k != "n_averaged"}  # AveragedModel's counter
    complete = all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    return state if state and complete else None


def _with_averages(raw: Mapping[str, Tensor], average: object) -> dict[str, Tensor] | None:
    """Replace the parameters in a state dict by a list of averages; None if they do not fit."""
    values = _entries(average).get("shadow_params", average)
    trained = [name for name in raw if not name.endswith(_NOT_TRAINED)]
    for names in (list(raw), trained):
        if isinstance(values, list) and _shapes(raw[n] for n in names) == _shapes(values):
            return dict(raw) | dict(zip(names, values, strict=True))
    return None


def _with_buffers(average: dict[str, Tensor], raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the buffers that a table of averaged parameters lacks, if `raw` has the same names."""
    buffers = {n: v for n, v in raw.items() if n not in average and n.endswith(_NOT_TRAINED)}
    return average | buffers if average.keys() <= raw.keys() else average


def _shapes(values: Iterable[Any]) -> list[Any]:
    return [getattr(value, "shape", None) for value in values]


def _holds_weights(value: object) -> bool:
    """Return whether a value contains a tensor at any depth."""
    if isinstance(value, Mapping | Inert):
        value = list(_entries(value).values())
    if isinstance(value, list | tuple):
        return any(_holds_weights(v) for v in value)
    return isinstance(value, Tensor)


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_prefixes({name.removeprefix(prefix): v for name, v in state.items()})
    return state


def _summary(kind: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{kind} {len(names)} ({', '.join(names[:3])}{more})"
