"""A small plain network for digits and MNIST."""

from torch import nn


def small_cnn(
    channels: int = 1, size: int = 8, classes: int = 10, width: int = 32
) -> nn.Sequential:
    """Two pairs of convolutions, a halving after each, and one linear layer.

    It has 67,562 parameters by default, and nothing that differs between training and use.

    Args:
        channels: Channels of an image.
        size: Height and width of an image, 4 or more.
        classes: How many classes it tells apart.
        width: Channels of the first pair; the second has twice as many.

    Returns:
        A network from images (B, channels, size, size) to logits (B, classes).

    Raises:
        ValueError: The images are too small.
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
