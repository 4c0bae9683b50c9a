"""Freeze a model's weights while images or noise are optimized against it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Turn off gradients of the model's weights inside the context, and restore all afterwards.

    `no_grad` alone is not enough: autocast would cache casts of weights that require a gradient,
    without their graph, and the training pass that follows would use them.

    Args:
        model: The model.
        training: Whether the model is in training mode inside the context, not evaluation mode.
    """
    mode, wanted = model.training, [p.requires_grad for p in model.parameters()]
    model.train(training).requires_grad_(False)
    try:
        yield
    finally:
        model.train(mode)
        for parameter, want in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(want)
