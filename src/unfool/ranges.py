"""The allowed ranges of options, written once in the signatures.

`steps: Count = 20` says that there is at least one step. Specs are checked before anything heavy is
loaded (`spec.check`). Parts that are built in Python are checked by `check_arguments` or, for a
dataclass, by `checked_dataclass`, with the same messages.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import Field
from pydantic.fields import FieldInfo

Part = TypeVar("Part")
Count = Annotated[int, Field(ge=1)]
CountFromZero = Annotated[int, Field(ge=0)]
Time = Annotated[float, Field(ge=1e-4, le=1, description="0.1 is 100 of 1000")]
Probability = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, lt=math.inf)]
Depth = Annotated[int, Field(ge=10, description="6n + 4")]  # of a WideResNet
AtLeastTwo = Annotated[int, Field(ge=2)]
MostOf = Annotated[float, Field(gt=0.5, le=1)]
Positive = Annotated[float, Field(gt=0, lt=math.inf)]
InPixels = Annotated[Positive, Field(description="in units of [0, 1] pixels")]
InEps = Annotated[Positive, Field(description="in units of eps")]


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Refuse values that a signature does not allow: out of range, or not among its words.

    Args:
        function: The function with the signature.
        values: The arguments by name, such as `locals()`; names not in the signature are ignored.

    Raises:
        ValueError: A value is not allowed.
    """
    for name, hint in hints(function).items():
        if name in values and (problem := violation(hint, values[name])):
            raise ValueError(f"{name} {problem}")


def check_fields(part: object) -> None:
    """Refuse a dataclass with a field outside of its range.

    Raises:
        ValueError: A field is not allowed.
    """
    check_arguments(type(part), vars(part))


@dataclass_transform(frozen_default=True)
def checked_dataclass(part: type[Part]) -> type[Part]:
    """Make a class a frozen dataclass that refuses fields outside of their ranges (`check_fields`).

    The class's own `__post_init__`, if any, runs after the check.
    """
    own_post_init: Callable[[Part], None] | None = part.__dict__.get("__post_init__")

    def check(self: Part) -> None:
        check_fields(self)
        if own_post_init is not None:
            own_post_init(self)

    part.__post_init__ = check  # pyright: ignore[reportAttributeAccessIssue]
    return dataclass(frozen=True)(part)


@lru_cache(maxsize=256)
def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's or class's arguments, with ranges; {} if these do not resolve."""
    try:
        target: Any = function.__init__ if inspect.isclass(function) else function
        return get_type_hints(target, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def violation(hint: Any, value: Any) -> str | None:
    """Say what is wrong with a value of the right type, as in "must be 1 or more, not 0", or None.

    True and False do not count as numbers.
    """
    if value is None:
        return None
    if _is_bool_for_number(hint, value):
        return f"must be a number, not {str(value).lower()}"
    words, limits = _literal_words(hint), bounds(hint)
    if words and isinstance(value, str) and value not in words:
        return f"must be one of {', '.join(map(str, words))}, not {value!r}"
    if limits and isinstance(value, int | float) and not _within(limits, value):
        note = range_note(hint)
        return f"must be {range_text(hint)}{f' ({note})' if note else ''}, not {value}"
    return None


def choices(hint: Any) -> tuple[Any, ...]:
    """The words that an option accepts, if it accepts nothing but these (or None)."""
    others = [p for p in _parts(hint) if get_origin(p) is not Literal and p is not type(None)]
    return () if others else _literal_words(hint)


def bounds(hint: Any) -> dict[str, float]:
    """The bounds of a number: those of `ge`, `gt`, `le`, and `lt` that it has."""
    limits: dict[str, float] = {}
    for part in _parts(hint):
        for annotation in getattr(part, "__metadata__", ()):
            for constraint in annotation.metadata if isinstance(annotation, FieldInfo) else ():
                limits |= {
                    key: getattr(constraint, key) for key in _SATISFIES if hasattr(constraint, key)
                }
    return limits


def range_note(hint: Any) -> str:
    """What a type says about a number besides its range, such as its unit; "" for nothing."""
    annotations = [
        annotation for part in _parts(hint) for annotation in getattr(part, "__metadata__", ())
    ]
    descriptions = [
        annotation.description
        for annotation in annotations
        if isinstance(annotation, FieldInfo) and annotation.description
    ]
    return descriptions[-1] if descriptions else ""


def range_text(hint: Any) -> str:
    """Describe the range of a number: "1 or more", "above 0 and at most 1"; "" without bounds."""
    limits = bounds(hint)
    ge, gt, le, lt = (_plain(limits.get(key)) for key in ("ge", "gt", "le", "lt"))
    if ge and le:
        return f"from {ge} to {le}"
    if ge and lt:
        return f"from {ge} to below {lt}"
    upper = f"at most {le}" if le else f"below {lt}" if lt else ""
    if not upper:
        return f"{ge} or more" if ge else f"above {gt}" if gt else ""
    return f"above {gt} and {upper}" if gt else upper


_SATISFIES: dict[str, Callable[[float, float], bool]] = {
    "ge": lambda value, bound: value >= bound,
    "gt": lambda value, bound: value > bound,
    "le": lambda value, bound: value <= bound,
    "lt": lambda value, bound: value < bound,
}


def _literal_words(hint: Any) -> tuple[Any, ...]:
    """The words that a text must be among; () if any text, or also a number, is accepted."""
    kinds = [get_args(part)[0] if get_origin(part) is Annotated else part for part in _parts(hint)]
    if any(kind in (str, Path, Any, int, float, bool) for kind in kinds):
        return ()
    return tuple(w for p in _parts(hint) if get_origin(p) is Literal for w in get_args(p))


def _is_bool_for_number(hint: Any, value: Any) -> bool:
    """Whether a value is a boolean, or a list with one, where a number is expected."""
    parts = [get_args(part)[0] if get_origin(part) is Annotated else part for part in _parts(hint)]
    if isinstance(value, bool):
        return bool not in parts and Any not in parts and any(p in (int, float) for p in parts)
    if not isinstance(value, list | tuple):
        return False
    inner = [kind for part in parts for kind in get_args(part) if kind is not Ellipsis]
    return any(_is_bool_for_number(kind, item) for kind in inner for item in value)


def _within(limits: Mapping[str, float], value: float) -> bool:
    return all(_SATISFIES[key](value, limit) for key, limit in limits.items())


def _plain(bound: float | None) -> str:
    return "" if bound is None or math.isinf(bound) else f"{bound:.12g}"


def _parts(hint: Any) -> Iterator[Any]:
    """The members of a union, or the type itself."""
    if get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from _parts(part)
    else:
        yield hint
