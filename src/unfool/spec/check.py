"""Parts of a spec: their options checked against what they name, and the objects built.

A part is a table with a `name` (see `menu`) and options, or the bare name. Options are checked
against the signature of what is named, by pydantic, before anything heavy is loaded.
"""

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from unfool.errors import SpecError
from unfool.ranges import complaint, hints
from unfool.runtime.downloads import allowed, cache_folder
from unfool.spec.load import Table
from unfool.spec.menu import (
    CALL_ARGUMENTS,
    PROVIDED,
    SHORT_CALLS,
    WORDS,
    choices,
    find,
    hint,
    is_callable_part,
    kind_of,
    makes_short_call,
    options_of,
    takes_short_call,
)

PLAIN_TYPES = (bool, int, float, str)  # of an option that is no part, whatever it is called


def part(kind: str, value: Any) -> Table:
    """A part of a spec as a table with a name.

    Raises:
        SpecError: It is neither a name nor a table with one.
    """
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise SpecError(f"{kind} needs a name; choose from: {choices(kind)}")
    return table


def check(kind: str, value: Any) -> Table:
    """A part with its options checked and its defaults filled in; nothing is built.

    Args:
        kind: A row of the menu.
        value: The part, as it stands in the spec.

    Raises:
        SpecError: An unknown name or option, or a value that does not fit.
    """
    table = part(kind, value)
    factory = find(kind, table["name"])
    options = {key: v for key, v in table.items() if key != "name"}
    parameters = options_of(kind, factory)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {k: p for k, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for key in options:
        if key not in named and not open_ended:
            takes = ", ".join(named) or "no options"
            raise SpecError(
                f"{kind} {table['name']}: there is no option {key!r}; {hint(key, named, takes)}"
            )
    types = hints(factory)
    filled: Table = {"name": table["name"]}
    for key, parameter in named.items():
        inner = None if types.get(key) in PLAIN_TYPES else kind_of(key)
        if inner and options.get(key) is not None:
            filled[key] = _check_inner(inner, options[key])
        elif inner and key in options and parameter.default is None:
            filled[key] = None
        elif key in options:
            filled[key] = _fit(f"{kind}.{key}", types.get(key, Any), options[key])
        elif parameter.default is parameter.empty:
            if key in CALL_ARGUMENTS.get(
                kind, ()
            ):  # of a function that is to be called with others
                ways = [
                    CALL_ARGUMENTS[kind],
                    *([SHORT_CALLS[kind][0]] if kind in SHORT_CALLS else []),
                ]
                raise SpecError(
                    f"{kind} {table['name']}: the first arguments of a function must be called "
                    f"{', or '.join(' '.join(way) for way in ways)}; not {' '.join(parameters)}"
                )
            raise SpecError(f"{kind} {table['name']}: the option {key!r} is missing")
        elif _plain(parameter.default):
            filled[key] = parameter.default
    if open_ended:
        filled |= {key: v for key, v in options.items() if key not in named}
    return filled


def _check_inner(kind: str, value: Any) -> Table | str:
    """A part inside a part, checked; of the kinds in `WORDS`, a short name stays the word it is."""
    table = part(kind, value)
    if kind not in WORDS or ":" in table["name"]:
        return check(kind, table)
    find(kind, table["name"])
    if len(table) > 1:
        raise SpecError(
            f"{kind} {table['name']}: its options are those of the part around it; write them there, "
            "and here the name alone"
        )
    return table["name"]


def check_data(value: Any, folder: str | None) -> Table:
    """A `data` part, checked, with the folder that the user named where it needs one.

    Raises:
        SpecError: As `check`; or it needs a folder and none was named.
    """
    table = part("data", value)
    takes = inspect.signature(find("data", table["name"])).parameters
    if "folder" in takes and "folder" not in table:
        cache = cache_folder() / "data"
        fetches = "download" in takes and (allowed() or table.get("download"))
        if not folder and (fetches or cache.is_dir()):
            folder = str(cache)
        if not folder:
            more = ", or have it fetched by --download" if "download" in takes else ""
            raise SpecError(
                f"data {table['name']} is read from a folder: name it by --data FOLDER or in the "
                f"environment as UNFOOL_DATA{more}"
            )
        table = {**table, "folder": folder}
    return check("data", table)


def build(kind: str, table: Table, **given: Any) -> Any:
    """Make the `kind` that a checked `table` names, from its options and what is `given`.

    Raises:
        SpecError: What it names refuses the options, in its own words.
    """
    factory = find(kind, table["name"])
    options = {
        key: build(inner, value, **given)
        if (inner := kind_of(key)) and isinstance(value, dict)
        else value
        for key, value in table.items()
        if key != "name"
    }
    known = inspect.signature(factory).parameters
    provided = {k: v for k, v in given.items() if k in known}
    if is_callable_part(kind, factory):
        return partial(factory, **provided, **options)
    if takes_short_call(kind, factory):
        return find(kind, SHORT_CALLS[kind][1])(partial(factory, **options))
    try:
        made = factory(**provided, **options)
    except (ValueError, OSError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{kind} {table['name']}: {error}") from error
    except (RuntimeError, MemoryError) as error:  # such as sizes for which there is no memory
        said = " ".join(str(error).split())[:200] or "there is not enough memory"
        raise SpecError(
            f"{kind} {table['name']} cannot be built with these options ({said})"
        ) from error
    return find(kind, SHORT_CALLS[kind][1])(made) if makes_short_call(kind, made) else made


def check_section(name: str, values: Any, kinds: Mapping[str, tuple[Any, Any]]) -> Table:
    """A plain section of a spec (no `name`), checked: {key: (type, default)}; `...` is required.

    Raises:
        SpecError: An unknown key or a value that does not fit.
    """
    if not isinstance(values, dict):
        raise SpecError(f"{name} must be a table of options: {', '.join(kinds)}")
    for key in values:
        if key not in kinds:
            raise SpecError(
                f"{name}: there is no option {key!r}; {hint(key, kinds, ', '.join(kinds))}"
            )
    for key, value in values.items():
        if wrong := complaint(kinds[key][0], value):
            raise SpecError(f"{name}.{key} {wrong}")
    model = create_model(name, __config__=ConfigDict(extra="forbid"), **kinds)  # pyright: ignore
    try:
        return model(**values).model_dump()
    except ValidationError as error:
        raise _spec_error(name, error, 1) from error


def argument_names(kind: str, table: Table) -> list[str]:
    """The names of the arguments of what a part names, and of such parts inside it.

    Of parts of another kind inside it, those alone that are provided (`menu.PROVIDED`).
    """
    names = list(inspect.signature(find(kind, table["name"])).parameters)
    for key, value in table.items():
        inner = kind_of(key)
        if inner is None or not isinstance(value, dict):
            continue
        below = argument_names(inner, value)
        names += [n for n in below if inner == kind or n in PROVIDED.get(inner, ())]
    return names


def _fit(where: str, kind: Any, value: Any) -> Any:
    if kind is inspect.Parameter.empty:
        return value
    if wrong := complaint(kind, value):
        raise SpecError(f"{where} {wrong}")
    try:
        fitted = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except TypeError:
        fitted = TypeAdapter(kind)
    except Exception:  # a type that pydantic cannot describe takes what it is given
        return value
    try:
        result = fitted.validate_python(value)
    except ValidationError as error:
        raise _spec_error(where, error) from error
    return str(result) if isinstance(result, Path) else result


def _spec_error(where: str, error: ValidationError, depth: int = 0) -> SpecError:
    """The first mistake, in words; `depth` steps of its path come before the types that may be."""
    first, *others = error.errors()
    path, messages, value = first["loc"], [first["msg"]], first.get("input")
    alternatives = [
        e["msg"] for e in others if e["loc"][:-1] == path[:-1] and e.get("input") == value
    ]
    if (
        alternatives and len(path) > depth
    ):  # several types may be, and the last step names one of them
        path, messages = path[:-1], messages + alternatives
    inside = ".".join(str(step) for step in path if not str(step).endswith("]"))
    place = f"{where}.{inside}" if inside and inside not in where else where
    words = [text.removeprefix("Value error, ") for text in messages]
    reasons = ", or ".join(text[0].lower() + text[1:] for text in words)
    return SpecError(f"{place}: {reasons}, not {value!r}")


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | list | tuple | None)
