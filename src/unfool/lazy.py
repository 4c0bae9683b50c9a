"""Public names that are loaded on first use, so that importing a package costs nothing."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_exports(
    package: str, *extra_names: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__`, and `__all__` for a package that exports its modules' names.

    The package imports these names under `TYPE_CHECKING`, each `as` itself. Type checkers read the
    imports there, and this function reads them from the source, so that no name is listed twice.

    Args:
        package: The package's own name.
        extra_names: Names that the package defines itself.
    """
    modules = _imported_for_type_checkers(package)
    names = sorted({*extra_names, *modules})

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if modules[name] == package:
            return import_module(f"{package}.{name}")
        return getattr(import_module(modules[name]), name)

    return get, lambda: names, names


def _imported_for_type_checkers(package: str) -> dict[str, str]:
    """The names that a package imports `as` themselves under `TYPE_CHECKING`, and their modules."""
    loader: Any = sys.modules[package].__loader__
    return {
        alias.name: statement.module or ""
        for node in ast.parse(loader.get_source(package)).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
        if alias.asname == alias.name
    }
