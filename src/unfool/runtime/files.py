"""Atomic writing of files: to a temporary file in the same folder, flushed to disk, then renamed.

Also lists which files are read from a folder in the layout of diffusers.
"""

import errno
import hashlib
import io
import json
import os
import pickle
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the contents of `path` atomically.

    Raises:
        OSError: The folder cannot be written, or the disk is full; `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A random name, not the process ID: containers that share a folder may have equal process IDs.
    draft = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(draft, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        # Python names no file if the disk is full, and otherwise the draft, unknown to the user.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        draft.unlink(missing_ok=True)


def write_if_other(path: Path, content: bytes) -> None:
    """Write a file unless it has this content: a finished report may be in a read-only folder.

    Raises:
        OSError: As `write_bytes`.
    """
    if not (path.is_file() and path.read_bytes() == content):
        write_bytes(path, content)


def raise_system_error(error: BaseException) -> None:
    """Re-raise an error of the operating system or of memory: the file may be intact.

    Code that reads a file that may be damaged calls this first on any exception. Otherwise, missing
    permissions, a failing disk, or too many open files would be reported as damage.
    """
    is_system_error = (
        isinstance(error, OSError) and error.errno is not None and error.strerror is not None
    )
    if isinstance(error, OSError) and error.errno == errno.EINVAL:
        return  # reading a damaged archive may seek to a position before its beginning
    if is_system_error or isinstance(error, MemoryError):
        raise error


def load_pickle(reader: pickle.Unpickler) -> Any:
    """Load a pickle.

    Raises:
        pickle.UnpicklingError: A part claims to be larger than the memory, usually due to damage.
        Exception: The pickle is damaged in another way.
    """
    try:
        return reader.load()
    except MemoryError as error:
        raise pickle.UnpicklingError("it asks for more memory than this machine has") from error


def hash_of_json(value: Any) -> str:
    """Return the SHA-256 of a value as JSON with sorted keys, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Return the contents of a compressed .npz file of `arrays`."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict[str, Any](arrays))
    return buffer.getvalue()


def write_torch(path: Path, content: Any) -> None:
    """Save tensors and plain values by `torch.save`, atomically."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


ADAPTER = "pytorch_lora_weights.safetensors"
PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "unet", "vae")
_WEIGHTS = tuple(
    f"{name}{kind}"
    for kind in (".safetensors", ".fp16.safetensors", ".bin")
    for name in ("diffusion_pytorch_model", "model", "pytorch_model")
)


def weights_in(part: Path) -> Path | None:
    """Return the file of weights of a part (unet, vae, ...) of a diffusers folder, if any."""
    return next((part / name for name in _WEIGHTS if (part / name).is_file()), None)


def files_in(folder: Path) -> list[Path]:
    """List the files that are read from a folder of diffusers or transformers.

    For each part, settings and vocabularies (.json, .txt) come first, then the weights. The folder
    of a single network contains these files itself.
    """
    files = []
    for part in (folder / name for name in (*PARTS, *([""] if weights_in(folder) else []))):
        small = (path for path in part.glob("*") if path.suffix in (".json", ".txt"))
        weights = weights_in(part)
        files += sorted(small) + ([weights] if weights else [])
    return files
