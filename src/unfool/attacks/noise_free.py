"""Images that a model answers without noise: an attack needs one draw of these, and no second look."""

from collections.abc import Callable

import torch
from torch import Tensor

from unfool.attacks.losses import without_noise
from unfool.noise import Noise
from unfool.protocols import Classifier


def split_by_noise(
    model: Classifier, x: Tensor, noise: Noise, attack: Callable[[list[int], bool], Tensor]
) -> Tensor:
    """Attack the images that the model answers without noise apart from the others.

    Args:
        model: The model, as the attacker sees it.
        x: Images (B, C, H, W).
        noise: For the question alone, which costs two passes over the images.
        attack: Called with the positions of some images, and with whether the model answers them
            without noise; returns their adversarial images.

    Returns:
        The adversarial images (B, C, H, W), in the order of `x`.
    """
    if not len(x):
        return attack([], False)
    free, found = without_noise(model, x, noise), torch.empty_like(x)
    for sure in (True, False):
        if which := (free == sure).nonzero()[:, 0].tolist():
            found[which] = attack(which, sure).to(x)
    return found
