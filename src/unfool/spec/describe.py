"""Describes the parts of a spec and their options, by their signatures and docstrings."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from unfool.ranges import choices, hints, range_note, range_text
from unfool.spec.check import option_types
from unfool.spec.menu import MENU, find, kind_of, options_of

REQUIRED = "required"


@dataclass(frozen=True)
class Option:
    """An option of a part.

    Attributes:
        name: Its name in a spec.
        type: Its type and range, in words.
        default: Its default as YAML, or `REQUIRED`.
        text: Its meaning, in one sentence.
    """

    name: str
    type: str
    default: str
    text: str


@dataclass(frozen=True)
class Description:
    """The description of a part of a spec.

    Attributes:
        kind: Its kind in the menu, or "section".
        name: Its name.
        text: What it is, in one sentence.
        options: Its options.
    """

    kind: str
    name: str
    text: str
    options: Sequence[Option]


def describe(kind: str, name: str) -> Description:
    """Describe a part and its options.

    Args:
        kind: A kind of the menu.
        name: A short name of that kind, or `module:attribute`.

    Raises:
        SpecError: There is no such part.
    """
    factory = find(kind, name)
    types, texts = hints(factory), argument_texts(factory)
    options = [
        Option(key, _type(key, types.get(key, Any)), _default(p.default), texts.get(key, ""))
        for key, p in options_of(kind, factory).items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    return Description(kind, name, first_sentence(inspect.getdoc(factory) or ""), options)


def describe_section(name: str, kind: Any, defaults: Mapping[str, Any]) -> Description:
    """Describe a section that is not a part, by the docstring and options of its type."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):  # a subclass documents only the options that it adds
        texts |= argument_texts(base)
    options = [
        Option(
            key,
            _type(key, of),
            _default(defaults.get(key, inspect.Parameter.empty)),
            texts.get(key, ""),
        )
        for key, of in option_types(kind).items()
    ]
    return Description("section", name, first_sentence(inspect.getdoc(kind) or ""), options)


def kinds_with(name: str) -> list[str]:
    """Return the kinds that have a part of this short name."""
    return [kind for kind, names in MENU.items() if name in names]


def argument_texts(function: Any) -> dict[str, str]:
    """Return the first sentence on each argument in the `Args` or `Attributes` of a docstring."""
    entries: dict[str, list[str]] = {}
    current: list[str] = []
    for line in _section(inspect.getdoc(function) or ""):
        head = re.match(r"    (\w+(?:, \w+)*)(?: \([^)]*\))?: (.*)", line)
        if head:
            current = [head[2]]
            entries |= dict.fromkeys(head[1].split(", "), current)
        else:
            current.append(line.strip())
    return {name: first_sentence(" ".join(lines)) for name, lines in entries.items()}


def first_sentence(text: str) -> str:
    """Return the text up to the first period that ends a sentence."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    ends = re.search(r"(?<!et al)(?<!i\.e)(?<!e\.g)\.(?= [A-Z`\"])", paragraph)
    return paragraph[: ends.end()] if ends else paragraph


def _section(doc: str) -> Iterator[str]:
    inside = False
    for line in doc.splitlines():
        if line and not line.startswith(" "):
            inside = line in ("Args:", "Attributes:")
        elif inside and line:
            yield line


def _type(key: str, hint: Any) -> str:
    if inner := kind_of(key):
        return f"a {inner}" + (" or null" if NoneType in get_args(hint) else "")
    words = choices(hint)
    what = " | ".join(map(str, words)) if words else _plain(hint)
    if words and NoneType in get_args(hint):
        what += " | null"
    return ", ".join(told for told in (what, range_text(hint), range_note(hint)) if told)


def _plain(hint: Any) -> str:
    """Return a type without its range, in the words of YAML."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _plain(inside[0])
    if origin is Literal:
        return " | ".join(map(str, inside))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_plain(part) for part in inside))
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        of = [_element(part) for part in inside if part is not Ellipsis]
        return f"list of ({', '.join(of)})" if len(of) > 1 else f"list of {of[0]}" if of else "list"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "table"
    names = {
        int: "whole number",
        float: "number",
        bool: "true or false",
        str: "text",
        Path: "path",
        NoneType: "null",
        Any: "any",
    }
    return names.get(hint) or getattr(origin or hint, "__name__", str(hint)).lower()


def _element(hint: Any) -> str:
    """Return the type of a list's elements, with its range: "whole number (1 or more)"."""
    bounds = range_text(hint)
    return f"{_plain(hint)} ({bounds})" if bounds else _plain(hint)


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return REQUIRED
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_default, value))}]"
    return str(value)
