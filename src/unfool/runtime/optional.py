"""Libraries that are optional, imported where a spec names something of theirs."""

from importlib import import_module
from typing import Any


def require(library: str, extra: str | None) -> Any:
    """The module of an optional library.

    Args:
        library: Its import name.
        extra: The extra of unfool that installs it; None if it must fit the torch at hand.

    Raises:
        ValueError: It is not installed, or broken.
    """
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        missing = error.name or library
        raise ValueError(
            f"this needs the library {missing}, which is not installed: {_advice(missing, extra)}"
        ) from error
    except (ImportError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        broken = "torchvision" if "torchvision" in said else library
        raise ValueError(
            f"the library {broken} is installed but broken ({said}): {_advice(broken, extra)}"
        ) from error


def _advice(library: str, extra: str | None) -> str:
    """How to get a library; torchvision, which timm imports, must fit the torch at hand."""
    if extra is not None and library != "torchvision":
        return f"pip install 'unfool[{extra}]'"
    return f"install the {library} that was built for your torch (see pytorch.org)"
