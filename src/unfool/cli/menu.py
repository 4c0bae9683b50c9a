"""The commands `menu`, which lists what a spec may contain, and `init`, which writes a new spec."""

import textwrap
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unfool.spec.describe import Description

DOWNLOADS = "downloads"


def menu(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A part (pgd), a kind (attack), a section (training), a spec (demo), or `downloads`."
        ),
    ] = None,
) -> None:
    """List what a spec may name; with NAME, print its options, its parts, or its text."""
    for line in menu_lines() if name is None else about(name):
        typer.echo(line)


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("unfool.yaml"),
) -> None:
    """Write a commented starter spec that runs without changes."""
    from unfool.errors import SpecError

    text = resources.files("unfool.cli").joinpath("starter.yaml").read_text("utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SpecError(f"{path} already exists: name another file") from None
    typer.echo(f"{path}\nrun it: unfool evaluate {path}")


def menu_lines() -> Iterator[str]:
    """Yield the lines of the menu: all names that a spec may use, with shipped specs and models."""
    from unfool.models.card import shipped
    from unfool.spec import menu as menus

    for kind, (meaning, names) in menus.menu().items():
        yield f"{kind:12}{meaning}\n{'':12}{', '.join(names) or '-'}"
    yield f"{'models':12}that are shipped, for `name: trained`\n{'':12}{', '.join(shipped())}"
    yield f"{'sections':12}that are not parts\n{'':12}{', '.join(sections())}"
    yield "specs"
    specs = menus.shipped()
    width = max(map(len, specs)) + 2
    for name, text in specs.items():
        yield f"{'':12}{name:{width}}{text}"
    yield f"{'downloads':12}published weights that --download fetches: unfool menu downloads"
    yield "to read more about any of them: unfool menu NAME"


def about(name: str) -> Iterator[str]:
    """Describe a name: the options of a part or section, the parts of a kind, or a spec's text.

    Raises:
        SpecError: No part, kind, section, or shipped spec has this name.
    """
    from unfool.errors import SpecError
    from unfool.spec import menu as menus
    from unfool.spec.describe import describe_section, kinds_with

    if name == DOWNLOADS:
        yield from download_lines()
        return
    kinds, specs = kinds_with(name), menus.shipped()
    lines = list(kind_lines(name)) if name in menus.MENU else []
    for kind in kinds:
        lines += [*([""] if lines else []), *part_lines(kind, name)]
    for section in sections().get(name, []):
        lines += [*([""] if lines else []), *option_lines(describe_section(name, *section))]
    if name in specs:
        text = resources.files("unfool.specs").joinpath(f"{name}.yaml").read_text("utf-8")
        lines += [*([""] if lines else []), text.rstrip()]
    if not lines:
        raise SpecError(f"there is no part, kind, section or spec {name!r}; {_near(name)}")
    if name == "attack" or "attack" in kinds:
        lines.append("besides its options, an attack takes a view and more: unfool menu attacks")
    yield from lines


def sections() -> dict[str, list[tuple[Any, Mapping[str, Any]]]]:
    """Return the sections of specs that are not parts: name to their types and defaults."""
    from unfool.evaluation import spec as evaluation
    from unfool.training import spec as training

    result: dict[str, list[tuple[Any, Mapping[str, Any]]]] = {}
    for option_sections in (evaluation.OPTION_SECTIONS, training.OPTION_SECTIONS):
        for name, section in option_sections.items():
            result.setdefault(name, []).append(section)
    return dict(sorted(result.items()))


def _near(name: str) -> str:
    """Return half a sentence that suggests the closest name, and says what it is."""
    from unfool.spec import menu as menus
    from unfool.spec.describe import kinds_with

    what = {DOWNLOADS: "published weights"} | dict.fromkeys(menus.shipped(), "spec")
    what |= {
        word: " and ".join(kinds_with(word)) for names in menus.MENU.values() for word in names
    }
    what |= dict.fromkeys(sections(), "section") | dict.fromkeys(menus.MENU, "kind of parts")
    of_python = {"Purified": "purifier"}  # Python names to names of the menu
    for names in menus.MENU.values():
        of_python |= {target.partition(":")[2]: word for word, target in names.items()}
    near = [of_python[name]] if name in of_python else get_close_matches(name.lower(), what, 1)
    if near:
        return f"did you mean {near[0]!r} ({what[near[0]]})?"
    return "choose from what `unfool menu` prints"


def download_lines() -> Iterator[str]:
    """List the published files of weights, their folder, and which of them are in it."""
    from unfool.runtime.downloads import cache_folder
    from unfool.runtime.published_files import FILES

    yield (
        f"published weights; --download fetches those that a spec names into {cache_folder()} "
        "(UNFOOL_CACHE)"
    )
    for name, remote in FILES.items():
        status = "there" if (cache_folder() / name).is_file() else (
            "" if remote.url else "fetch it by hand"
        )  # fmt: skip
        facts = ", ".join(filter(None, (f"{remote.megabytes:,} MB", remote.license, status)))
        yield f"  {name:46}{facts}; {remote.page}"


def kind_lines(kind: str) -> Iterator[str]:
    """List the parts of a kind, each with its description."""
    from unfool.spec import menu as menus
    from unfool.spec.describe import describe

    yield f"{kind}: {menus.MEANINGS[kind]}"
    for name in sorted(menus.MENU[kind]):
        yield _wrapped(f"  {name:28}", describe(kind, name).text)
    yield f"  {'module:attribute':28}your own"


def part_lines(kind: str, name: str) -> Iterator[str]:
    """List the options of a part, with their types, ranges, and defaults."""
    from unfool.spec.describe import describe

    yield from option_lines(describe(kind, name))


def option_lines(part: "Description") -> Iterator[str]:
    """List the options of a described part or section."""
    from unfool.spec.describe import REQUIRED

    kind, name = part.kind, part.name
    yield _wrapped(f"{kind} {name}: ", part.text, 2)
    for option in part.options:
        default = REQUIRED if option.default == REQUIRED else f"default {option.default}"
        yield f"  {option.name}: {option.type}; {default}"
        if option.text:
            yield _wrapped("      ", option.text)
    if not part.options:
        yield "  It takes no options."


def _wrapped(first: str, text: str, indent: int | None = None) -> str:
    after = " " * (len(first) if indent is None else indent)
    return textwrap.fill(text, 100, initial_indent=first, subsequent_indent=after)
