"""Images that a model classifies without noise, for which an attack needs only one draw."""

from collections.abc import Callable

import torch
from torch import Tensor

from unfool.attacks.losses import without_noise
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.threat import Threat

SplitAttack = Callable[[Classifier, Tensor, Tensor, Threat, Noise, bool], Tensor]


def split_by_noise(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    noise: Noise,
    attack: SplitAttack,
    single: SplitAttack,
) -> Tensor:
    """Attack the images that the model classifies without noise separately from the others.

    Telling them apart costs two draws per image, from their own stream of noise, and one more for
    images with equal logits if the model used noise.

    Args:
        model: The model, as the attacker sees it.
        x: Images (B, C, H, W).
        y: Their labels (B,).
        threat: The allowed changes.
        noise: The attacker's noise.
        attack: The attack on images that the model classifies with noise. It is called with the
            model, images, labels, the threat, their noise, and whether the model classifies them
            without noise; it returns their adversarial images.
        single: The same attack with a single draw, for images that are classified without noise.

    Returns:
        The adversarial images (B, C, H, W), in the order of `x`.
    """
    if not len(x):
        return attack(model, x, y, threat, noise, False)
    is_noise_free, x_adv = without_noise(model, x, noise.child("sure")), torch.empty_like(x)
    for noise_free, search in ((True, single), (False, attack)):
        if which := (is_noise_free == noise_free).nonzero()[:, 0].tolist():
            part = search(model, x[which], y[which], threat, noise.take(which), noise_free)
            x_adv[which] = part.to(x)
    return x_adv
