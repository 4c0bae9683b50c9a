"""Spatially transformed images (Xiao et al., 2018): pixels are moved, not changed."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from unfool.argument_checks import checked_attack
from unfool.attacks.candidates import choose
from unfool.attacks.losses import query_model
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, NotNegative, Positive, checked_dataclass
from unfool.threat import Threat, per_image


@checked_dataclass
class StAdv:
    """A field of small pixel shifts within its own bound, optimized by Adam on the mean margin.

    The settings are those of DiffPure's evaluation (Nie et al., 2022), which takes 20 draws. The
    last image, the one with the highest mean margin, and the original are compared on fresh draws.
    The spec's threat, which measures pixel values, does not limit this attack (Xiao et al., 2018).

    Attributes:
        steps: Steps of Adam.
        eot: Draws of the defense's noise per step and image.
        bound: The largest shift along an axis, for an image 2 wide (0.05 is 0.8 of 32 pixels).
        learning_rate: Learning rate of Adam, in the unit of `bound`.
        smoothness: The weight of the field's roughness, measured in units of `bound`.
        selection_draws: Fresh draws on which the candidates are compared; None takes as many as
            `eot`.
        bounded: False: the threat does not limit the changes.
    """

    steps: Count = 100
    eot: Count = 1
    bound: Positive = 0.05
    learning_rate: Positive = 0.01
    smoothness: NotNegative = 0.0025
    selection_draws: Count | None = None
    bounded: ClassVar[bool] = False

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`."""
        flow = x.new_zeros(len(x), *x.shape[2:], 2).requires_grad_()
        adam = torch.optim.Adam([flow], lr=self.learning_rate, maximize=True)
        best, best_loss = x, torch.full_like(x[:, 0, 0, 0], -torch.inf)
        for i in range(self.steps):
            with torch.enable_grad():
                x_adv = warp(x, flow)
                penalty = self.smoothness / self.bound * roughness(flow).sum()
            result = query_model(model, x_adv, y, "margin", noise, i, self.eot)
            is_better = result.loss > best_loss
            best = torch.where(per_image(is_better), x_adv.detach(), best)
            best_loss = torch.where(is_better, result.loss, best_loss)
            output_gradients = (result.gradient.nan_to_num(0, 0, 0), -torch.ones_like(penalty))
            (flow.grad,) = torch.autograd.grad((x_adv, penalty), flow, output_gradients)
            adam.step()
            with torch.no_grad():
                flow.clamp_(-self.bound, self.bound)
        candidates = (warp(x, flow.detach()), best, x)
        draws = self.selection_draws or self.eot
        return choose(model, y, candidates, "margin", noise.child("compare"), draws)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Sample images (B, C, H, W) at positions shifted by `flow` (B, H, W, 2), as (right, down).

    A shift of 2 is the whole width or height. Interpolation is bilinear, and border pixels are
    repeated beyond the border.
    """
    identity = torch.eye(2, 3, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
    grid = F.affine_grid(identity, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid + flow, padding_mode="border", align_corners=False)
    return moved.clamp(0, 1)  # undoes rounding errors


def roughness(flow: Tensor) -> Tensor:
    """Sum of the distances between shifts (B, H, W, 2) of neighbors, (B,) (Xiao et al., 2018)."""
    down, right = flow[:, 1:] - flow[:, :-1], flow[:, :, 1:] - flow[:, :, :-1]
    lengths = (d.square().sum(3).add(1e-10).sqrt().flatten(1).sum(1) for d in (down, right))
    return sum(lengths, flow.new_zeros(len(flow)))
