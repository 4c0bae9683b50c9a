"""Toy worlds with closed-form answers."""

from typing import TYPE_CHECKING

from unfool.lazy import lazily

if TYPE_CHECKING:
    from unfool.toy.blobs import Blobs as Blobs
    from unfool.toy.blobs import bayes as bayes
    from unfool.toy.blobs import mixture as mixture

_HOMES = {
    "bayes": "unfool.toy.blobs",
    "Blobs": "unfool.toy.blobs",
    "mixture": "unfool.toy.blobs",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
if not TYPE_CHECKING:  # lest a name that is not there pass for one
    __getattr__, __dir__ = lazily(__name__, _HOMES)
