"""What the doctor says."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """Something the doctor saw: fine, worth knowing, or wrong."""

    mark: Literal["ok", "note", "FAIL"]
    what: str
