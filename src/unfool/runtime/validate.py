"""What comes from outside, checked against a type: an option of a spec, or a file of JSON.

pydantic does the checking; what is wrong is said here, in one sentence with the place, what it must
be, and what it is.
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


def fitted(kind: Any, value: Any, where: str) -> Any:
    """A value as a type has it: a list as a tuple, "3" as 3.

    Args:
        kind: The type.
        value: What should fit it.
        where: What a message calls the value.

    Raises:
        ValueError: It does not fit.
    """
    try:
        adapter = _adapter(kind)
    except Exception:  # a type that pydantic cannot describe takes what it is given
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise ValueError(explain(error, value, f"{where}.")) from error


def from_json(kind: type[T], text: str | bytes, where: str) -> T:
    """What JSON holds: a dataclass made of it, or a table just as it was written.

    No value is taken for one of another type: neither "3" for a number, nor true, nor 3.0 for 3.

    Args:
        kind: A dataclass or a TypedDict.
        text: The JSON.
        where: What a message calls it, such as the name of the file.

    Raises:
        ValueError: It is not JSON, or does not fit.
    """
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error})") from error
    try:
        made = _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(explain(error, table, f"{where}: ")) from error
    return made if is_dataclass(kind) else table


def read_json(kind: type[T], path: Path) -> T:
    """What a file of JSON holds (`from_json`).

    Raises:
        ValueError: It is not JSON, or does not fit; the message names the file.
        OSError: It cannot be read.
    """
    return from_json(kind, path.read_bytes(), str(path))


def explain(error: ValidationError, value: Any, before: str) -> str:
    """The first mistake in a value: "run.json: indices.3 must be a whole number, not 'x'".

    Before the place stands what names the whole, with a full stop or a colon at its end. A value
    that may be of several types has several mistakes in one place, which are told together.
    """
    first, *others = error.errors(include_url=False)
    place, given = _place(first["loc"], value)
    kept = [first] + [e for e in others if _place(e["loc"], value)[0] == place]
    absent = list(dict.fromkeys(repr(e["loc"][-1]) for e in kept if e["type"] == "missing"))
    told = list(dict.fromkeys(_must_be(mistake, absent) for mistake in kept))
    subject = before + ".".join(map(str, place)) if place else before.rstrip(".: ")
    return f"{subject} must be {' or '.join(told)}, not {shown(given)}"


def shown(value: Any) -> str:
    """A value as a message shows it, cut short."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _place(steps: Sequence[int | str], value: Any) -> tuple[list[int | str], Any]:
    """The keys that lead to a mistake, without the types that pydantic puts between them."""
    place: list[int | str] = []
    for step in steps:
        inside = isinstance(value, Mapping) and step in value
        if not inside and not (isinstance(value, list | tuple) and step in range(len(value))):
            continue
        place.append(step)
        value = value[step]  # pyright: ignore
    return place, value


def _must_be(mistake: Any, absent: Sequence[str]) -> str:
    """What a value must be; `absent` are all the keys that it should have and does not."""
    told = {
        k: f"{v:.12g}" if isinstance(v, float) else v for k, v in mistake.get("ctx", {}).items()
    }
    if mistake["type"] == "value_error":
        return str(told["error"])
    if mistake["type"] == "missing" and isinstance(mistake["loc"][-1], int):
        return "a longer list"
    keys = f"the key{'s' * (len(absent) > 1)} {', '.join(absent)}"
    if told.get("class") in ("Sequence", "Mapping"):
        return "a list" if told["class"] == "Sequence" else "a table"
    return MUST_BE.get(mistake["type"], "of another kind").format(**told, keys=keys)


@lru_cache(maxsize=256)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a class that has its own configuration
        return TypeAdapter(kind)
