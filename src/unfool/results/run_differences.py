"""How the runs of two manifests differ, in words: why they cannot share a folder."""

import json
from typing import Any

from unfool.results.manifest import Manifest
from unfool.spec import NOT_IN_EVALUATION, NOT_IN_IDENTITY

MUST_MATCH = {  # what runs that share a folder must have in common
    "identity": "of another spec",
    "indices": "on another number of images, or on others of the data set",
    "images": "on other images (the data set's contents differ)",
    "code": "with other code (a module that the spec names, or one that it imports, has changed)",
    "weights": "with other weights (the model or an attack was built with others)",
}


def describe_difference(key: str, a: Manifest, b: Manifest, same_images: bool | None) -> str:
    """Describe how two runs differ, given a `key` in which their manifests differ.

    Args:
        key: A key of `MUST_MATCH`.
        a: The manifest of a run.
        b: The manifest of the other.
        same_images: Whether the images that both are on have the same contents; None if that is
            unknown.
    """
    if key != "identity" or _comparable_spec(a) != _comparable_spec(b):
        return MUST_MATCH[key]
    other_weights, other_images = a.get("weights") != b.get("weights"), same_images is False
    if other_weights and other_images:
        return "with other weights, on other images (files that the spec names have changed)"
    if other_weights:
        return "with other weights (a file of weights, or its card, has changed)"
    if other_images:
        return "on other images (a file of images that the spec names has changed)"
    return "with another version of a file that the spec names, such as a card"


def _comparable_spec(manifest: Manifest) -> Any:
    """The kind and the spec of a run, without what its identity ignores."""
    spec = json.loads(json.dumps({k: v for k, v in manifest["spec"].items() if k != "machine"}))
    ignored = {"evaluation": NOT_IN_EVALUATION}
    sections = {
        key: {
            k: v
            for k, v in part.items()
            if k not in (*NOT_IN_IDENTITY, "images", *ignored.get(key, ()))
        }
        if isinstance(part, dict)
        else part
        for key, part in spec.items()
    }
    return manifest.get("kind"), sections
