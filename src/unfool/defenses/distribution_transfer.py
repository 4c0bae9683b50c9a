"""Distribution transfer (arXiv 2311.13841): DiffPure, guided by the protected model's output.

The paper's equations 8 to 11 leave much open, and no code was released. Each possible reading is an
option, and none is certain to be the paper's own (see docs/purifiers.md).
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

from torch import Tensor, nn

from unfool.argument_checks import check_images
from unfool.defenses.fewer_steps import with_fewer_steps
from unfool.defenses.guidance import Descent, require_classifier
from unfool.defenses.sampling import SamplerName, Variance, make_sampler
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.protocols import Step
from unfool.diffusion.reverse import reverse, walk
from unfool.diffusion.schedule import pixel_noise
from unfool.distances import INPUT, OUTPUT, Input, Output
from unfool.noise import Noise
from unfool.protocols import Classifier, Purifier
from unfool.ranges import Count, NotNegative, Share, Time, check_arguments
from unfool.runtime.text import html_repr, short_repr

At = Literal["x_t", "x_hat"]
Anchor = Literal["image", "noised"]


class DistributionTransfer(nn.Module):
    """DiffPure with a guide that reduces D = D_out(f(x_t), f(x_adv)) + lambda D_in(x_t, x_adv).

    The guide is - scale * grad_{x_t} D, for each image separately; with `scale` 0, this is
    DiffPure. Gradients are exact, through the guide and its anchor. It draws from the streams
    `forward` and `reverse`; the classifier, if it is random, draws from `classify` below the
    purifier's own stream (for x_adv) or below a step's (for x_t).

    D_out compares logits: `kl` is KL(p(x_adv) || p(x_t)), `l2` the squared distance of the
    probabilities, `confidence` is - log max p(x_t), `entropy` is that of p(x_t), `repel` is - kl,
    and `none` is 0. D_in compares images in [0, 1]: `mse` and `l1` (means over pixels), `ssim`
    (1 - SSIM), `lpips`, or `none`.

    Args:
        denoiser: The diffusion model.
        classifier: f, the protected classifier, frozen.
        t: t* = n / T, the time to noise to, in (0, 1]. The paper uses n = 470 and does not state T.
        steps: Reverse steps, each one call of the network (with `"heun"` two, except the last).
            DDPM and DDIM allow at most as many as the schedule has below t*.
        output: D_out, by its name above.
        input: D_in, by its name above.
        scale: The scale of the guide, 0 or more.
        weight: lambda, 0 or more. A mean over pixels has a small gradient: a weight of about the
            number of pixels makes D_in as strong as a Gaussian log-likelihood of variance 1/2.
        at: The argument of D: `"x_t"`, as in equation 11, or `"x_hat"`, the estimate of the clean
            image, with the gradient through the denoiser.
        anchor: The image that D_in compares with: x_adv itself (`"image"`), or x_adv noised to t
            (`"noised"`).
        sampler: `"sde"`, `"ddpm"` (the paper's), `"ddim"`, `"ode"`, `"heun"`, or your own step.
        variance: The variance of a `"ddpm"` step: `"small"` (posterior) or `"large"` (forward).
        eta: The share of fresh noise in `"ddim"` and `"heun"`, 0 to 1.

    Raises:
        ValueError: An option is out of range, options contradict each other, or there is no
            classifier.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: Classifier,
        *,
        t: Time = 0.058,
        steps: Count = 58,
        output: Output | Literal["none"] = "kl",
        input: Input | Literal["none"] = "mse",
        scale: NotNegative = 1.0,
        weight: NotNegative = 100.0,
        at: At = "x_t",
        anchor: Anchor = "image",
        sampler: SamplerName | Step = "ddpm",
        variance: Variance = "small",
        eta: Share = 0.0,
    ):
        super().__init__()
        check_arguments(DistributionTransfer, locals())
        if at == "x_hat" and anchor == "noised":
            raise ValueError(
                "a noised anchor cannot be compared with x_hat, which has no noise: set at: x_t, "
                "or anchor: image"
            )
        self.denoiser, self.classifier, self.t, self.steps = (
            denoiser,
            require_classifier(classifier),
            t,
            steps,
        )
        self.times, self.step = make_sampler(denoiser, t, steps, sampler, variance, eta)
        self.scale, self.weight, self.at, self.anchor = scale, weight, at, anchor
        self._output, self._input = OUTPUT.get(output), INPUT.get(input) if weight else None
        self._guided = bool(scale and (self._output or self._input))
        self._refers = self._guided and output in ("kl", "l2", "repel")

    @property
    def pixel_noise(self) -> float:
        """The noise put on the image, in units of [0, 1] pixels."""
        return pixel_noise(self.denoiser.schedule, self.t)

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Purified images, shaped like `x` (B, C, H, W) in [0, 1]."""
        check_images(x)
        x_t, guide, other_inputs = self._start(x, noise)
        back = noise.child("reverse")
        z = reverse(
            self.denoiser,
            x_t,
            self.times,
            back,
            step=self.step,
            guide=guide,
            other_inputs=other_inputs,
        )
        return self.denoiser.decode(z)

    def walk(self, x: Tensor, noise: Noise) -> Iterator[tuple[float, Tensor]]:
        """Yield the reverse path of `forward` as (time, image), from noised to purified image."""
        x_t, guide, _ = self._start(x, noise)
        back = noise.child("reverse")
        for t, state in walk(self.denoiser, x_t, self.times, back, step=self.step, guide=guide):
            yield t, self.denoiser.decode(state)

    def with_fewer_steps(self, steps: int | None = None, matched: bool = True) -> Purifier:
        """The same purifier in fewer steps, on the same noise path if `matched`."""
        return with_fewer_steps(self, steps, matched)

    def _start(self, x: Tensor, noise: Noise) -> tuple[Tensor, Descent | None, tuple[Tensor, ...]]:
        """x_t at t*, the guide, and the tensors that it uses and that may need a gradient."""
        z = self.denoiser.encode(x)
        x_t = self.denoiser.perturb(z, self.times[0], noise.child("forward"))
        if not self._guided:
            return x_t, None, ()
        reference = self.classifier(x, noise.child("classify")) if self._refers else None
        guide = Descent(
            partial(self._distance, reference),
            z,
            lambda now: self.scale,
            self.step,
            noised=self.anchor == "noised",
            deep=self.at == "x_hat",
        )
        return x_t, guide, (z,) if reference is None else (z, reference)

    def _distance(
        self, reference: Tensor | None, state: Tensor, anchor: Tensor, noise: Noise
    ) -> Tensor:
        image = self.denoiser.decode(state)
        parts = []
        if self._output is not None:
            logits = self.classifier(image, noise.child("classify"))
            parts.append(self._output(logits, logits if reference is None else reference))
        if self._input is not None:
            parts.append(self.weight * self._input(image, self.denoiser.decode(anchor)))
        return sum(parts[1:], parts[0])
