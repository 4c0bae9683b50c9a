"""Toy data sets and models with closed-form solutions."""

from typing import TYPE_CHECKING

from unfool.lazy import lazy_exports

if TYPE_CHECKING:
    from unfool.toy.blobs import Blobs as Blobs
    from unfool.toy.blobs import bayes as bayes
    from unfool.toy.blobs import mixture as mixture
else:  # only at run time, so that type checkers do not accept unknown names
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
