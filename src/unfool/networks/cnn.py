"""A small plain network for digits and MNIST."""

from torch import nn


def small_cnn(
    channels: int = 1, size: int = 8, classes: int = 10, width: int = 32
) -> nn.Sequential:
    """Build two pairs of convolutions, each followed by max pooling, and one linear layer.

    The network has 67,562 parameters by default, and computes the same in training and evaluation.

    Args:
        channels: Channels of an image.
        size: Height and width of an image in pixels, 4 or more.
        classes: Number of classes.
        width: Channels of the first pair; the second has twice as many.

    Returns:
        A network that maps images (B, channels, size, size) to logits (B, classes).

    Raises:
        ValueError: `size` is below 4.
    """
    if size < 4:
        raise ValueError(f"size must be 4 or more, not {size}")
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (size // 4) ** 2, classes),
    )
