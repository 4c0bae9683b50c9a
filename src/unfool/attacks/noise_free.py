"""Images that a model answers without noise: an attack needs one draw of these, and no second look."""

from collections.abc import Callable

import torch
from torch import Tensor

from unfool.attacks.losses import without_noise
from unfool.noise import Noise
from unfool.protocols import Classifier


def split_by_noise(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    attack: Callable[[Tensor, Tensor, Noise, bool], Tensor],
) -> Tensor:
    """Attack the images that the model answers without noise apart from the others.

    To ask for them costs two passes over the images, on a stream of noise for that alone.

    Args:
        model: The model, as the attacker sees it.
        x: Images (B, C, H, W).
        y: Their labels (B,).
        noise: The attacker's noise.
        attack: Called with some of the images, their labels, their noise, and whether the model
            answers them without noise; returns their adversarial images.

    Returns:
        The adversarial images (B, C, H, W), in the order of `x`.
    """
    if not len(x):
        return attack(x, y, noise, False)
    free, found = without_noise(model, x, noise.child("sure")), torch.empty_like(x)
    for sure in (True, False):
        if which := (free == sure).nonzero()[:, 0].tolist():
            found[which] = attack(x[which], y[which], noise.take(which), sure).to(x)
    return found
