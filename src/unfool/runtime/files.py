"""Files that are written whole or not at all: to a temporary file beside, to disk, then renamed.

And which files of a folder in the diffusers layout are read.
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
    """Replace what `path` holds, or leave it as it was.

    Raises:
        OSError: The folder cannot be written, or the disk is full; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not named by the process: containers that share a folder have processes of the same number.
    draft = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(draft, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        # Of a full disk, Python does not say which file; else it names the draft, which nobody knows.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        draft.unlink(missing_ok=True)


def write_if_other(path: Path, content: bytes) -> None:
    """Write a file unless it holds just that: a finished report may lie in a folder that is read-only.

    Raises:
        OSError: As `write_bytes`.
    """
    if not (path.is_file() and path.read_bytes() == content):
        write_bytes(path, content)


def raise_system_error(error: BaseException) -> None:
    """Raise an error of the operating system, or of memory, again: it says nothing of the file.

    Whoever reads a file that may be damaged calls it first on whatever was raised. No permission, a
    failing disk or too many open files would otherwise be told as damage.
    """
    told = isinstance(error, OSError) and error.errno is not None and error.strerror is not None
    if isinstance(error, OSError) and error.errno == errno.EINVAL:
        return  # a damaged archive names a place before its beginning
    if told or isinstance(error, MemoryError):
        raise error


def load_pickle(reader: pickle.Unpickler) -> Any:
    """What a pickle holds.

    Raises:
        pickle.UnpicklingError: It says of a part that it is larger than all memory: as a rule, damage.
        Exception: It is damaged otherwise.
    """
    try:
        return reader.load()
    except MemoryError as error:
        raise pickle.UnpicklingError("it asks for more memory than this machine has") from error


def hash_of_json(value: Any) -> str:
    """The sha256 of a value as JSON, whatever the order of its keys, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    """What an .npz file of `arrays` holds."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict[str, Any](arrays))
    return buffer.getvalue()


def write_torch(path: Path, content: Any) -> None:
    """Save tensors and plain values by `torch.save`, whole or not at all."""
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
    """The file of weights that is read of a part (unet, vae, ...) of a diffusers folder, if any."""
    return next((part / name for name in _WEIGHTS if (part / name).is_file()), None)


def files_in(folder: Path) -> list[Path]:
    """The files that are read of a folder of diffusers or transformers.

    They are in order: settings, vocabularies, weights. A single network has them in the folder itself.
    """
    found = []
    for part in (folder / name for name in (*PARTS, *([""] if weights_in(folder) else []))):
        small = (path for path in part.glob("*") if path.suffix in (".json", ".txt"))
        weights = weights_in(part)
        found += sorted(small) + ([weights] if weights else [])
    return found
