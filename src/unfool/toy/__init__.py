"""Toy worlds with closed-form answers."""

from typing import TYPE_CHECKING

from unfool.lazy import lazily

if TYPE_CHECKING:
    from unfool.toy.blobs import Blobs as Blobs
    from unfool.toy.blobs import bayes as bayes
    from unfool.toy.blobs import mixture as mixture
else:  # at run time alone, lest a type checker take a name that is not there
    __getattr__, __dir__, __all__ = lazily(__name__)
