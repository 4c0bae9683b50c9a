"""Checkpoints of a training run: written atomically, and resumed only by the same training run."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unfool import spec as specs
from unfool.data import fetch
from unfool.protocols import Dataset
from unfool.runtime.files import raise_system_error, write_bytes, write_torch
from unfool.training.lr_schedule import CHANGEABLE
from unfool.training.spec import TrainingSpec

NAME, LOG = "latest.pt", "log.jsonl"
HASHED_IMAGES = 256  # images whose hash identifies the data set
OF_FILES = ("save_half", "save_steps")  # options of what is saved, not of the training itself
MISMATCHES = {
    "spec": "another spec",
    "data": "other data",
    "code": "other code of your own",
    "weights": "other weights that it uses and does not train",
}


def run_identity(spec: TrainingSpec, data: Dataset, weights: str = "") -> dict[str, str]:
    """Identify a training run by hashes of its spec, its data, the user's own code, and fixed weights.

    The hash of the data covers their size, their classes, and at most 256 images spread over them.
    The hash of the spec leaves out the options in `OF_FILES`. With `lr_schedule: linear`, it also
    leaves out those in `CHANGEABLE`, which may change as long as the steps already done stay the same
    (`Plan.check_same`).

    Args:
        spec: A checked training spec.
        data: The data set that its data part builds.
        weights: A hash of the weights that are used but not trained (`weights_hash`).
    """
    size = len(data)
    x, y = fetch(data, sorted({i * size // HASHED_IMAGES for i in range(HASHED_IMAGES)}))
    digest = hashlib.sha256(json.dumps([size, list(data.classes)]).encode())
    digest.update(x.numpy().tobytes() + y.numpy().tobytes())
    options = spec["training"]
    free = OF_FILES + (CHANGEABLE if options.get("lr_schedule") == "linear" else ())
    fixed = {key: value for key, value in options.items() if key not in free}
    spec = {**spec, "training": fixed}
    return {
        "spec": specs.identity(spec),
        "data": digest.hexdigest(),
        "code": specs.code_hash(spec),
        "weights": weights,
    }


def prepare(folder: Path) -> None:
    """Create `folder`, and delete the temporary files of checkpoints whose writing was killed.

    Raises:
        OSError: The folder cannot be written to.
        RuntimeError: The folder holds a model but no checkpoint to resume from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "card.json").exists() and not (folder / NAME).exists():
        raise RuntimeError(
            f"{folder} holds a model but no {NAME} to resume from: name another folder with --out"
        )
    for draft in folder.glob(f".{NAME}.*.tmp"):
        draft.unlink(missing_ok=True)
    log = folder / LOG
    write_bytes(log, log.read_bytes() if log.exists() else b"")


def read(
    folder: Path, identity: Mapping[str, str], device: str | None = None
) -> dict[str, Any] | None:
    """Read the checkpoint in a folder; None if there is none.

    Args:
        folder: The folder of the training run.
        identity: The identity of the training run (see `run_identity`).
        device: Device for its tensors; None to leave them in the file and skip the hash of its content.

    Raises:
        RuntimeError: The checkpoint is damaged, or belongs to another training run.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        saved = torch.load(
            path, map_location=device or "cpu", weights_only=True, mmap=device is None
        )
        saved_identity, _, _ = saved["asked"], int(saved["step"]), saved["plan"]
    except Exception as error:  # a damaged file may raise anything
        raise_system_error(error)
        raise RuntimeError(f"{path} is damaged: delete it to start training again") from error
    if device is not None and saved.pop("contents", None) != _digest(saved):
        raise RuntimeError(
            f"{path} is damaged (its content has changed): delete it to start training again"
        )
    if saved_identity != identity:
        saved_hashes = saved_identity if isinstance(saved_identity, dict) else {}
        changed = [
            mismatch
            for key, mismatch in MISMATCHES.items()
            if saved_hashes.get(key) != identity.get(key)
        ]
        raise RuntimeError(
            f"{path} belongs to {changed[0]}: name another folder with --out, or delete it"
        )
    return saved


def restore(saved: Mapping[str, Any], parts: Mapping[str, Any], frozen: Collection[str]) -> int:
    """Restore the model, its running average and the optimizer from a checkpoint.

    Args:
        saved: What `read` returned.
        parts: The objects to restore in place, by name.
        frozen: The names of weights that are not trained.

    Returns:
        The step.

    Raises:
        RuntimeError: The checkpoint lacks weights.
    """
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            part.load_state_dict(saved[name])
        elif set(part.load_state_dict(saved[name], strict=False).missing_keys) - set(frozen):
            raise RuntimeError(
                f"the checkpoint {NAME} lacks weights: delete it to start training again"
            )
    return saved["step"]


def write(
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    parts: Mapping[str, Any],
    frozen: Collection[str],
    **more: Any,
) -> None:
    """Write a checkpoint, and the log up to it.

    Args:
        folder: The folder of the training run.
        lines: The lines of the log.
        parts: The objects whose states are saved, without the weights that are not trained.
        frozen: The names of the weights that are not trained.
        more: Further content: the step, the identity of the run, and so on.

    Raises:
        OSError: The folder cannot be written to, or the disk is full; the previous checkpoint remains.
    """
    states = {name: _state(part, frozen) for name, part in parts.items()}
    content = {**more, **states}
    # The log goes first: after a kill between the two, `logged` drops lines later than the checkpoint.
    write_bytes(folder / LOG, "".join(json.dumps(line) + "\n" for line in lines).encode())
    write_torch(folder / NAME, content | {"contents": _digest(content)})


def _digest(content: Any) -> str:
    """Hash nested tables and lists of tensors and plain values, as torch's files have no checksum."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        elif isinstance(value, Mapping):
            digest.update(b"{")
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, list | tuple):
            digest.update(b"[")
            for item in value:
                add(item)
        else:
            digest.update(f"{value!r};".encode())

    add(content)
    return digest.hexdigest()


def logged(folder: Path, step: int) -> list[dict[str, Any]]:
    """Read the lines of the log up to `step`.

    Raises:
        RuntimeError: The log is damaged.
    """
    log = folder / LOG
    try:
        lines = map(json.loads, log.read_text("utf-8").splitlines() if log.exists() else [])
        return [line for line in lines if line["step"] <= step]
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(
            f"{log} is damaged: delete it to continue without the older log"
        ) from error


def last(folder: Path) -> str:
    """The path of the last checkpoint, or "none yet"."""
    return str(folder / NAME) if (folder / NAME).exists() else "none yet"


def _state(part: Any, frozen: Collection[str]) -> dict[str, Any]:
    """The state of a part for a checkpoint: everything except the weights that are not trained."""
    state = part.state_dict()
    return {n: v for n, v in state.items() if not (isinstance(part, nn.Module) and n in frozen)}
