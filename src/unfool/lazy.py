"""Public names that are loaded when first used, so that importing a package costs nothing."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package, for the names that it exports.

    A type checker does not see them: show it the same names by imports under `TYPE_CHECKING`.

    Args:
        package: The package's own name.
        homes: Each name with its module; or with `module:attribute`, if it has another name there;
            or with `package.name`, if it is a module itself.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = homes[name].partition(":")
        found = import_module(module)
        return found if module == f"{package}.{name}" else getattr(found, attribute or name)

    return get, lambda: sorted(import_module(package).__all__)
