"""A hash of the user's own code that a spec runs, so that a run never mixes two versions of it.

The files are found by reading the `import` statements of the modules that a spec (or the card of
its weights) names, and of the modules that those import. Nothing is imported for this; a module
that is already imported counts with the file it came from. The standard library, installed
packages, and unfool do not count.
"""

import ast
import hashlib
import importlib.util
import json
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from unfool.spec.menu import kind_of

CARD_KEYS = ("weights", "init_from")  # options that may name a folder with a card
INSTALLED = ("site-packages", "dist-packages")
_HOMES = tuple(
    Path(sysconfig.get_path(name)).resolve()
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def code_hash(spec: Mapping[str, Any]) -> str:
    """Return a hash of every file of the user's own code that a spec runs.

    These are the modules that the spec names as `module:attribute`, the packages that contain them,
    and all that these import, at the top or inside a function. A named module counts even if it is
    an installed one, but what an installed module imports does not. For the script that is being
    run (`__main__`), only its imports count.
    """
    digest = hashlib.sha256()
    for name, file in sorted(own_files(set(_all_modules(spec, set()))).items()):
        digest.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def modules_named(value: Any) -> Iterator[str]:
    """Yield the modules that a spec, or a part of one, names as `module:attribute`."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from modules_named(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            named = key == "name" or kind_of(str(key)) is not None
            if named and isinstance(item, str) and ":" in item:
                yield item.partition(":")[0]
            else:
                yield from modules_named(item)


def own_files(modules: set[str]) -> dict[str, Path]:
    """Find the files of these modules and of all user modules that they import: name to file."""
    files: dict[str, Path] = {}
    seen, todo = set(modules), sorted(modules)
    while todo:
        name = todo.pop()
        spec = _spec_of(name)
        file = Path(spec.origin) if spec and spec.origin else None
        if spec is None or file is None or not file.is_file():
            continue  # a module of a notebook, a package without __init__.py, or a missing module
        if _is_own(file):
            if name != "__main__":
                files[name] = file
            imported = set(_imports(name, spec, file)) - seen
            seen |= imported
            todo += sorted(imported)
        elif name in modules:
            files[name] = file
    return files


def _all_modules(value: Any, seen: set[Path]) -> Iterator[str]:
    """Yield the modules that a spec names, and those that the cards of its weights name."""
    yield from modules_named(value)
    for card in _card_files(value):
        if card not in seen:
            seen.add(card)
            try:
                yield from _all_modules(json.loads(card.read_text("utf-8")).get("part"), seen)
            except (ValueError, AttributeError):
                continue  # a damaged card, which is reported when it is loaded


def _card_files(value: Any) -> Iterator[Path]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _card_files(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in CARD_KEYS and isinstance(item, str):
                shipped = Path(str(resources.files("unfool.weights").joinpath(item)))
                cards = (folder / "card.json" for folder in (Path(item), shipped))
                yield from [card for card in cards if card.is_file()][:1]
            else:
                yield from _card_files(item)


def _imports(name: str, spec: ModuleSpec, file: Path) -> Iterator[str]:
    """Yield the modules that a file may import, and the packages that contain them."""
    yield from _parent_packages(name)
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    for node in ast.walk(tree):
        for target in _targets(node, package):
            yield target
            yield from _parent_packages(target)


def _targets(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*(parents if node.level else []), *([node.module] if node.module else [])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            yield node.args[0].value


def _parent_packages(name: str) -> list[str]:
    """Return the packages that contain a module, which Python imports before it."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _spec_of(name: str) -> ModuleSpec | None:
    """Find a module without importing it or its packages."""
    top, *inside = name.split(".")
    if not top:
        return None
    if top == "__main__":
        script = getattr(sys.modules.get(top), "__file__", None)
        return ModuleSpec(top, None, origin=script)
    try:
        spec = importlib.util.find_spec(top)
        for part in inside:
            if spec is None or spec.submodule_search_locations is None:
                return None
            # One part at a time, because for a dotted name Python would import the packages.
            spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    except (ValueError, ImportError, AttributeError):
        return None
    return spec


def _is_own(file: Path) -> bool:
    """Return whether a file is the user's: not part of Python, an installed package, or unfool."""
    file = file.resolve()
    if any(part in INSTALLED for part in file.parts):
        return False
    if Path(__file__).resolve().parents[1] in file.parents:
        return False
    return not any(home in file.parents for home in _HOMES)
