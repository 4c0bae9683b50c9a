"""Likelihood maximization (Chen et al., 2024): make the image easy for the model to denoise."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from unfool.argument_checks import check_images
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.gradient import chain
from unfool.diffusion.reverse import ascent
from unfool.diffusion.schedule import time_of_noise
from unfool.noise import Noise
from unfool.ranges import Count, NotNegative, Positive, check_arguments
from unfool.runtime.text import html_repr, short_repr

Optimizer = Literal["adam", "gradient", "momentum"]


class LikelihoodMaximization(nn.Module):
    """A purifier that descends the denoising loss |x_hat(x_t) - x|^2, a term of the diffusion ELBO.

    Each step noises the image to a level of its own, and takes the gradient of the mean square
    error with respect to the image, through the denoiser. The gradient through all steps is exact
    and takes the memory of one step. The noise of step i comes from the stream ("forward", i). The
    release (for EDM models) draws the same noise for every image and call, draws the level
    uniformly in sigma and not in time, clips the result, and detaches its gradient.

    The first step of Adam is the step size times the sign of the gradient, whose derivative is 0,
    so exact gradients are of little use there: evaluate with BPDA as well.

    With `eta`, every step ends with a clamp to [0, 1] and to the linf ball around the input image.
    The gradient goes through the clamp and through its center. With `optimizer="momentum"`, this is
    the paper's variant as later papers describe it: 5 steps in a ball of 8/255. The decay of the
    momentum (0.9) and a step size of 2/255 are our choices; the release has its own variant with
    momentum in linf, which its demos do not run and which this one does not reproduce exactly.

    The sign in `"momentum"` has a derivative of 0 everywhere. So the exact gradient is that of the
    identity (except for pixels clamped at 0 or 1), which is BPDA and tells an attacker nothing
    about the diffusion model. Evaluate this variant by attacks without gradients as well, and by
    images made against `"adam"` or `"gradient"` with the same `eta`.

    Args:
        denoiser: The diffusion model.
        steps: Descent steps; each costs one forward and one backward pass of the network.
        step_size: The step size, in units of [0, 1] pixels: Adam's learning rate; with
            `"momentum"`, the change of each pixel; with `"gradient"`, the factor of the gradient of
            |x_hat - x|^2 in the denoiser's space.
        low: The smallest noise, in units of [0, 1] pixels; half the sigma of an EDM model.
        high: The largest noise; a step's time is uniform between those of `low` and `high`.
        optimizer: `"adam"` (the release's), `"gradient"`, or `"momentum"`: steps against the sign
            of a mean of all gradients so far, in which each weighs 0.9 times the next.
        eta: The largest change of a pixel, in units of [0, 1]; the result then stays in [0, 1]. None
            sets no limit, and the result may leave [0, 1].

    Raises:
        ValueError: An option is out of range, the schedule has less noise than `high`, or `eta` is
            given and the denoiser does not work on pixels.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        steps: Count = 5,
        step_size: NotNegative = 0.05,
        low: Positive = 0.2,
        high: Positive = 0.3,
        optimizer: Optimizer = "adam",
        eta: Positive | None = None,
    ):
        super().__init__()
        check_arguments(LikelihoodMaximization, locals())
        if low > high:
            raise ValueError(f"low must be at most high, not {low} and {high}")
        if eta is not None and denoiser.resizes:
            raise ValueError(
                "eta is a distance between pixels, and the denoiser works on latents: leave eta out"
            )
        self.denoiser, self.steps, self.step_size, self.optimizer = (
            denoiser,
            steps,
            step_size,
            optimizer,
        )
        self.eta = eta
        self._span = tuple(time_of_noise(denoiser.schedule, sigma) for sigma in (low, high))

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Purified images, shaped like `x` (B, C, H, W) in [0, 1]."""
        check_images(x)
        weights = tuple(p for p in self.denoiser.parameters() if p.requires_grad)
        z = self.denoiser.encode(x)
        advance = partial(self._advance, noise.child("forward"), z)
        state = chain(advance, _state(z), self.steps, other_inputs=(z, *weights))
        return self.denoiser.decode(state.chunk(3, 1)[0])

    def walk(self, x: Tensor, noise: Noise) -> Iterator[tuple[float, Tensor]]:
        """Yield the path of `forward` as (share of steps left, image), from first to last image."""
        z = self.denoiser.encode(x)
        state = _state(z)
        yield 1.0, x
        for i in range(self.steps):
            state = self._advance(noise.child("forward"), z, i, state)
            yield 1 - (i + 1) / self.steps, self.denoiser.decode(state.chunk(3, 1)[0])

    def _advance(self, noise: Noise, center: Tensor, i: int, state: Tensor) -> Tensor:
        z, first_moment, second_moment = state.chunk(3, 1)
        uses_sign = self.optimizer == "momentum"  # their derivative is 0, so they need no graph
        with torch.set_grad_enabled(torch.is_grad_enabled() and not uses_sign):
            gradient = ascent(lambda at: self._loss(at, noise.child(i)), z)
        if self.optimizer == "gradient":
            z = z - 2 * self.step_size * z[0].numel() * gradient
            return torch.cat([self._clamped(z, center), first_moment, second_moment], 1)
        first_moment = 0.9 * first_moment + 0.1 * gradient
        if uses_sign:
            move = first_moment.sign()
        else:
            second_moment = 0.999 * second_moment + 0.001 * gradient**2
            # inside the root, Adam's 1e-8 keeps the derivative finite where the gradient is 0
            size = torch.sqrt(second_moment / (1 - 0.999 ** (i + 1)) + 1e-16)
            move = first_moment / (1 - 0.9 ** (i + 1)) / size
        return torch.cat(
            [self._clamped(z - 2 * self.step_size * move, center), first_moment, second_moment], 1
        )

    def _clamped(self, z: Tensor, center: Tensor) -> Tensor:
        """`z` clamped to [-1, 1] and to the ball around `center`, if there is one."""
        if self.eta is None:
            return z
        low, high = (center - 2 * self.eta).clamp(min=-1), (center + 2 * self.eta).clamp(max=1)
        return z.clamp(low, high)

    def _loss(self, z: Tensor, noise: Noise) -> Tensor:
        low, high = self._span
        t = low + (high - low) * noise.child("time").uniform(z[:, :1, :1, :1])
        x_t = self.denoiser.perturb(z, t, noise)
        return (self.denoiser(x_t, t) - z).square().flatten(1).mean(1)


def _state(z: Tensor) -> Tensor:
    """The image with Adam's two moments, 0 at first, as further channels."""
    return torch.cat([z, torch.zeros_like(z), torch.zeros_like(z)], 1)
