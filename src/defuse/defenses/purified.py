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
        return self.classifier(pure, noise.fold("classify"))

    def behind(self, purifier: Purifier) -> "Purified":
        """The same classifier behind another purifier."""
        return Purified(self.classifier, purifier)


@torch.inference_mode()
def votes(model: Classifier, x: Tensor, noise: Noise, draws: int) -> Tensor:
    """The class that each of `draws` independent passes chooses, (B, draws).

    Draw i uses the stream ("vote", i). Passes go together, up to `model.rows` images at a time.
    """
    together = max(1, getattr(model, "rows", len(x) * draws) // max(1, len(x)))
    chosen = []
    for first in range(0, draws, together):
        turns = range(first, min(first + together, draws))
        noises = [noise.fold("vote", i) for i in turns]
        keys = Noise(tuple(key for each in noises for key in each.keys))
        logits = model(x.repeat(len(turns), 1, 1, 1), keys)
        chosen.append(logits.argmax(1).view(len(turns), len(x)))
    return torch.cat(chosen).T


def majority(chosen: Tensor, classes: int) -> Tensor:
    """The class that most of the draws (B, draws) chose, (B,); of equals, the lowest number."""
    return nn.functional.one_hot(chosen, classes).sum(1).argmax(1)
