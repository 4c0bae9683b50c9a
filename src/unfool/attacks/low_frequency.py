"""The low-frequency attack: learned smoothing filters, no added pattern (Kassis et al., 2025)."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from unfool.argument_checks import checked_attack
from unfool.attacks.candidates import choose
from unfool.attacks.losses import query_model
from unfool.attacks.perceptual import within
from unfool.distances import INPUT, Input
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, NotNegative, Positive, checked_dataclass
from unfool.threat import Threat, per_image

INITIAL_CENTER_LOGIT = 6.0  # the initial logit of a kernel's center; the others are 0


@checked_dataclass
class LowFrequency:
    """A chain of smoothing filters, with a kernel for every pixel, optimized by Adam.

    A filter replaces a pixel by a weighted mean of its neighbors. The weights are positive and sum
    to 1, the same for all channels; neighbors of another color count less, as in a bilateral
    filter, so edges stay. The filters smooth and shade, so an image can be far from the original in
    pixel values and still look alike, and purifiers, which remove noise, leave it as it is.

    Adam maximizes the mean margin (capped at `confidence`) minus a penalty for each image's
    perceptual distance beyond a bound. An image that is still beyond the bound at the end is moved
    straight back toward the original. The filters and the distance are simpler than the paper's, so
    do not expect its numbers.

    The last image, the one with the highest objective, and the original are compared on fresh
    draws. The spec's threat, which measures pixel values, does not limit this attack.

    Attributes:
        steps: Steps of Adam.
        eot: Draws of the defense's noise per step and image.
        filters: Number of filters in the chain.
        width: Width of a kernel in pixels, odd.
        color: The color difference, in [0, 1], at which a neighbor's weight has fallen to 0.6.
        learning_rate: Learning rate of Adam, for the logits of the kernels.
        distance: `"ssim"` (1 - SSIM), `"lpips"` (needs its package), `"mse"` or `"l1"`.
        bound: The largest distance without a penalty.
        penalty: The penalty per unit of distance beyond the bound.
        confidence: The margin, in logits, beyond which the objective does not increase.
        selection_draws: Fresh draws on which the candidates are compared; None takes as many as
            `eot`.
        bounded: False: the threat does not limit the changes.
    """

    steps: Count = 100
    eot: Count = 1
    filters: Count = 2
    width: Count = 5
    color: Positive = 0.2
    learning_rate: Positive = 0.2
    distance: Input = "ssim"
    bound: Positive = 0.1
    penalty: NotNegative = 100.0
    confidence: NotNegative = 5.0
    selection_draws: Count | None = None
    bounded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.width % 2 == 0:
            raise ValueError(
                f"width must be odd, so that the kernel has a center, not {self.width}"
            )

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`.

        Raises:
            ValueError: The distance is lpips, whose package or weights are not available.
        """
        distance, size = INPUT[self.distance], self.width**2
        kernels = x.new_zeros(len(x), self.filters, size, *x.shape[2:])
        kernels[:, :, size // 2] = INITIAL_CENTER_LOGIT
        kernels.requires_grad_()
        adam = torch.optim.Adam([kernels], lr=self.learning_rate, maximize=True)
        best, best_value = x, torch.full_like(x[:, 0, 0, 0], -torch.inf)
        for i in range(self.steps):
            with torch.enable_grad():
                x_adv = filtered(x, kernels, self.color)
                excess = (distance(x, x_adv) - self.bound).clamp(min=0)
                cost = self.penalty * excess
            result = query_model(model, x_adv, y, "margin", noise, i, self.eot)
            is_short = result.loss < self.confidence
            value = result.loss.clamp(max=self.confidence) - cost.detach()
            is_better = value > best_value
            best = torch.where(per_image(is_better), x_adv.detach(), best)
            best_value = torch.where(is_better, value, best_value)
            slope = per_image(is_short) * result.gradient.nan_to_num(0, 0, 0)
            output_gradients = (slope, -torch.ones_like(cost))
            (kernels.grad,) = torch.autograd.grad((x_adv, cost), kernels, output_gradients)
            adam.step()
        last = filtered(x, kernels.detach(), self.color)
        allowed = [within(distance, x, x_adv, self.bound) for x_adv in (last, best)]
        draws = self.selection_draws or self.eot
        return choose(model, y, [x, *allowed], "margin", noise.child("compare"), draws)


def filtered(x: Tensor, kernels: Tensor, color: float) -> Tensor:
    """Apply a chain of filters to images (B, C, H, W) in [0, 1].

    Args:
        x: Images.
        kernels: Logits (B, filters, width * width, H, W) of the weights of a pixel's neighbors, row
            by row. Border pixels are repeated beyond the border.
        color: The standard deviation of the Gaussian of the color difference in each weight.
    """
    side = round(kernels.shape[2] ** 0.5)
    for logits in kernels.unbind(1):
        neighbors = F.unfold(F.pad(x, [side // 2] * 4, mode="replicate"), side)
        neighbors = neighbors.view(len(x), x.shape[1], side * side, *x.shape[2:])
        color_distance = (neighbors - x[:, :, None]).square().mean(1)
        weights = (logits - color_distance / (2 * color**2)).softmax(1)
        x = (neighbors * weights[:, None]).sum(2)
    return x.clamp(0, 1)  # undoes rounding errors
