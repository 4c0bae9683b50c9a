"""The identity of a spec: a hash of what it asks and of the files that it names."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from unfool.runtime.files import ADAPTER, files_in, hash_of_json
from unfool.runtime.published_files import path_or_cached

# files and folders whose contents count, not their paths
FILE_KEYS = (
    "weights",
    "adapter",
    "vae",
    "tokenizer",
    "path",
    "prompts",
    "init_from",
    "pictures",
    "subset",
    "attributes",
)
NOT_IN_IDENTITY = ("folder", "download")  # where data are, which does not change what is asked
NOT_IN_EVALUATION = ("examples", "lpips")  # likewise in the section `evaluation`: what is kept


def identity(spec: Mapping[str, Any]) -> str:
    """Return a hash of what `spec` asks, the same on every machine and for any number of images.

    The section `machine`, the number of images and of examples, and the paths of files and folders
    do not count.
    For the keys in `FILE_KEYS`, the contents of the files count; for other data, the name and
    options. A run also keeps a hash of its images.
    """
    content = _by_contents({key: value for key, value in spec.items() if key != "machine"})
    for section in ("evaluation", "certification"):
        if section in content:
            ignored = ("images", *NOT_IN_EVALUATION)
            content[section] = {k: v for k, v in content[section].items() if k not in ignored}
    if content.get("evaluation", {}).get("curtail") is False:  # the same as no `curtail`
        del content["evaluation"]["curtail"]
    return hash_of_json(content)[:10]


def _by_contents(value: Any) -> Any:
    if isinstance(value, list):
        return [_by_contents(v) for v in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _of_file(key, v) if key in FILE_KEYS and isinstance(v, str) else _by_contents(v)
        for key, v in value.items()
        if key not in NOT_IN_IDENTITY
    }


def _of_file(key: str, file: str) -> str:
    """Return a hash of the contents of a file or folder, or its name if it does not exist.

    Weights with a card are in a folder, or belong to a shipped model. For a folder of data, which
    may be as large as ImageNet, the names and sizes of its files are hashed, not their contents.
    """
    path = path_or_cached(Path(file))
    if path.is_file():
        return _contents(path)
    if key == "path" and path.is_dir():
        return _hash_of({part: str(part.stat().st_size) for part in _visible(path)}, path)
    if (parts := files_in(path)) and not (path / "card.json").is_file():
        return _hash_of({part: _contents(part) for part in parts}, path)
    for folder in (path, Path(str(resources.files("unfool.weights").joinpath(file)))):
        card = folder / "card.json"
        for weights in (folder / "model.safetensors", folder / ADAPTER):
            if weights.is_file() and card.is_file():
                with weights.open("rb") as content:
                    digest = hashlib.file_digest(content, "sha256")
                digest.update(card.read_bytes())
                return digest.hexdigest()
    if key == "tokenizer" and path.is_dir():
        return _hash_of({part: _contents(part) for part in _visible(path)}, path)
    return file


def _visible(folder: Path) -> list[Path]:
    """List the files in a folder at any depth, sorted, without hidden ones."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [p for p in files if not any(n.startswith(".") for n in p.relative_to(folder).parts)]


def _hash_of(descriptions: Mapping[Path, str], folder: Path) -> str:
    """Hash what describes the files in a folder, with their relative paths."""
    return hash_of_json(
        {
            part.relative_to(folder).as_posix(): description
            for part, description in descriptions.items()
        }
    )


def _contents(file: Path) -> str:
    stat = file.stat()
    return _sha256(file, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _sha256(file: Path, size: int, changed: int) -> str:
    """Hash a file; repeated only if its size or modification time changed."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
