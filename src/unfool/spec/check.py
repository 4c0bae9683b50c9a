"""Checks the options of a spec's parts, and builds the objects that the parts name.

A part is a table with a `name` (see `menu`) and options, or only the name. Pydantic checks options
against the signature of the named class or function before anything large is loaded.
"""

import inspect
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypeVar, cast, get_args, get_origin, get_type_hints

from unfool.errors import SpecError
from unfool.ranges import hints, violation
from unfool.runtime.downloads import allowed, cache_folder
from unfool.runtime.memory import lack_of_memory
from unfool.runtime.validate import fitted, shown
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
from unfool.spec.tables import Part

Section = TypeVar("Section")
HAS = {"data": ("__len__", "__getitem__", "classes"), "denoiser": ("schedule", "encode", "decode")}
INSTEAD = {"guide": "for_images"}  # a method that an object may have instead of being callable
PLAIN_TYPES = (bool, int, float, str)  # an option of such a type is not a part, whatever its name


def part(kind: str, value: Any) -> Part:
    """Return a part of a spec as a table with a name.

    Raises:
        SpecError: The value is neither a name nor a table with a name.
    """
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        given = "" if table is None else f", not {shown(table)}"
        raise SpecError(
            f"{kind} needs a name, alone or in a table with options{given}; choose from: {choices(kind)}"
        )
    return cast(Part, table)


def check(kind: str, value: Any, where: str | None = None) -> Part:
    """Check the options of a part and fill in its defaults; nothing is built.

    Args:
        kind: A kind of the menu.
        value: The part, as written in the spec.
        where: Its name in messages; the kind by default.

    Raises:
        SpecError: A name or option is unknown, an option is missing, or a value does not fit.
    """
    table, where = part(kind, value), where or kind
    factory = find(kind, table["name"])
    options = {key: v for key, v in table.items() if key != "name"}
    parameters = options_of(kind, factory)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {k: p for k, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for key in options:
        if key not in named and not open_ended:
            takes = ", ".join(named) or "no options"
            raise SpecError(
                f"{where} {table['name']}: there is no option {key!r}; {hint(key, named, takes)}"
            )
    types = hints(factory)
    filled: dict[str, Any] = {"name": table["name"]}
    for key, parameter in named.items():
        inner = None if types.get(key) in PLAIN_TYPES else kind_of(key)
        if inner and options.get(key) is not None:
            filled[key] = _check_inner(inner, options[key])
        elif inner and key in options and parameter.default is None:
            filled[key] = None
        elif key in options:
            filled[key] = _fit(f"{where}.{key}", types.get(key, Any), options[key])
        elif parameter.default is parameter.empty:
            # A function whose first arguments are not those of a call.
            if key in CALL_ARGUMENTS.get(kind, ()):
                ways = [
                    CALL_ARGUMENTS[kind],
                    *([SHORT_CALLS[kind][0]] if kind in SHORT_CALLS else []),
                ]
                raise SpecError(
                    f"{where} {table['name']}: the first arguments of the function must be named "
                    f"{', or '.join(' '.join(way) for way in ways)}; not {' '.join(parameters)}"
                )
            raise SpecError(f"{where} {table['name']}: the option {key!r} is missing")
        elif _plain(parameter.default):
            filled[key] = parameter.default
    if open_ended:
        filled |= {key: v for key, v in options.items() if key not in named}
    return cast(Part, filled)


def _check_inner(kind: str, value: Any) -> Part | str:
    """Check a part inside a part; for the kinds in `WORDS`, a short name remains text."""
    table = part(kind, value)
    if kind not in WORDS or ":" in table["name"]:
        return check(kind, table)
    find(kind, table["name"])
    if len(table) > 1:
        raise SpecError(
            f"{kind} {table['name']}: its options are those of the part around it: write them "
            "there, and only the name here"
        )
    return table["name"]


def refuse_unread_folder(spec: Mapping[str, Any], folder: str | None) -> None:
    """Refuse a folder that the user names for a data set that does not read it.

    A folder from the environment (UNFOOL_DATA) is not refused: it serves all specs.

    Args:
        spec: The spec that `load` returned.
        folder: The value of `--data`.

    Raises:
        SpecError: The data set of the spec reads no folder, or has another one.
    """
    named = folder and folder != os.environ.get("UNFOOL_DATA") and spec.get("data") is not None
    if not named or any(path.partition(".")[0] == "data" for path in spec.get("sweep") or ()):
        return
    table = part("data", spec["data"])
    if "folder" not in inspect.signature(find("data", table["name"])).parameters:
        raise SpecError(
            f"data {table['name']} does not read a folder, so {folder} would be ignored: leave "
            "--data out, or choose a data set that does, such as --set data=folder"
        )
    if (other := table.get("folder", folder)) != folder:
        raise SpecError(
            f"the folder of data {table['name']} is {other} in the spec and {folder} in --data: leave "
            "one out"
        )


def check_data(value: Any, folder: str | None) -> Part:
    """Check a `data` part; if it needs a folder, fill in the user's, or else the cache.

    Raises:
        SpecError: As `check`; or the data set needs a folder and none was named.
    """
    table = part("data", value)
    takes = inspect.signature(find("data", table["name"])).parameters
    if "folder" in takes and "folder" not in table:
        cache = cache_folder() / "data"
        fetches = "download" in takes and (allowed() or table.get("download"))
        if not folder and (fetches or cache.is_dir()):
            folder = str(cache)
        if not folder:
            more = ", or download it by --download" if "download" in takes else ""
            raise SpecError(
                f"data {table['name']} is read from a folder: name it by --data FOLDER or in the "
                f"environment variable UNFOOL_DATA{more}"
            )
        table: Part = {**table, "folder": folder}
    return check("data", table)


def build(kind: str, table: Part, **given: Any) -> Any:
    """Build the object that a checked part names, from its options and the objects in `given`.

    Raises:
        SpecError: The class or function refuses the options, or its result does not fit the kind.
    """
    factory = find(kind, table["name"])
    options = {
        key: build(inner, cast(Part, value), **given)
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
    except (RuntimeError, MemoryError) as error:  # such as sizes that do not fit into memory
        said = lack_of_memory(error) or " ".join(str(error).split())[:200]
        raise SpecError(
            f"{kind} {table['name']} cannot be built with these options ({said})"
        ) from error
    if kind in CALL_ARGUMENTS and not (callable(made) or hasattr(made, INSTEAD.get(kind, "?"))):
        raise SpecError(
            f"{kind} {table['name']} returns {shown(made)}, which cannot be called with "
            f"({', '.join(CALL_ARGUMENTS[kind])}): name a class whose instances can, or a function "
            "with these arguments"
        )
    if lacking := [name for name in HAS.get(kind, ()) if not hasattr(made, name)]:
        raise SpecError(
            f"{kind} {table['name']} returns {shown(made)}, which has no "
            f"{' and no '.join(lacking)}: name a class with these attributes, as in unfool/protocols.py"
        )
    return find(kind, SHORT_CALLS[kind][1])(made) if makes_short_call(kind, made) else made


def check_section(
    name: str, values: Any, kind: type[Section], defaults: Mapping[str, Any] | None = None
) -> Section:
    """Check a plain section of a spec (without a `name`), and fill in its defaults.

    Args:
        name: Its name in messages.
        values: The section, as written in the spec.
        kind: Its type, a TypedDict.
        defaults: Defaults of the options that may be omitted.

    Raises:
        SpecError: A key is unknown or missing, or a value does not fit.
    """
    return cast(Section, check_options(name, values, option_types(kind), defaults or {}))


def check_options(
    name: str, values: Any, types: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Check a section as `check_section` does, given the type of each option.

    Raises:
        SpecError: A key is unknown or missing, or a value does not fit.
    """
    if not isinstance(values, dict):
        listed = ", ".join(types)
        raise SpecError(f"{name} must be a table of options ({listed}), not {shown(values)}")
    for key in values:
        if key not in types:
            near = hint(key, types, ", ".join(types))
            raise SpecError(f"{name}: there is no option {key!r}; {near}")
    for key in types:
        if key not in values and key not in defaults:
            raise SpecError(f"{name}: the option {key!r} is missing")
    return {
        key: _fit(f"{name}.{key}", of, values[key]) if key in values else defaults[key]
        for key, of in types.items()
    }


def option_types(kind: Any) -> dict[str, Any]:
    """Return the type of each option of a section, with its range."""
    types = get_type_hints(kind, include_extras=True)
    return {
        key: get_args(of)[0] if get_origin(of) is NotRequired else of for key, of in types.items()
    }


def argument_names(kind: str, table: Part) -> list[str]:
    """Return the argument names of what a part names, and of the parts inside it.

    For inner parts of another kind, only the names in `menu.PROVIDED` are included.
    """
    names = list(inspect.signature(find(kind, table["name"])).parameters)
    for key, value in table.items():
        inner = kind_of(key)
        if inner is None or not isinstance(value, dict):
            continue
        below = argument_names(inner, cast(Part, value))
        names += [n for n in below if inner == kind or n in PROVIDED.get(inner, ())]
    return names


def _fit(where: str, kind: Any, value: Any) -> Any:
    """Convert the value of an option to its type."""
    if kind is inspect.Parameter.empty:
        return value
    if wrong := violation(kind, value):
        raise SpecError(f"{where} {wrong}")
    try:
        result = fitted(kind, value, where)
    except ValueError as error:
        raise SpecError(str(error)) from error
    return str(result) if isinstance(result, Path) else result


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | list | tuple | None)
