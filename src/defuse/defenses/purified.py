"""Purify, then classify: a defence is a classifier, so an attack need not know that it is one."""

import torch
from torch import Tensor, nn

from defuse.noise import Noise
from defuse.protocols import Classifier, Purifier


class Purified(nn.Module):
    """A classifier that sees purified images only.

    The purifier draws from the stream `purify`, the classifier from `classify`.
    """

    def __init__(self, classifier: Classifier, purifier: Purifier):
        super().__init__()
        self.classifier, self.purifier = classifier, purifier

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        pure = self.purifier(x, noise.fold("purify"))
        if pure.shape != x.shape:
            raise ValueError(
                f"the purifier returned images shaped {tuple(pure.shape)}, given {tuple(x.shape)}"
            )
        return self.classifier(pure, noise.fold("classify"))

    def behind(self, purifier: Purifier) -> "Purified":
        """The same classifier behind another purifier."""
        return Purified(self.classifier, purifier)


def image_shape(purifier: object) -> tuple[int, int, int] | None:
    """(C, H, W) of the images that a purifier's denoiser was made for; None if any will do."""
    return getattr(getattr(purifier, "denoiser", None), "shape", None)


@torch.no_grad()
def votes(model: Classifier, x: Tensor, noise: Noise, draws: int) -> Tensor:
    """The class that each of `draws` independent passes chooses, (B, draws).

    Draw i uses the stream ("vote", i). All passes go into one call.
    """
    keys = (key for i in range(draws) for key in noise.fold("vote", i).keys)
    logits = model(x.repeat(draws, 1, 1, 1), Noise(tuple(keys)))
    return logits.argmax(1).view(draws, len(x)).T


def majority(chosen: Tensor, classes: int) -> Tensor:
    """The class that most of the draws (B, draws) chose, (B,); of equals, the lowest number."""
    return nn.functional.one_hot(chosen, classes).sum(1).argmax(1)
