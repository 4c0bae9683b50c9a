"""A finding of `unfool doctor`."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """An observation of the doctor: fine (ok), worth knowing (note), or wrong (FAIL)."""

    mark: Literal["ok", "note", "FAIL"]
    what: str
