"""Validation of external values against types: an option of a spec, or a JSON file.

Pydantic checks the values; this module describes a mistake in one sentence: where it is, what the
value must be, and what it is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

T = TypeVar("T")
LONGEST = 60  # characters of a value in a message
MUST_BE = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "callable_type": "a function",
    "dataclass_type": "a table",
    "dict_type": "a table",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "above {gt}",
    "greater_than_equal": "{ge} or more",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_type": "a whole number",
    "is_instance_of": "of the class {class}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "mapping_type": "a table",
    "missing": "a table with {keys}",
    "none_required": "null",
    "path_type": "a path",
    "sequence_str": "a list",
    "string_type": "text",
    "too_long": "of length {max_length} or less",
    "too_short": "of length {min_length} or more",
    "tuple_type": "a list",
}


def convert(kind: Any, value: Any, where: str) -> Any:
    """Convert a value to a type: for example, a list to a tuple, or "3" to 3.

    Args:
        kind: The type.
        value: The value.
        where: Its name in messages.

    Raises:
        ValueError: The value does not fit the type.
    """
    try:
        adapter = _adapter(kind)
    except Exception:  # a type that pydantic cannot describe accepts any value
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise ValueError(explain(error, value, f"{where}.")) from error


def from_json(kind: type[T], text: str | bytes, where: str) -> T:
    """Parse and validate JSON: return a dataclass, or for a TypedDict the table as written.

    Values are not converted: "3" and true are not numbers, and 3.0 is not an integer.

    Args:
        kind: A dataclass or a TypedDict.
        text: The JSON.
        where: Its name in messages, such as the name of the file.

    Raises:
        ValueError: The text is not JSON, or does not fit.
    """
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error})") from error
    try:
        result = _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(explain(error, table, f"{where}: ")) from error
    return result if is_dataclass(kind) else table


def read_json(kind: type[T], path: Path) -> T:
    """Parse and validate a JSON file by `from_json`.

    Raises:
        ValueError: The file is not JSON, or does not fit; the message names the file.
        OSError: The file cannot be read.
    """
    return from_json(kind, path.read_bytes(), str(path))


def explain(error: ValidationError, value: Any, before: str) -> str:
    """Describe the first mistake in a value: "run.json: indices.3 must be a whole number, not 'x'".

    `before` names the whole value and ends with a period or a colon. A value that may have several
    types has several mistakes in one place, which are described together.
    """
    first, *others = error.errors(include_url=False)
    path, actual = _path_and_value(first["loc"], value)
    mistakes = [first] + [e for e in others if _path_and_value(e["loc"], value)[0] == path]
    absent = list(dict.fromkeys(repr(e["loc"][-1]) for e in mistakes if e["type"] == "missing"))
    requirements = list(dict.fromkeys(_must_be(mistake, absent) for mistake in mistakes))
    subject = before + ".".join(map(str, path)) if path else before.rstrip(".: ")
    return f"{subject} must be {' or '.join(requirements)}, not {truncated_repr(actual)}"


def truncated_repr(value: Any) -> str:
    """Return a value as text for a message, truncated if long."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _path_and_value(steps: Sequence[int | str], value: Any) -> tuple[list[int | str], Any]:
    """Return the keys that lead to a mistake, without pydantic's types, and the value there."""
    path: list[int | str] = []
    for step in steps:
        inside = isinstance(value, Mapping) and step in value
        if not inside and not (isinstance(value, list | tuple) and step in range(len(value))):
            continue
        path.append(step)
        value = value[step]  # pyright: ignore
    return path, value


def _must_be(mistake: Any, absent: Sequence[str]) -> str:
    """Describe what a value must be; `absent` are all required keys that it lacks."""
    context = {
        k: f"{v:.12g}" if isinstance(v, float) else v for k, v in mistake.get("ctx", {}).items()
    }
    if mistake["type"] == "value_error":
        return str(context["error"])
    if mistake["type"] == "missing" and isinstance(mistake["loc"][-1], int):
        return "a longer list"
    keys = f"the key{'s' * (len(absent) > 1)} {', '.join(absent)}"
    if context.get("class") in ("Sequence", "Mapping"):
        return "a list" if context["class"] == "Sequence" else "a table"
    return MUST_BE.get(mistake["type"], "of another kind").format(**context, keys=keys)


@lru_cache(maxsize=256)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a class that has its own configuration
        return TypeAdapter(kind)
