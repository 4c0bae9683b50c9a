"""MACER (Zhai et al., 2020): train a classifier for a large certified radius, without an attack."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, InPixels, NotNegative, Positive, checked_dataclass


@checked_dataclass
class MACER:
    """Cross-entropy of the smoothed classifier plus a hinge on its certified radius (Zhai et al., 2020).

    Probabilities p are means over `copies` noisy copies of an image. The loss is -log p_y. Images that
    the smoothed classifier gets right with a margin of at most gamma add the hinge loss weight sigma / 2
    (gamma - margin). The margin is Phi^-1(p_y) - Phi^-1(the largest other p), where p is computed from
    logits multiplied by `beta`; sigma / 2 times the margin is the certified radius.

    Attributes:
        sigma: The standard deviation of the noise, in units of [0, 1] pixels; certify with the
            same value.
        copies: Noisy copies of each image in a step, all in one call (k in the paper).
        weight: The weight of the hinge (lambda in the paper): 12 for sigma 0.25, 4 for 0.5.
        gamma: The margin above which the hinge is 0.
        beta: The factor that multiplies logits before the softmax of the hinge.
    """

    sigma: InPixels = 0.25
    copies: Count = 16
    weight: NotNegative = 12.0
    gamma: Positive = 8.0
    beta: Positive = 16.0

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,)."""
        copy_noise = noise.repeat(self.copies)
        repeated = x.repeat_interleave(self.copies, 0)
        noisy = repeated + self.sigma * copy_noise.child("smooth").normal(repeated)
        logits = model(noisy, copy_noise).float().view(len(x), self.copies, -1)
        log_mean = logits.log_softmax(2).logsumexp(1) - math.log(self.copies)
        return F.nll_loss(log_mean, y, reduction="none") + self.weight * self.hinge(logits, y)

    def hinge(self, logits: Tensor, y: Tensor) -> Tensor:
        """The hinge, sigma / 2 (gamma - margin), of each image (B,), or 0 where it does not apply.

        Args:
            logits: Logits of the noisy copies (B, copies, K).
            y: Labels (B,).
        """
        mean = (self.beta * logits).softmax(2).mean(1)
        (best, other), predicted = mean.topk(2).values.unbind(1), mean.argmax(1)
        margin = torch.special.ndtri(best) - torch.special.ndtri(other)  # infinite at 0 and 1
        applies = (predicted == y) & (margin <= self.gamma)
        # Where the hinge does not apply, constants keep NaN out of the gradient.
        best, other = torch.where(applies, best, 0.75), torch.where(applies, other, 0.25)
        margin = torch.special.ndtri(best) - torch.special.ndtri(other)
        return torch.where(applies, self.sigma / 2 * (self.gamma - margin), 0.0)
