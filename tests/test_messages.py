"""All messages of the package on one page, docs/_build/messages.txt, and the rules they keep."""

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


class Message(NamedTuple):
    """A text that the package may print: where it is, the call that it is given to, and itself."""

    module: str
    line: int
    call: str
    text: str


def text_of(node: ast.AST) -> str | None:
    """The text of a literal, holes as `{expression}`; of two that are chosen from, `A / B`."""
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
    """The texts under a node that are no docstrings, each with its line and the call around it."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    found = text_of(node)
    if found is not None:
        yield node.lineno, call, found  # pyright: ignore[reportAttributeAccessIssue]
        return
    if isinstance(node, ast.Call):
        call = ast.unparse(node.func)
    if isinstance(node, ast.Raise) and node.exc is not None:
        yield from ((line, f"raise {inner}", text) for line, inner, text in texts(node.exc, call))
        return
    for child in ast.iter_child_nodes(node):
        yield from texts(child, call)


def messages_of(path: Path) -> Iterator[Message]:
    """The messages of a module, in the order of its lines."""
    module = str(path.relative_to(SOURCE))
    for line, call, text in sorted(texts(ast.parse(path.read_text("utf-8")))):
        words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\{[^}]*\}", "", text))
        if call.startswith("raise ") or len(words) >= WORDS:
            yield Message(module, line, call, text)
