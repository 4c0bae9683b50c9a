"""Write all messages of the package to docs/_build/messages.txt, and check their style.

Read that page after you change messages: no rule here can tell whether a sentence is clear.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "unfool"
PAGE = ROOT / "docs" / "_build" / "messages.txt"
WORDS = 4  # a text of fewer words is a name, a key, or a label
ERROR = "raise "  # the beginning of `Message.call` for the message of an error
HELP = ("typer.Option", "typer.Argument")
# Words that the style guide in CONTRIBUTING.md replaces by better ones, and British spelling.
AVOIDED = {
    r"(is|are|was|be) told|told (it|him|of)": "given, has, or knows",
    r"anew": "again",
    r"ways? back": "reverse process",
    r"beside": "next to, besides, or compared with",
    r"he|his|him": "they",
    r"pictures?": "image, or image file",
    r"(?<!there )(is|are) no(?! longer)(?= \w)": "is not a",
    r", say": "such as",
    r"climbs?": "follows, or maximizes",
    r"mends?": "repair, or fix",
    r"put (that|it) right": "fix",
    r"\w*(olour|ehaviour|efence|gre[y]|entre\b)\w*": "American spelling",
    r"\w+(normalis|optimis|initialis|randomis|recognis)\w*|normalis\w*": "American spelling",
}


class Message(NamedTuple):
    """A text that the package may print, with its place and the call that receives it."""

    module: str
    line: int
    call: str
    text: str


def text_of(node: ast.AST) -> str | None:
    """The text of a string literal or a sum with one, with `{expression}` as in an f-string; or None."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [
            p.value if isinstance(p, ast.Constant) else f"{{{ast.unparse(p.value)}}}"
            for p in node.values
            if isinstance(p, ast.Constant | ast.FormattedValue)
        ]
        return "".join(map(str, parts))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left), text_of(node.right)
        if left is None and right is None:
            return None
        return "".join(
            text if text is not None else f"{{{ast.unparse(side)}}}"
            for text, side in ((left, node.left), (right, node.right))
        )
    return None


def texts(node: ast.AST, call: str = "") -> Iterator[tuple[int, str, str]]:
    """Yield the texts below a node except docstrings, each with its line and the call around it."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    found = text_of(node)
    if found is not None:
        yield node.lineno, call, found  # pyright: ignore[reportAttributeAccessIssue]
        return
    if isinstance(node, ast.Call):
        call = ast.unparse(node.func)
    if isinstance(node, ast.Raise) and node.exc is not None:
        yield from ((line, ERROR + inner, text) for line, inner, text in texts(node.exc, call))
        return
    for child in ast.iter_child_nodes(node):
        yield from texts(child, call)


def messages_of(path: Path) -> Iterator[Message]:
    """Yield the messages of a module in the order of their lines."""
    module = str(path.relative_to(SOURCE))
    for line, call, text in sorted(texts(ast.parse(path.read_text("utf-8")))):
        words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\{[^}]*\}", "", text))
        if call.startswith(ERROR) or len(words) >= WORDS:
            yield Message(module, line, call, text)


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    """All messages, which are also written to the page."""
    found = [message for path in sorted(SOURCE.rglob("*.py")) for message in messages_of(path)]
    lines, module = [], ""
    for message in found:
        if message.module != module:
            module = message.module
            lines.append(f"\n{module}")
        lines.append(f"{message.line:4} {message.call or '-'}: {message.text}")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(lines).lstrip() + "\n", "utf-8")
    return found


def broken(messages: list[Message], pattern: str) -> list[str]:
    """The messages, with their places, that match a pattern outside code, names, tags, and `{}`."""
    plain = [(m, re.sub(r"`[^`]*`|\{[^}]*\}|<[^>]*>", "_", m.text)) for m in messages]
    plain = [(m, re.sub(r"\S*[_/.]\S+", "_", text)) for m, text in plain]
    return [f"{m.module}:{m.line}: {m.text}" for m, text in plain if re.search(pattern, text)]


def test_page_has_messages_of_every_kind(messages):
    page = PAGE.read_text("utf-8")
    for kind in ("raise ValueError", "raise SpecError", "Doubt", "Finding", "print", *HELP):
        assert f" {kind}: " in page
    assert len(page.splitlines()) > len(messages) > 1000


@pytest.mark.parametrize("avoided", AVOIDED)
def test_messages_avoid_nonstandard_words(messages, avoided):
    assert not broken(messages, rf"(?i)\b({avoided})(?!\w)"), AVOIDED[avoided]


def test_messages_have_single_spaces_between_words(messages):
    assert not broken(messages, r"[\w,;:]  +\w")


def test_percentages_are_written_with_a_space():
    """Code, messages, and docs write percentages with a space, as `statistics.percent` does."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *SOURCE.rglob("*.py")]
    for path in pages:
        if "_build" not in path.parts:
            text = path.read_text("utf-8").replace("94% on CIFAR-10", "")  # a paper's title
            tight = re.search(r"\d%(?!\w)|:\.\d%\}", text)
            assert not tight, f"{path.relative_to(ROOT)}: {tight[0] if tight else ''}"


def test_errors_begin_in_lowercase_and_end_without_a_period(messages):
    errors = [message for message in messages if message.call.startswith(ERROR)]
    assert not broken(
        errors, r"^(?!LPIPS|Ray\b|RANK|CIFAR|LoRA|YAML|AutoAttack|RobustBench|Every)[A-Z]"
    )
    assert not broken(errors, r"[a-z][.!?]$")


def test_help_texts_are_full_sentences(messages):
    helps = [m for m in messages if m.call in HELP and not re.fullmatch("[A-Z._=-]+", m.text)]
    assert not broken(helps, r"^[^A-Z_]|^(Of|From|Whether) |[a-z)]$")
