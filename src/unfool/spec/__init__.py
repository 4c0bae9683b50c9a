"""Specs: from YAML to checked options and the objects that they name."""

from unfool.errors import SpecError
from unfool.spec.check import (
    argument_names,
    build,
    check,
    check_data,
    check_options,
    check_section,
    option_types,
    part,
    refuse_unread_folder,
)
from unfool.spec.code import code_hash, modules_named
from unfool.spec.identity import FILE_KEYS, NOT_IN_EVALUATION, NOT_IN_IDENTITY, identity
from unfool.spec.load import load
from unfool.spec.tables import Part, RawSpec

__all__ = [
    "FILE_KEYS",
    "NOT_IN_EVALUATION",
    "NOT_IN_IDENTITY",
    "Part",
    "RawSpec",
    "SpecError",
    "argument_names",
    "build",
    "check",
    "check_data",
    "check_options",
    "check_section",
    "code_hash",
    "identity",
    "load",
    "modules_named",
    "option_types",
    "part",
    "refuse_unread_folder",
]
