"""Interfaces of the parts of a diffusion process: noise level, shaping, guide, correction, step.

States are (B, C, H, W) in the denoiser's own space. Scales (`Scales`) are shaped (), or
(B, 1, 1, 1) if each image has times of its own.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor

from unfool.diffusion.schedule import Scales
from unfool.noise import Noise


class Guide(Protocol):
    """A term that is added to the score at x_t, shaped like `x_t`.

    It is called at the scales `now`, with the estimate `x_hat` of x_0, in a step to the scales
    `then`. `Heun` calls it a second time, with the same noise, at the end of the step, where `now`
    is `then`. A guide whose attribute `deep` is true may differentiate `x_hat` with respect to
    `x_t`.
    """

    def __call__(
        self, x_t: Tensor, x_hat: Tensor, now: Scales, then: Scales, noise: Noise, /
    ) -> Tensor: ...


@runtime_checkable
class ImageGuide(Protocol):
    """A guide that depends on the image that is purified.

    Every step gets its guide from `for_images`, given the images `x` (B, C, H, W) in the denoiser's
    own space. Whatever that computes from them is part of the step and is differentiated.
    """

    def for_images(self, x: Tensor, /) -> Guide: ...


class Correction(Protocol):
    """A replacement of the estimate `x_hat` of x_0, shaped like it.

    It is called at the scales `now`, on every output of the denoiser (two per step with `Heun`),
    before the guide, which sees the corrected estimate. `x` is the image that is purified, in the
    denoiser's own space. It draws no random numbers; gradients go through `x_hat` and `x`.
    """

    def __call__(self, x_hat: Tensor, x: Tensor, now: Scales, /) -> Tensor: ...


class NoiseLevel(Protocol):
    """The time (B,) that each image is noised to, from 0.0001 to 1, given the purifier's t* as `t`.

    `x` is the image that is purified (B, C, H, W), in the denoiser's own space. All randomness
    comes from `noise`. Gradients go through the times.
    """

    def __call__(self, x: Tensor, t: float, noise: Noise, /) -> Tensor: ...


class Shaping(Protocol):
    """The noise of the forward process, given standard normal noise `eps` and the image `x`.

    Both are (B, C, H, W), `x` in the denoiser's own space. It draws no random numbers; gradients go
    through `x`.
    """

    def __call__(self, eps: Tensor, x: Tensor, /) -> Tensor: ...


class Step(Protocol):
    """The state at the scales `then`, given x_t at `now` and the estimate `x_hat` of x_0."""

    def __call__(
        self, x_t: Tensor, x_hat: Tensor, now: Scales, then: Scales, noise: Noise, /
    ) -> Tensor: ...
