"""Public names that are loaded when first used, so that importing a package costs nothing."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazily(
    package: str, *own: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__`, and `__all__` of a package that exports names of its modules.

    The package imports these names under `TYPE_CHECKING`, each `as` itself. A type checker reads the
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
    """The names that a package imports under `TYPE_CHECKING` `as` themselves, each with its module."""
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
