"""The types of a spec's tables."""

from collections.abc import Mapping
from typing import Any, cast

from typing_extensions import TypedDict


class Part(TypedDict, extra_items=Any):
    """A part of a spec: a name, and options under all other keys.

    Attributes:
        name: A name of the menu, or `module:attribute`.
    """

    name: str


class RawSpec(TypedDict, total=False, extra_items=Any):
    """A spec as it was read: its sections by name, not yet checked, so they may have any values."""

    data: Any
    test: Any
    classifier: Any
    denoiser: Any
    purifier: Any
    paths: Any
    threat: Any
    attacks: Any
    evaluation: Any
    certification: Any
    objective: Any
    training: Any
    sweep: Any
    machine: Any


def without(spec: Mapping[str, Any], key: str) -> RawSpec:
    """Return the spec without one of its sections."""
    return cast(RawSpec, {name: section for name, section in spec.items() if name != key})
