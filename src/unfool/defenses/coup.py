"""COUP (Zhang et al., 2024): reverse diffusion from the image itself, guided by the classifier."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from unfool.argument_checks import check_images
from unfool.defenses.fewer_steps import with_fewer_steps
from unfool.defenses.guidance import require_classifier, require_grad_path
from unfool.defenses.sampling import SamplerName, Variance, make_sampler
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.protocols import Step
from unfool.diffusion.reverse import ascent, reverse, walk
from unfool.diffusion.schedule import Scales
from unfool.noise import Noise
from unfool.protocols import Classifier, Purifier
from unfool.ranges import Count, NotNegative, Share, Time, check_arguments
from unfool.runtime.text import html_repr, short_repr

Clamp = Literal["none", "released", "straight"]


class Confidence(nn.Module):
    """The guide weight * grad_{x_t} log max_y p(y | x_t), a term of the score (section 4.1.2).

    The classifier sees x_t itself, as an image, with its own stream `classify`. The class is the
    most likely one at that step, and may change from step to step. Everything is computed in
    float32 or higher, because the term is small compared with the score (appendix D.2).

    Args:
        classifier: The protected classifier, frozen.
        denoiser: The denoiser in whose space x_t is.
        weight: lambda, 0 or more; with 1, classifier and denoiser weigh the same.
        detach: Whether the term is a constant in the backward pass, as in the release. By default
            the gradient goes through it and is exact.
    """

    def __init__(
        self,
        classifier: Classifier,
        denoiser: Denoiser,
        *,
        weight: NotNegative = 1.0,
        detach: bool = False,
    ):
        super().__init__()
        check_arguments(Confidence, locals())
        self.classifier, self.denoiser = require_classifier(classifier), denoiser
        self.weight, self.detach = weight, detach

    def forward(
        self, x_t: Tensor, x_hat: Tensor, now: Scales, then: Scales, noise: Noise
    ) -> Tensor:
        """The term at `x_t` (B, C, H, W), for each image separately, shaped like `x_t`.

        Raises:
            ValueError: The classifier has no gradient.
        """
        stream, is_double = noise.child("classify"), x_t.dtype == torch.float64

        def potential(at: Tensor) -> Tensor:
            images = self.denoiser.decode(at if is_double else at.float())
            logits = require_grad_path(self.classifier(images, stream))
            return _log_max_probability(logits if is_double else logits.float())

        differentiable = torch.is_grad_enabled() and x_t.requires_grad and not self.detach
        full_precision = torch.autocast(x_t.device.type, enabled=False)
        with torch.set_grad_enabled(differentiable), full_precision:
            return self.weight * ascent(potential, x_t)


class COUP(nn.Module):
    """A purifier that runs the reverse process from the image as x_{t*}, guided by the classifier.

    There is no forward noise. It draws from the stream `reverse`; the guide's classifier, if it is
    random, draws from `classify` below that. A step costs one call of the denoiser and one forward
    and backward pass of the classifier (with `"heun"` two of each, except the last); with `weight`
    0, the guide is left out (the paper's "COUP w/o guidance").

    Args:
        denoiser: The diffusion model.
        classifier: The classifier that is protected, frozen; it also guides.
        t: t*, the time at which the reverse process starts, in (0, 1]: 0.1 for linf 8/255, 0.075
            for l2 0.5 on CIFAR-10.
        steps: Reverse steps; 1000 t* in the paper.
        weight: lambda, the weight of the guide.
        sampler: `"sde"` (Euler-Maruyama, the paper's), `"ddpm"`, `"ddim"`, `"ode"`, `"heun"`, or
            your own step (`protocols.Step`).
        variance: The variance of a `"ddpm"` step: `"small"` (posterior) or `"large"` (forward).
        eta: The share of fresh noise in `"ddim"` and `"heun"`, 0 to 1.
        detach: Whether to leave second derivatives out of the gradient, as the release does. The
            purified images are the same, but attacks no longer have the exact gradient.
        clamp: `"none"`; `"released"` clamps the image before and after purification to [0, 1],
            which sets the gradient of saturated pixels to 0; `"straight"` gives the same images,
            with the gradient as if there were no clamp.

    Raises:
        ValueError: An option is out of range, or there is no classifier.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: Classifier,
        *,
        t: Time = 0.1,
        steps: Count = 100,
        weight: NotNegative = 1.0,
        sampler: SamplerName | Step = "sde",
        variance: Variance = "small",
        eta: Share = 0.0,
        detach: bool = False,
        clamp: Clamp = "none",
    ):
        super().__init__()
        check_arguments(COUP, locals())
        guide = Confidence(classifier, denoiser, weight=weight, detach=detach)
        self.denoiser, self.t, self.steps, self.clamp = denoiser, t, steps, clamp
        self.sampler, self.variance, self.eta = sampler, variance, eta  # for `repr`
        self.times, self.step = make_sampler(denoiser, t, steps, sampler, variance, eta)
        self.guide = guide if weight else None

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Purified images, shaped like `x` (B, C, H, W) in [0, 1]."""
        check_images(x)
        z, back = self.denoiser.encode(self._clamped(x)), noise.child("reverse")
        z = reverse(self.denoiser, z, self.times, back, step=self.step, guide=self.guide)
        return self._clamped(self.denoiser.decode(z))

    def walk(self, x: Tensor, noise: Noise) -> Iterator[tuple[float, Tensor]]:
        """Yield the path of `forward`, (time, image) from the image at t* to the purified one."""
        z, back = self.denoiser.encode(self._clamped(x)), noise.child("reverse")
        end = float(self.times[-1])
        for t, state in walk(self.denoiser, z, self.times, back, step=self.step, guide=self.guide):
            image = self.denoiser.decode(state)
            yield t, self._clamped(image) if t == end else image

    def with_fewer_steps(self, steps: int | None = None, matched: bool = True) -> Purifier:
        """The same purifier in fewer steps, on the same noise path if `matched`."""
        return with_fewer_steps(self, steps, matched)

    def _clamped(self, x: Tensor) -> Tensor:
        if self.clamp == "none":
            return x
        clamped = x.clamp(0, 1)
        return clamped if self.clamp == "released" else x + (clamped - x).detach()


def _log_max_probability(logits: Tensor) -> Tensor:
    """The logarithm of max_y p(y), (B,), of logits (B, K), from the gaps between them.

    The log of a softmax, as released, and a log-softmax both lose 1 - p of a confident classifier
    to rounding, and with it half of the gradient.
    """
    top = logits.max(1, keepdim=True)
    gaps = (logits - top.values).scatter(1, top.indices, -torch.inf)
    return -nn.functional.softplus(gaps.logsumexp(1))
