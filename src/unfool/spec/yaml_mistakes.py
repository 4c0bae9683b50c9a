"""What is wrong with a text that is not YAML, in one sentence with its line and column."""

import re

import yaml
from yaml.reader import ReaderError

# what PyYAML says (a pattern): what that means
_MEANS = {
    r"mapping values are not allowed": "a `:` stands where no option can begin; put text with `: ` in "
    "quotes, and give the options of one table the same indentation",
    r"found character '\\t'": "there is a tab; indent with spaces",
    r"found character (?P<what>'.+') that cannot": "a value cannot begin with {what}; put it in quotes",
    r"expected ',' or '\]'": "a list that began with `[` is not closed, or lacks a comma",
    r"expected ',' or '}'": "a table that began with `{{` is not closed, or lacks a comma",
    r"found unexpected (end of stream|document separator)": "a quote is not closed",
    r"could not find expected ':'": "a line is not `option: value`",
    r"expected <block end>": "this does not belong to the table or list before it; give the options of "
    "one table the same indentation",
    r"found undefined alias (?P<what>'.+')": "the alias {what} names nothing; put a text that begins "
    "with `*` in quotes",
    r"second occurrence": "an anchor (`&name`) stands twice; rename one",
    r"found unknown escape character (?P<what>'.+')|expected escape sequence": "a backslash in double "
    "quotes begins no sign that YAML knows; use single quotes",
    r"determine a constructor for the tag (?P<what>'.+')|found undefined tag handle (?P<handle>'.+')": (
        "the tag {what} is not known; put a text that begins with `!` in quotes"
    ),
    r"found another document": "a second document begins; a spec is one, so leave out `---`",
    r"expected the node content|expected '<document start>'": "there is no value where one must stand",
}


def explain(error: yaml.YAMLError) -> str:
    """One sentence on a mistake, such as "line 3, column 5: there is a tab; indent with spaces".

    Mistakes that `strict_yaml` found have a sentence of their own, which is kept.
    """
    if isinstance(error, ReaderError):
        sign = (
            f"U+{ord(error.character) if isinstance(error.character, str) else error.character:04x}"
        )
        return f"character {error.position + 1}: text may not hold the sign {sign}; leave it out"
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return place + _meaning(error.problem or "")


def _meaning(problem: str) -> str:
    for pattern, meaning in _MEANS.items():
        if found := re.search(pattern, problem):
            words = found.groupdict()
            return meaning.format(what=words.get("what") or words.get("handle"))
    return "this is not written as YAML has it; put text in quotes, or write it another way"
