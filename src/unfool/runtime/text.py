"""Objects as a line of text, and as a table for notebooks."""

import inspect
from dataclasses import fields, is_dataclass
from functools import partial
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

WIDEST = 40  # characters of one value


def short_repr(self: object) -> str:
    """Describe an object in a line: its class, and the options that differ from their defaults.

    A network is shown as its class and its number of weights. Use it as a `__repr__`.
    """
    options = [f"{name}={_value(value)}" for name, value in constructor_options(self).items()]
    return f"{type(self).__name__}({', '.join(options)})"


def html_repr(self: object) -> str:
    """Describe an object as an HTML table of its options, nested if an option has options itself.

    Use it as a `_repr_html_`.
    """
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{_cell(value)}</td></tr>"
        for name, value in constructor_options(self).items()
    )
    return f"<b>{escape(type(self).__name__)}</b><table>{rows}</table>"


def _cell(value: Any) -> str:
    return html_repr(value) if hasattr(type(value), "_repr_html_") else escape(_value(value))


def constructor_options(thing: object, defaults: bool = False) -> dict[str, Any]:
    """Return the arguments that an object was made with, if it keeps them as attributes.

    Args:
        thing: The object.
        defaults: Also return arguments that equal their defaults.
    """
    if is_dataclass(thing):
        parameter_defaults = {field.name: field.default for field in fields(thing)}
    else:
        try:
            parameters = inspect.signature(type(thing)).parameters
        except (TypeError, ValueError):
            return {}
        parameter_defaults = {name: parameter.default for name, parameter in parameters.items()}
    options = {name: getattr(thing, name) for name in parameter_defaults if hasattr(thing, name)}
    options = {name: value for name, value in options.items() if not inspect.ismethod(value)}
    if defaults:
        return options
    return {
        name: value for name, value in options.items() if not _same(value, parameter_defaults[name])
    }


def _value(value: Any) -> str:
    if isinstance(value, nn.Module):
        ours = type(value).__repr__ is short_repr
        return repr(value) if ours else f"{type(value).__name__}({_weights(value)})"
    if isinstance(value, Tensor):
        flat = value.detach().flatten().tolist() if value.numel() <= 4 else list(value.shape)
        numbers = ", ".join(f"{number:.4g}" for number in flat)
        return f"[{numbers}]" if value.numel() <= 4 else f"tensor({numbers})"
    if inspect.isroutine(value) or isinstance(value, partial):
        return getattr(_function(value), "__name__", "function")
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(repr(value).split())
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 4]} ..."


def _weights(module: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{count / 1e6:.2f} M weights" if count >= 1e4 else f"{count} weights"


def _function(value: Any) -> Any:
    return _function(value.func) if isinstance(value, partial) else value


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(default, Tensor):
        return value is default or (
            isinstance(value, Tensor)
            and isinstance(default, Tensor)
            and torch.equal(value, default)
        )
    try:
        return bool(value == default)
    except (ValueError, TypeError, RuntimeError):
        return False
