"""Sphinx configuration of the documentation site. `make docs` builds it into docs/_build/html."""

import os
import re
import sys
from dataclasses import is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402

import unfool  # noqa: E402

REPOSITORY = "https://github.com/unfool/unfool"
GALLERY = HERE.parent / "examples" / "gallery"

project = "unfool"
author = "The unfool authors"
copyright = author
version = release = unfool.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
smartquotes = False  # because two hyphens begin a command-line option
myst_heading_anchors = 4
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = "unfool"
html_static_path = ["_static"]
html_css_files = ["unfool.css"]
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}

toc_object_entries = False  # because each name has a heading already
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_custom_sections = [("Optional attributes", "params_style")]

if GALLERY.is_dir() and find_spec("sphinx_gallery"):
    extensions.append("sphinx_gallery.gen_gallery")
    sphinx_gallery_conf = {
        "examples_dirs": "../examples/gallery",
        "gallery_dirs": "gallery",
        "filename_pattern": r"\.py$",
        "download_all_examples": False,
        "abort_on_example_error": True,
    }
else:
    exclude_patterns.append("gallery")


def link_to_repository(app: Any, page: str, source: list[str]) -> None:
    """Point links that leave the folder docs/ to the repository."""
    folder = (HERE / page).parent

    def replaced(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / match[1]))
        if path.is_relative_to(HERE):
            return match[0]
        kind = "tree" if path.is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{path.relative_to(HERE.parent)}{match[2]})"

    source[0] = re.sub(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)", replaced, source[0])


def add_gallery(app: Any, page: str, source: list[str]) -> None:
    """Add the gallery to the landing page if it is built."""
    if page == "index" and "sphinx_gallery.gen_gallery" in extensions:
        link = "[Short examples with their figures](gallery/index.rst), to read, run, or download."
        source[0] = source[0].replace("## How to\n", f"## Gallery\n\n{link}\n\n## How to\n", 1)
        source[0] += "\n```{toctree}\n:hidden:\n:caption: Gallery\n\ngallery/index\n```\n"


def escape_docstring(
    app: Any, what: str, name: str, documented: Any, options: Any, lines: list[str]
) -> None:
    """Escape docstrings, which are plain text with backticks, for reStructuredText."""
    if is_dataclass(documented):
        lines[:] = ["Args:" if line == "Attributes:" else line for line in lines]
    for number, line in enumerate(lines):
        parts = re.split(r"(``[^`]+``|`[^`]+`)", line)
        parts[::2] = [re.sub(r"(\*|\||_(?!\w))", r"\\\1", part) for part in parts[::2]]
        parts[1::2] = [f"``{part.strip('`')}``" for part in parts[1::2]]
        lines[number] = "".join(parts)


def shorten_signature(
    app: Any,
    what: str,
    name: str,
    documented: Any,
    options: Any,
    arguments: str | None,
    returned: str | None,
) -> tuple[str, str | None] | None:
    """Drop the bounds of values from types: the docstring or the options' pages document them."""
    if arguments is None:
        return None
    if getattr(documented, "_is_protocol", False):
        return "", None
    bounds = r"Annotated\[(\w+)(?:, FieldInfo\((?:[^()\[\]]|\[[^\[\]]*\])*\))+\]"
    return re.sub(bounds, r"\1", arguments), returned


def setup(app: Any) -> None:
    """Write the generated pages, and connect the functions that change pages while they are read."""
    generate.write_pages(HERE / "reference")
    app.connect("source-read", link_to_repository)
    app.connect("source-read", add_gallery)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)  # before napoleon
