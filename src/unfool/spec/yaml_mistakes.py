"""Explains why a text is not valid YAML, in one sentence with the line and column."""

import re

import yaml
from yaml.reader import ReaderError

# patterns of PyYAML's messages: their explanations
_EXPLANATIONS = {
    r"mapping values are not allowed": (
        "there is a `:` where no option can begin; put text with `: ` in quotes, and give the "
        "options of one table the same indentation"
    ),
    r"found character '\\t'": "there is a tab; indent with spaces",
    r"found character (?P<what>'.+') that cannot": "a value cannot begin with {what}; put it in quotes",
    r"expected ',' or '\]'": "a list that began with `[` is not closed, or lacks a comma",
    r"expected ',' or '}'": "a table that began with `{{` is not closed, or lacks a comma",
    r"found unexpected (end of stream|document separator)": "a quote is not closed",
    r"could not find expected ':'": "a line is not `option: value`",
    r"expected <block end>": (
        "this line does not belong to the table or list before it; give the options of one table "
        "the same indentation"
    ),
    r"found undefined alias (?P<what>'.+')": (
        "the alias {what} is not defined; put text that begins with `*` in quotes"
    ),
    r"second occurrence": "an anchor (`&name`) is defined twice; rename one",
    r"found unknown escape character (?P<what>'.+')|expected escape sequence": (
        "a backslash in double quotes begins no escape sequence of YAML; use single quotes"
    ),
    r"determine a constructor for the tag (?P<what>'.+')|found undefined tag handle (?P<handle>'.+')": (
        "the tag {what} is not known; put text that begins with `!` in quotes"
    ),
    r"found another document": "a second document begins, and a spec is a single one; leave out `---`",
    r"expected the node content|expected '<document start>'": "a value is missing; write one, or null",
}


def explain(error: yaml.YAMLError) -> str:
    """Describe a mistake, for example "line 3, column 5: there is a tab; indent with spaces".

    The messages of `strict_yaml` are already such sentences and are returned unchanged.
    """
    if isinstance(error, ReaderError):
        sign = (
            f"U+{ord(error.character) if isinstance(error.character, str) else error.character:04x}"
        )
        return (
            f"character {error.position + 1}: text must not contain the character {sign}; leave it "
            "out"
        )
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    mark = error.problem_mark or error.context_mark
    position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return position + _meaning(error.problem or "")


def _meaning(problem: str) -> str:
    for pattern, meaning in _EXPLANATIONS.items():
        if match := re.search(pattern, problem):
            words = match.groupdict()
            return meaning.format(what=words.get("what") or words.get("handle"))
    return "this is not valid YAML; put text in quotes, or write it another way"
