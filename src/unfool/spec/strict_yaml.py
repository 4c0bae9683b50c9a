"""A strict YAML reader: it refuses values that PyYAML would silently drop or change.

YAML forbids a key that occurs twice in a table, but PyYAML keeps the last one. PyYAML also reads
`010` as 8 and `1:30` as 90. Size and depth are limited, so that a malicious file cannot hang the
command.
"""

import math
import re
from typing import Any

import yaml

from unfool.spec.yaml_mistakes import explain

LONGEST = 256 * 1024  # characters of a spec
DEEPEST = 40  # nested tables and lists
LARGEST = 50_000  # values, with aliases written out
DIGITS = 40  # characters of a number


def parse(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: The text is not YAML, has duplicate keys or ambiguous values, or is too large.
    """
    return _value(text)[0]


def parse_value(text: str, as_text: bool = False) -> Any:
    """Return the value of a change on the command line, in which `#` does not begin a comment.

    Args:
        text: The YAML of one value.
        as_text: Return an unquoted word or number as text, unless it is null.

    Raises:
        ValueError: As `parse`; or the text is empty, or ends in a comment.
    """
    if not text.strip():
        raise ValueError("it has no value after `=`: write null to leave the part out")
    value, node = _value(text, as_text)
    rest = text[node.end_mark.index :].strip() if node is not None else text
    if rest and _is_plain(node):
        return text.strip()
    if rest:
        raise ValueError(f"{rest!r} after the value would be a comment: leave it out, or quote it")
    return value


def _is_plain(node: yaml.Node | None) -> bool:
    """Return whether a value is a word or number without quotes."""
    return isinstance(node, yaml.ScalarNode) and node.style is None


def _value(text: str, as_text: bool = False) -> tuple[Any, yaml.Node | None]:
    if len(text) > LONGEST:
        raise ValueError(f"it has more than {LONGEST} characters, the most that a spec may have")
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # the text contains a forbidden character
        raise ValueError(explain(error)) from error
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        if as_text and _is_plain(node) and not node.tag.endswith(":null"):
            return node.value, node
        size, depth = _extent(node, {}, set())
        if size > LARGEST:
            raise ValueError(
                f"it holds more than {LARGEST} values (aliases count every time), the most that a "
                "spec may hold"
            )
        if depth > DEEPEST:
            raise ValueError(f"it nests tables and lists more than {DEEPEST} deep")
        return _construct(loader, node), node
    except yaml.YAMLError as error:
        raise ValueError(explain(error)) from error
    except RecursionError as error:
        raise ValueError(f"it nests tables and lists more than {DEEPEST} deep") from error
    finally:
        loader.dispose()


def _construct(loader: "_Loader", node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # raised by PyYAML, for example at `!!bool maybe`
        raise ValueError(
            "a value does not fit the tag (`!!...`) before it: leave the tag out"
        ) from error


def _extent(node: yaml.Node, known: dict[int, tuple[int, int]], above: set[int]) -> tuple[int, int]:
    """Return the number of values in a node, with aliases written out, and their depth."""
    if id(node) in above:
        raise ValueError(
            f"the alias in line {node.start_mark.line + 1} refers to a part that contains it: "
            "write the part out"
        )
    if id(node) not in known:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        inner = [_extent(child, known, above | {id(node)}) for child in children]
        size = 1 + sum(size for size, _ in inner)
        known[id(node)] = size, 1 + max((depth for _, depth in inner), default=0)
    return known[id(node)]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without its silent guesses."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"it nests tables and lists more than {DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"the key in line {line} must be text")
            if not key.tag.endswith((":str", ":merge", ":value")):
                raise yaml.YAMLError(
                    f"YAML does not read the key {key.value!r} in line {line} as text: put it in "
                    "quotes"
                )
            if key.value in seen:
                raise yaml.YAMLError(
                    f"{key.value!r} occurs twice in one table (the second time in line {line}): "
                    "leave one out"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def number(self, node: yaml.ScalarNode) -> float:
        text, line = node.value, node.start_mark.line + 1
        if len(text) > DIGITS:
            raise yaml.YAMLError(f"the number in line {line} has more than {DIGITS} digits")
        if ":" in text or re.fullmatch(r"[-+]?0[0-9_]+", text):
            base = 60 if ":" in text else 8
            raise yaml.YAMLError(
                f"YAML reads {text} in line {line} as a number in base {base}: write it in "
                "decimal, or put it in quotes if it is text"
            )
        is_integer = node.tag.endswith(":int")
        value = self.construct_yaml_int(node) if is_integer else self.construct_yaml_float(node)
        if not math.isfinite(value):
            raise yaml.YAMLError(f"{text} in line {line} must be a finite number")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)
_Loader.yaml_implicit_resolvers = {  # dates remain text
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
