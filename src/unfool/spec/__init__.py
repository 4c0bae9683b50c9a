"""Specs: from YAML to checked options and the objects they name."""

from unfool.errors import SpecError
from unfool.spec.check import build, check, check_data, fields, part, takes
from unfool.spec.identity import ASIDE, FILES, code, identity
from unfool.spec.load import Table, load

__all__ = [
    "ASIDE",
    "FILES",
    "SpecError",
    "Table",
    "build",
    "check",
    "check_data",
    "code",
    "fields",
    "identity",
    "load",
    "part",
    "takes",
]
