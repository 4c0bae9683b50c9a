"""Generate the reference pages from the code: API, options, commands, specs, and report.json."""

import importlib
import inspect
import json
import re
import types
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import TypeAdapter
from typing_extensions import get_type_hints, is_typeddict

from unfool.cli.main import app
from unfool.cli.menu import sections
from unfool.results.report_json import CertificationSummary, Summary
from unfool.spec import menu
from unfool.spec.describe import (
    Description,
    argument_texts,
    describe,
    describe_section,
    first_sentence,
)

PACKAGES = ("attacks", "data", "defenses", "diffusion", "models", "toy", "training")
REPORTS = (Summary, CertificationSummary)
WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    type(None): "null",
    Any: "any",
}


def write_pages(folder: Path) -> None:
    """Write all generated pages into `folder`; pages that would not change are left untouched."""
    pages = {
        **{f"api/{name}.md": api_page(f"unfool.{name}") for name in PACKAGES},
        "api/unfool.md": top_page(),
        **{f"options/{kind}.md": kind_page(kind) for kind, names in menu.MENU.items() if names},
        "options/sections.md": sections_page(),
        "commands.md": commands_page(),
        "specs.md": specs_page(),
        "report-json.md": report_page(),
        "report.schema.json": json.dumps(TypeAdapter(Summary).json_schema(), indent=1) + "\n",
    }
    for old_page in folder.rglob("*.md"):
        if str(old_page.relative_to(folder)) not in pages:
            old_page.unlink()
    for name, text in pages.items():
        page = folder / name
        page.parent.mkdir(parents=True, exist_ok=True)
        if not page.is_file() or page.read_text("utf-8") != text:
            page.write_text(text, "utf-8")


def api_page(package: str) -> str:
    """Make the page of a package: its public names, each documented by its docstring."""
    module = importlib.import_module(package)
    text = first_sentence(inspect.getdoc(module) or "")
    names = [name for name in dir(module) if not name.startswith("_")]
    return f"# {package}\n\n{escape(text)}\n\n" + "".join(document_name(package, n) for n in names)


def top_page() -> str:
    """Make the page of `unfool`: its own public names, and a table of those it shares with packages."""
    module = importlib.import_module("unfool")
    names = [n for n in dir(module) if not n.startswith("_") and n not in PACKAGES]
    home = {
        name: package
        for package in PACKAGES
        for name in dir(importlib.import_module(f"unfool.{package}"))
        if name in names
    }
    rows = [
        (f"{{py:obj}}`unfool.{name} <unfool.{home[name]}.{name}>`", summary(getattr(module, name)))
        for name in names
        if name in home
    ]
    own_names = [name for name in names if name not in home]
    own_names.sort(key=lambda name: not getattr(module, name).__module__.startswith("unfool.api"))
    own_names.sort(key=lambda name: inspect.isclass(getattr(module, name)))
    own = "".join(document_name("unfool", name) for name in own_names)
    return (
        "# unfool\n\nThese names are what most programs need: `import unfool`.\n\n"
        f"{own}## From the packages\n\nThese names are exported by `unfool`, too.\n\n"
        f"{table(('name', 'what it is'), rows)}"
    )


def document_name(package: str, name: str) -> str:
    """A heading and the Sphinx directive that documents a name."""
    member = getattr(importlib.import_module(package), name)
    kind = "class" if inspect.isclass(member) else "function" if callable(member) else "data"
    members = "   :members:\n" if kind == "class" else ""
    if getattr(member, "_is_protocol", False):
        members += "   :undoc-members:\n   :special-members: __call__, __len__, __getitem__\n"
    heading = f"## {name}\n\n"
    return f"{heading}```{{eval-rst}}\n.. auto{kind}:: {package}.{name}\n{members}```\n\n"


def summary(member: Any) -> str:
    """The first sentence of a docstring, as Markdown."""
    return escape(first_sentence(inspect.getdoc(member) or ""))


def kind_page(kind: str) -> str:
    """Make the page of a kind: its parts, with their options."""
    parts = "".join(describe_part(describe(kind, name)) for name in sorted(menu.MENU[kind]))
    return (
        f"# Options: {kind}\n\nThe parts of the kind `{kind}` ({escape(menu.MEANINGS[kind])}). "
        f"`unfool menu {kind}` lists these parts, and `unfool menu NAME` prints the options of one.\n\n"
        f"{parts}"
    )


def sections_page() -> str:
    """Make the page of the sections of a spec that are not parts, with their options."""
    text = "".join(
        describe_part(describe_section(name, *section))
        for name, named_sections in sections().items()
        for section in named_sections
    )
    return (
        f"# Options: sections\n\nThe sections of a spec that have no name, only options.\n\n{text}"
    )


def describe_part(part: Description) -> str:
    """Describe a part or a section, with a table of its options."""
    rows = [(f"`{o.name}`", escape(o.type), code(o.default), escape(o.text)) for o in part.options]
    options = table(("option", "type and range", "default", "what it means"), rows)
    return f"## {part.name}\n\n{escape(part.text)}\n\n{options or 'It takes no options.'}\n"


def commands_page() -> str:
    """Make the page with the `--help` of every command."""
    text = "".join(
        f"## {name}\n\n```text\n{help_text}\n```\n\n"
        for name, help_text in command_helps(typer.main.get_command(app), "unfool")
    )
    return f"# Commands\n\nWhat `--help` prints.\n\n{text}"


def command_helps(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, str]]:
    """Yield the full name and the help text of a command and of all its subcommands."""
    context = command.context_class(command, info_name=name.split()[-1], parent=parent)
    context.terminal_width = context.max_content_width = 88
    yield name, command.get_help(context).rstrip()
    for subcommand_name, subcommand in getattr(command, "commands", {}).items():
        yield from command_helps(subcommand, f"{name} {subcommand_name}", context)


def specs_page() -> str:
    """Make the page with the text of every shipped spec."""
    text = ""
    for name in menu.shipped():
        yaml = resources.files("unfool.specs").joinpath(f"{name}.yaml").read_text("utf-8")
        text += f"## {name}\n\n```yaml\n{yaml.rstrip()}\n```\n\n"
    return f"# Shipped specs\n\n`unfool evaluate NAME` (or `train`, `certify`) runs one.\n\n{text}"


def report_page() -> str:
    """Make the page that describes the content of `report.json`, type by type."""
    typed_dicts: list[Any] = []
    for root in REPORTS:
        collect_typed_dicts(root, typed_dicts)
    text = (
        "# report.json\n\nAn evaluation writes a [Summary](#summary), and a certification a "
        "[CertificationSummary](#certificationsummary). Shares and intervals lie in [0, 1]. "
        "The JSON Schema of an evaluation's file: {download}`report.schema.json`.\n\n"
    )
    for typed_dict in typed_dicts:
        texts: dict[str, str] = {}
        for base in reversed([*getattr(typed_dict, "__orig_bases__", ()), typed_dict]):
            texts = {**argument_texts(base), **texts}
        required = typed_dict.__required_keys__
        rows = [
            (f"`{name}`", type_text(hint), "always" if name in required else "sometimes",
             escape(texts.get(name, "")))
            for name, hint in get_type_hints(typed_dict).items()
        ]  # fmt: skip
        fields = table(("field", "type", "present", "what it means"), rows)
        text += f"## {typed_dict.__name__}\n\n{summary(typed_dict)}\n\n{fields}\n"
    return text


def collect_typed_dicts(hint: Any, typed_dicts: list[Any]) -> None:
    """Add all typed dicts that a type contains to `typed_dicts`, the outer ones first."""
    if is_typeddict(hint) and hint not in typed_dicts:
        typed_dicts.append(hint)
        for inner in get_type_hints(hint).values():
            collect_typed_dicts(inner, typed_dicts)
    for inner in get_args(hint):
        collect_typed_dicts(inner, typed_dicts)


def type_text(hint: Any) -> str:
    """Describe a type in words, with links to the typed dicts on the page."""
    origin, inside = get_origin(hint), get_args(hint)
    if is_typeddict(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    if origin is Literal:
        return " or ".join(f"`{word}`" for word in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(alternative) for alternative in inside))
    if isinstance(origin, type) and issubclass(origin, dict):
        return f"table of {type_text(inside[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of {type_text(inside[0])}"
    return WORDS.get(hint) or getattr(hint, "__name__", str(hint))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table; an empty string if there are no rows."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) if rows else ""


def code(text: str) -> str:
    """Format text as code in a table."""
    return f"`{text}`".replace("|", r"\|") if text else ""


def escape(text: str) -> str:
    """Turn plain text with backticks into Markdown, also for tables: all other markup is escaped."""
    parts = re.split(r"(`[^`]+`)", text)
    parts[::2] = [re.sub(r"([*<\[\]])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts).replace("|", r"\|")
