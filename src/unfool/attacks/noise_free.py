"""Images that a model classifies without noise, for which an attack needs only one draw."""

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
    """Attack the images that the model classifies without noise separately from the others.

    Telling them apart costs two draws per image, from their own stream of noise, and one more for
    images with equal logits if the model used noise.

    Args:
        model: The model, as the attacker sees it.
        x: Images (B, C, H, W).
        y: Their labels (B,).
        noise: The attacker's noise.
        attack: Called with some of the images, their labels, their noise, and whether the model
            classifies them without noise; returns their adversarial images.

    Returns:
        The adversarial images (B, C, H, W), in the order of `x`.
    """
    if not len(x):
        return attack(x, y, noise, False)
    is_noise_free, x_adv = without_noise(model, x, noise.child("sure")), torch.empty_like(x)
    for noise_free in (True, False):
        if which := (is_noise_free == noise_free).nonzero()[:, 0].tolist():
            x_adv[which] = attack(x[which], y[which], noise.take(which), noise_free).to(x)
    return x_adv
