"""Public names that are loaded on first use, so that importing a package costs nothing."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazily(
    package: str, *own: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__`, and `__all__` for a package that exports its modules' names.

    The package imports these names under `TYPE_CHECKING`, each `as` itself. Type checkers read the
    imports there, and this function reads them from the source, so that no name is listed twice.

    Args:
        package: The package's own name.
        own: Names that the package defines itself.
    """
    homes = _imported_for_type_checkers(package)
    names = sorted({*own, *homes})

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if homes[name] == package:
            return import_module(f"{package}.{name}")
        return getattr(import_module(homes[name]), name)

    return get, lambda: names, names


def _imported_for_type_checkers(package: str) -> dict[str, str]:
    """The names that a package imports `as` themselves under `TYPE_CHECKING`, and their modules."""
    loader: Any = sys.modules[package].__loader__
    return {
        alias.name: line.module or ""
        for node in ast.parse(loader.get_source(package)).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
        for line in node.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
        if alias.asname == alias.name
    }
