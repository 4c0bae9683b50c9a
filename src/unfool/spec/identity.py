"""What tells a spec from another: a hash of what it asks and of the files that it names."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from unfool.runtime.files import ADAPTER, files_in, hash_of_json
from unfool.runtime.published_files import kept_file

# of which the contents count, not the place
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
NOT_IN_IDENTITY = ("folder", "download", "examples", "lpips")  # no part of what a spec asks


def identity(spec: Mapping[str, Any]) -> str:
    """A name for what `spec` asks, the same on every machine, for every batch size and number of images.

    `machine` is no part of it, nor of how many images it is asked, nor where a file lies: of
    `weights`, `start`, `adapter`, `path` and `prompts` only what is in them counts, and of data its
    name and options.
    """
    asked = _by_contents({key: value for key, value in spec.items() if key != "machine"})
    for section in ("evaluation", "certification"):
        if section in asked:
            asked[section] = {k: v for k, v in asked[section].items() if k != "images"}
    if asked.get("evaluation", {}).get("curtail") is False:  # as if it were not there
        del asked["evaluation"]["curtail"]
    return hash_of_json(asked)[:10]


def _by_contents(value: Any) -> Any:
    if isinstance(value, list):
        return [_by_contents(v) for v in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _digest(v) if key in FILE_KEYS and isinstance(v, str) else _by_contents(v)
        for key, v in value.items()
        if key not in NOT_IN_IDENTITY
    }


def _digest(file: str) -> str:
    """The sha256 of a file, of weights with their card, or of what is read of a diffusers folder.

    Weights with a card lie in a folder, or are those of a shipped model.
    """
    home = kept_file(Path(file))
    if home.is_file():
        stat = home.stat()
        return _sha256(home, stat.st_size, stat.st_mtime_ns)
    if (parts := files_in(home)) and not (home / "card.json").is_file():
        digest = hashlib.sha256()
        for part in parts:
            stat = part.stat()
            told = _sha256(part, stat.st_size, stat.st_mtime_ns)
            digest.update(f"{part.relative_to(home).as_posix()} {told}\n".encode())
        return digest.hexdigest()
    for folder in (home, Path(str(resources.files("unfool.weights").joinpath(file)))):
        card = folder / "card.json"
        for weights in (folder / "model.safetensors", folder / ADAPTER):
            if weights.is_file() and card.is_file():
                return hashlib.sha256(weights.read_bytes() + card.read_bytes()).hexdigest()
    return file


@lru_cache
def _sha256(file: Path, size: int, changed: int) -> str:
    """Of a large file, computed again only if its size or its time changed."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
