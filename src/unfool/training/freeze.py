"""A model whose weights stay as they are while images or noise are sought for it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Inside, a model whose weights want no gradient; afterwards all is as it was.

    Under `no_grad`, autocast would keep casts of weights that do want one, without their graph, for
    the training pass that follows.

    Args:
        model: The model.
        training: Whether it is in training mode inside; else it is in evaluation mode.
    """
    mode, wanted = model.training, [p.requires_grad for p in model.parameters()]
    model.train(training).requires_grad_(False)
    try:
        yield
    finally:
        model.train(mode)
        for parameter, want in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(want)
