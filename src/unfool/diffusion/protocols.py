"""Interfaces of the replaceable parts of a diffusion: noise level, shaping, guide, correction, step.

States are (B, C, H, W) in the denoiser's own space, and scales (`Scales`) are shaped (), or (B, 1, 1, 1)
where each image has times of its own.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor

from unfool.diffusion.schedule import Scales
from unfool.noise import Noise


class Guide(Protocol):
    """A term that is added to the score at x_t, shaped like `x_t`.

    It is asked at the scales `now`, with the estimate `x_hat` of x_0, on the way to the scales `then`; by
    `Heun` a second time, with the same noise, when it is there: `now` is then `then`.
    A guide with a true attribute `deep` may differentiate `x_hat` with respect to `x_t`.
    """

    def __call__(
        self, x_t: Tensor, x_hat: Tensor, now: Scales, then: Scales, noise: Noise, /
    ) -> Tensor: ...


@runtime_checkable
class ImageGuide(Protocol):
    """A guide that depends on the image that is purified.

    At every step it is asked for the guide of the images `x` (B, C, H, W), which are in the
    denoiser's own space. What it computes from them is a part of the step, and differentiated.
    """

    def for_images(self, x: Tensor, /) -> Guide: ...


class Correction(Protocol):
    """Another estimate of x_0 for the estimate `x_hat`, shaped like it.

    It is asked at the scales `now`, for every answer of the denoiser (of `Heun` two a step) and
    before the guide, which sees the corrected estimate. `x` is the image that is purified, in the
    denoiser's own space. It draws nothing; gradients go through `x_hat` and `x`.
    """

    def __call__(self, x_hat: Tensor, x: Tensor, now: Scales, /) -> Tensor: ...


class NoiseLevel(Protocol):
    """The time (B,) that each image is noised to, from 0.0001 to 1, where t* is `t`.

    `x` is the image that is purified (B, C, H, W), in the denoiser's own space; all randomness comes from
    `noise`. Gradients go through the times.
    """

    def __call__(self, x: Tensor, t: float, noise: Noise, /) -> Tensor: ...


class Shaping(Protocol):
    """The noise of the forward process, given standard normal noise `eps` and the image `x`.

    Both are (B, C, H, W), `x` in the denoiser's own space. It draws nothing; gradients go through `x`.
    """

    def __call__(self, eps: Tensor, x: Tensor, /) -> Tensor: ...


class Step(Protocol):
    """x at the scales `then`, given x_t at `now` and the estimate `x_hat` of x_0."""

    def __call__(
        self, x_t: Tensor, x_hat: Tensor, now: Scales, then: Scales, noise: Noise, /
    ) -> Tensor: ...
