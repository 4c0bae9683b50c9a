"""Reads a spec, a YAML file or a shipped one, and applies changes from the command line."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any, cast

from unfool.errors import SpecError
from unfool.runtime.validate import truncated_repr
from unfool.spec import strict_yaml
from unfool.spec.menu import hint, kind_of, shipped
from unfool.spec.tables import RawSpec

Table = dict[str, Any]  # raw YAML, not yet checked
# options whose values are never numbers
TEXT_KEYS = ("name", "label", "view", "weights", "adapter", "path", "folder", "device", "init_from")


def load(source: str | Path | Mapping[str, Any], changes: Sequence[str] = ()) -> RawSpec:
    """Read a spec and apply `path.to.key=value` changes to it.

    Args:
        source: The name of a shipped spec, the path of a YAML file, or a table.
        changes: Changes as `path.to.key=value`; values are YAML, and a number in a path is the
            index of a list.

    Raises:
        SpecError: There is no such spec, it is not a YAML table, one of its keys is not text, it
            has a value that a spec cannot contain, or a change does not fit.
    """
    try:
        spec = _plain(source if isinstance(source, Mapping) else _read(source), "")
    except RecursionError:
        raise SpecError(
            "the spec is nested too deeply, or contains itself: write it out without aliases"
        ) from None
    for change in changes:
        _change(spec, change)
    return cast(RawSpec, _numbers(spec))


def _plain(value: Any, where: str) -> Any:
    """Copy a value of a spec into plain tables, lists, text, numbers, true, false and null.

    Values from Python may also be NumPy numbers and arrays, paths, and devices.

    Raises:
        SpecError: It contains another type, a number that is not finite, or a key that is not text.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{where} is {value}, and must be a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                location = f"in {where}" if where else "at the top of the spec"
                raise SpecError(
                    f"the key {key!r} {location} must be text: write it in quotes, or name an option "
                    "(YAML reads an unquoted yes, no, on, or off as true or false)"
                )
        return {key: _plain(v, f"{where}.{key}".lstrip(".")) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}.{index}") for index, v in enumerate(value)]
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), where)
    if isinstance(value, Path) or type(value).__name__ == "device":
        return str(value)
    if isinstance(value, date):
        raise SpecError(f"YAML reads {where} as the date {value}: write it in quotes")
    raise SpecError(
        f"{where} is {truncated_repr(value)}, an object, which a spec cannot hold: write its name and "
        "options, such as {name: pgd, steps: 20}, or pass objects to unfool.evaluate"
    )


def _read(source: str | Path) -> Table:
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or (path.exists() and not path.is_dir()):
        try:
            with path.open(encoding="utf-8") as file:  # the path may also be a pipe of the shell
                text = file.read(strict_yaml.LONGEST + 1)
        except (OSError, UnicodeDecodeError) as error:
            why = (
                "it is not a text file"
                if isinstance(error, ValueError)
                else str(error.strerror).lower()
            )
            raise SpecError(
                f"the spec {path} cannot be read ({why}): give the path of a YAML file, relative "
                f"to {Path.cwd()}, or the name of a shipped spec (see `unfool menu`)"
            ) from error
    else:
        names = shipped()
        if str(source) not in names:
            listed = ", ".join(names)
            file = Path("experiments", f"{source}.yaml")
            near = f"did you mean {file}?" if file.is_file() else hint(str(source), names, listed)
            raise SpecError(f"there is no spec {str(source)!r}; {near}")
        text = resources.files("unfool.specs").joinpath(f"{source}.yaml").read_text("utf-8")
    try:
        spec = strict_yaml.parse(text)
    except ValueError as error:
        raise SpecError(f"{source} is not a valid YAML spec: {error}") from error
    if not isinstance(spec, dict):
        raise SpecError(f"{source} must hold a table of parts (data, classifier, ...)")
    return spec


def _change(spec: Table, change: str) -> None:
    path, equals, value = change.partition("=")
    if not equals or not path:
        raise SpecError(f"--set takes path.to.key=value, not {change!r}")
    *parents, last = path.split(".")
    try:
        value = strict_yaml.parse_value(value, as_text=last in TEXT_KEYS)
    except ValueError as error:
        raise SpecError(f"--set {change}: {error}") from error
    node: Any = spec
    for step in parents:
        key = _key_or_index(change, step, node)
        if isinstance(node, dict):
            node.setdefault(key, {})
        if isinstance(node[key], str) and (isinstance(node, list) or kind_of(key)):
            node[key] = {"name": node[key]}  # a table, so that the bare name can have options
        node = node[key]
    node[_key_or_index(change, last, node)] = value


def _key_or_index(change: str, step: str, node: Any) -> Any:
    """Return the key of a table, or the index of a list, that `step` refers to in `node`."""
    if isinstance(node, dict):
        return step
    if not isinstance(node, list):
        raise SpecError(
            f"--set {change}: there is no {step!r} in {node!r}, which is a single value"
        )
    if not node:
        raise SpecError(
            f"--set {change}: the list is empty, so it has no {step!r}: set the whole list, as in "
            "attacks=[pgd]"
        )
    if not step.isdecimal() or int(step) >= len(node):
        raise SpecError(f"--set {change}: {step!r} must be a number from 0 to {len(node) - 1}")
    return int(step)


def _numbers(value: Any, as_text: bool = False) -> Any:
    """Convert text to numbers: fractions such as 8/255, and 1e-4, which YAML reads as text."""
    if isinstance(value, dict):
        return {key: _numbers(v, key in TEXT_KEYS) for key, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise SpecError(f"{value!r} contains a character that is not Unicode: replace it")
        # A shell does not expand `~` inside an argument.
        if value.startswith(("~/", "~\\")):
            return str(Path(value).expanduser())
        if as_text:
            return value
        if match := re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*/\s*(\d+(?:\.\d*)?)\s*", value):
            above, below = map(float, match.groups())
            if below == 0:
                raise SpecError(f"{value} divides by zero")
            return above / below
        if re.fullmatch(r"[+-]?\d+(?:\.\d*)?[eE][+-]?\d+", value):
            if math.isinf(float(value)):
                raise SpecError(f"{value} is too large a number: write a smaller one")
            return float(value)
    return value
