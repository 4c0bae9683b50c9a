"""Specs: a YAML file to the objects it names, with mistakes told in the user's words.

A part of a spec is a table with a `name` (see `menu`) and options, or the bare name. Options are
checked against the signature of what is named, by pydantic, before anything heavy is loaded.
"""

import hashlib
import importlib.util
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from defuse.files import ADAPTER, files_in
from defuse.menu import (
    CALL,
    GIVEN,
    PLAIN,
    SpecError,
    choices,
    find,
    hint,
    is_itself,
    is_plain,
    kind_of,
    makes_plain,
    shipped,
)

Table = dict[str, Any]
# of which the contents count, not the place
FILES = ("weights", "adapter", "path", "prompts", "start")
ASIDE = ("folder", "download", "pictures", "lpips")  # no part of what a spec asks
# never numbers
WORDS = ("name", "label", "view", "weights", "adapter", "path", "folder", "device", "start")


def load(source: str | Path | Table, changes: Sequence[str] = ()) -> Table:
    """Read a spec and apply `path.to.key=value` changes to it.

    Args:
        source: The name of a shipped spec, the path of a YAML file, or a table.
        changes: What to change; values are YAML, and a number in a path counts into a list.

    Raises:
        SpecError: There is no such spec, it is no YAML table, or a change does not fit.
    """
    spec = json.loads(json.dumps(source)) if isinstance(source, Mapping) else _read(source)
    for change in changes:
        _change(spec, change)
    return _numbers(spec)


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
    called = is_itself(kind, factory) or is_plain(kind, factory)
    filled_in = (*GIVEN.get(kind, ()), *(CALL.get(kind, ()) if called else ()))
    signature = inspect.signature(factory).parameters
    parameters = {key: p for key, p in signature.items() if key not in filled_in}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {k: p for k, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for key in options:
        if key not in named and not open_ended:
            takes = ", ".join(named) or "no options"
            raise SpecError(
                f"{kind} {table['name']}: there is no option {key!r}; {hint(key, named, takes)}"
            )
    hints = _hints(factory)
    filled: Table = {"name": table["name"]}
    for key, parameter in named.items():
        inner = kind_of(key)
        if inner and options.get(key) is not None:
            filled[key] = check(inner, options[key])
        elif key in options:
            filled[key] = _fit(f"{kind}.{key}", hints.get(key, Any), options[key])
        elif parameter.default is parameter.empty:
            if key in CALL.get(kind, ()):  # of a function that is to be called with others
                ways = [CALL[kind], *([PLAIN[kind][0]] if kind in PLAIN else [])]
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


def check_data(value: Any, folder: str | None) -> Table:
    """A `data` part, checked, with the folder that the user named where it needs one.

    Raises:
        SpecError: As `check`; or it needs a folder and none was named.
    """
    table = part("data", value)
    takes = inspect.signature(find("data", table["name"])).parameters
    if "folder" in takes and "folder" not in table:
        if not folder:
            raise SpecError(
                f"data {table['name']} is read from a folder: name it by --data FOLDER or in the "
                "environment as DEFUSE_DATA"
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
    if is_itself(kind, factory):
        return partial(factory, **options)
    if is_plain(kind, factory):
        return find(kind, PLAIN[kind][1])(partial(factory, **options))
    try:
        made = factory(**{k: v for k, v in given.items() if k in known}, **options)
    except (ValueError, OSError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{kind} {table['name']}: {error}") from error
    return find(kind, PLAIN[kind][1])(made) if makes_plain(kind, made) else made


def fields(name: str, values: Any, kinds: Mapping[str, tuple[Any, Any]]) -> Table:
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
    model = create_model(name, __config__=ConfigDict(extra="forbid"), **kinds)  # pyright: ignore
    try:
        return model(**values).model_dump()
    except ValidationError as error:
        raise _told(name, error, 1) from error


def identity(spec: Table) -> str:
    """A name for what `spec` asks, the same on every machine, for every batch size and number of images.

    `machine` is no part of it, nor of how many images it is asked, nor where a file lies: of
    `weights`, `start`, `adapter`, `path` and `prompts` only what is in them counts, and of data its
    name and options.
    """
    asked = _by_contents({key: value for key, value in spec.items() if key != "machine"})
    for section in ("evaluation", "certification"):
        if section in asked:
            asked[section] = {k: v for k, v in asked[section].items() if k != "images"}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:10]


def code(spec: Table) -> str:
    """A hash of the source of every module of one's own that a spec names."""
    digest = hashlib.sha256()
    for module in sorted(set(_modules(spec))):
        found = importlib.util.find_spec(module)
        if found is not None and found.origin and Path(found.origin).is_file():
            digest.update(Path(found.origin).read_bytes())
    return digest.hexdigest()


def takes(kind: str, table: Table) -> list[str]:
    """The names of the arguments of what a part names, and of such parts inside it."""
    names = list(inspect.signature(find(kind, table["name"])).parameters)
    return names + (takes(kind, table[kind]) if isinstance(table.get(kind), dict) else [])


def _read(source: str | Path) -> Table:
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = "it is no text" if isinstance(error, ValueError) else str(error.strerror).lower()
            raise SpecError(
                f"cannot read the spec {path} ({why}): name a YAML file that is there, from "
                f"{Path.cwd()}, or a shipped spec (`defuse menu`)"
            ) from error
    else:
        names = shipped()
        if str(source) not in names:
            listed = ", ".join(names)
            raise SpecError(f"there is no spec {str(source)!r}; {hint(str(source), names, listed)}")
        text = resources.files("defuse.specs").joinpath(f"{source}.yaml").read_text("utf-8")
    try:
        spec = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(spec, dict):
        raise SpecError(f"{source} must hold a table of parts (data, classifier, ...)")
    return spec


def _change(spec: Table, change: str) -> None:
    path, equals, value = change.partition("=")
    if not equals or not path:
        raise SpecError(f"--set takes path.to.key=value, not {change!r}")
    try:
        value = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {change}: {' '.join(str(error).split())}") from error
    *parents, last = path.split(".")
    place: Any = spec
    for step in parents:
        at = _at(change, step, place)
        if isinstance(place, dict):
            place.setdefault(at, {})
        if isinstance(place[at], str) and (isinstance(place, list) or kind_of(at)):
            place[at] = {"name": place[at]}  # a bare name gets options
        place = place[at]
    place[_at(change, last, place)] = value


def _at(change: str, step: str, place: Any) -> Any:
    """What `step` is in `place`: a key of a table, or a number of a list."""
    if isinstance(place, dict):
        return step
    if not isinstance(place, list):
        raise SpecError(f"--set {change}: {step!r} is sought in {place!r}, which has no parts")
    if not step.isdigit() or int(step) >= len(place):
        raise SpecError(f"--set {change}: {step!r} must be a number from 0 to {len(place) - 1}")
    return int(step)


def _numbers(value: Any) -> Any:
    """Fractions such as 8/255, and numbers such as 1e-4 that YAML takes for text, as numbers."""
    if isinstance(value, dict):
        return {key: v if key in WORDS else _numbers(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, str):
        if match := re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*/\s*(\d+(?:\.\d*)?)\s*", value):
            above, below = map(float, match.groups())
            if below == 0:
                raise SpecError(f"{value} divides by zero")
            return above / below
        if re.fullmatch(r"[+-]?\d+(?:\.\d*)?[eE][+-]?\d+", value):
            return float(value)
    return value


def _fit(where: str, kind: Any, value: Any) -> Any:
    if kind is inspect.Parameter.empty:
        return value
    try:
        fitted = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except TypeError:
        fitted = TypeAdapter(kind)
    except Exception:  # a type that pydantic cannot describe takes what it is given
        return value
    try:
        result = fitted.validate_python(value)
    except ValidationError as error:
        raise _told(where, error) from error
    return str(result) if isinstance(result, Path) else result


def _told(where: str, error: ValidationError, depth: int = 0) -> SpecError:
    """The first mistake, in words; `depth` steps of its path come before the types that may be."""
    first, *others = error.errors()
    path, said, given = first["loc"], [first["msg"]], first.get("input")
    beside = [e["msg"] for e in others if e["loc"][:-1] == path[:-1] and e.get("input") == given]
    if beside and len(path) > depth:  # several types may be, and the last step names one of them
        path, said = path[:-1], said + beside
    inside = ".".join(str(step) for step in path if not str(step).endswith("]"))
    place = f"{where}.{inside}" if inside and inside not in where else where
    words = [text.removeprefix("Value error, ") for text in said]
    told = ", or ".join(text[0].lower() + text[1:] for text in words)
    return SpecError(f"{place}: {told}, not {given!r}")


def _by_contents(value: Any) -> Any:
    if isinstance(value, list):
        return [_by_contents(v) for v in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _digest(v) if key in FILES and isinstance(v, str) else _by_contents(v)
        for key, v in value.items()
        if key not in ASIDE
    }


def _digest(file: str) -> str:
    """The sha256 of a file, of weights with their card, or of what is read of a diffusers folder.

    Weights with a card lie in a folder, or are those of a shipped model.
    """
    home = Path(file)
    if home.is_file():
        return hashlib.sha256(home.read_bytes()).hexdigest()
    if (parts := files_in(home)) and not (home / "card.json").is_file():
        digest = hashlib.sha256()
        for part in parts:
            stat = part.stat()
            told = _sha256(part, stat.st_size, stat.st_mtime_ns)
            digest.update(f"{part.relative_to(home).as_posix()} {told}\n".encode())
        return digest.hexdigest()
    for folder in (home, Path(str(resources.files("defuse.weights").joinpath(file)))):
        card = folder / "card.json"
        for weights in (folder / "model.safetensors", folder / ADAPTER):
            if weights.is_file() and card.is_file():
                return hashlib.sha256(weights.read_bytes() + card.read_bytes()).hexdigest()
    return file


@lru_cache
def _sha256(file: Path, size: int, changed: int) -> str:
    """Of a large file, computed again only if its size or its time changed."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _modules(value: Any) -> Iterator[str]:
    """The modules that a spec names as `module:attribute`."""
    if isinstance(value, list):
        for v in value:
            yield from _modules(v)
    elif isinstance(value, dict):
        for key, v in value.items():
            if key in ("name", "view") and isinstance(v, str) and ":" in v:
                yield v.partition(":")[0]
            else:
                yield from _modules(v)


def _hints(factory: Any) -> Table:
    try:
        return get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (NameError, TypeError, AttributeError):
        return {}


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | list | tuple | None)
