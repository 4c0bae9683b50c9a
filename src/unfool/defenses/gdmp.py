"""GDMP (Wang et al., 2022): several short diffusion passes, guided to stay near the image."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from unfool.argument_checks import check_images
from unfool.defenses.fewer_steps import with_fewer_steps
from unfool.defenses.guidance import Descent
from unfool.defenses.sampling import Variance, make_sampler, walk_in_sequence
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.reverse import reverse, walk
from unfool.diffusion.schedule import Scales, chain_length, pixel_noise
from unfool.distances import WINDOW_SIZE, mse, ssim
from unfool.noise import Noise
from unfool.protocols import Purifier
from unfool.ranges import Count, NotNegative, ShareAboveZero, Time, check_arguments
from unfool.runtime.text import html_repr, short_repr

AnchorDistance = Literal["mse", "ssim", "ssim-padded", "none"]
Anchor = Literal["image", "noised"]


class GDMP(nn.Module):
    """M passes of DDPM, guided by c_t grad_{x_t} S(x_t, y_t), where S is - MSE or SSIM.

    c_t = 3 scale sigma_t / (2 eps alpha_t), as released, and S is a mean over pixels, in the
    denoiser's range [-1, 1]. The released S is also a mean over the batch, so its guide weakens as
    batches grow; here, an image's S is divided by the fixed number `reference_batch_size` and
    depends on that image only, unless `batch_mean` selects the released form.

    Pass i draws from the streams `forward` and `reverse` below ("pass", i). The release aggregates
    10 purifications: see `aggregate.Aggregated`. Its DDPM clips x_hat (an option of the denoiser),
    its SSIM pads images in [-1, 1] with zeros (`ssim-padded`; with `ssim`, windows stay inside),
    and its `default.yml` has no guide.

    Args:
        denoiser: The diffusion model.
        t: The time to which each pass adds noise; 0.036 is 36 of 1000, as for CIFAR-10. ImageNet:
            0.18.
        steps: Reverse steps of a pass, each one call of the network. ImageNet: 45.
        passes: M. ImageNet: 1.
        distance: S: `"mse"`, `"ssim"`, `"ssim-padded"` (the release's SSIM), or `"none"` for passes
            without a guide.
        scale: The release's guide_scale: 60000 for MSE and 70000 for SSIM; on ImageNet, 1000 for
            SSIM.
        eps: The perturbation that `scale` was chosen for, in units of [0, 1] pixels.
        anchor: y_t: the image noised to t, with fresh noise in each step (`"noised"`, as for
            CIFAR-10), or the image itself (`"image"`, as for ImageNet).
        reference_batch_size: The number of images by which S is divided: the batch size that
            `scale` was chosen for.
        batch_mean: Whether to divide by the number of images in the call instead, as released. The
            result then depends on the batch, and runs are not reproducible at another batch size.
        extra_noise_step: Whether to add noise up to one step beyond t, as the release does on
            CIFAR-10 (index 36, back from 35).
        variance: The variance of a step: `"small"` (posterior) or `"large"` (forward; the release's
            on CIFAR-10).

    Raises:
        ValueError: An option is out of range.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        t: Time = 0.036,
        steps: Count = 36,
        passes: Count = 4,
        distance: AnchorDistance = "mse",
        scale: NotNegative = 60000.0,
        eps: ShareAboveZero = 8 / 255,
        anchor: Anchor = "noised",
        reference_batch_size: Count = 100,
        batch_mean: bool = False,
        extra_noise_step: bool = False,
        variance: Variance = "large",
    ):
        super().__init__()
        check_arguments(GDMP, locals())
        self.times, self.step = make_sampler(denoiser, t, steps, "ddpm", variance)
        self.denoiser, self.t, self.steps, self.passes = denoiser, t, steps, passes
        self.distance, self.scale, self.eps, self.anchor = distance, scale, eps, anchor
        self.reference_batch_size, self.batch_mean = reference_batch_size, batch_mean
        self._noised_to = self.times[0] + (
            1 / chain_length(denoiser.schedule) if extra_noise_step else 0
        )

    @property
    def pixel_noise(self) -> float:
        """The noise put on the image in each pass, in units of [0, 1] pixels."""
        return pixel_noise(self.denoiser.schedule, float(self._noised_to))

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Purified images, shaped like `x` (B, C, H, W) in [0, 1]."""
        check_images(x)
        z = image = self.denoiser.encode(x)
        guide = self._guide(image)
        for i in range(self.passes):
            x_t, reverse_noise = self._noised(z, noise.child("pass", i))
            z = reverse(
                self.denoiser,
                x_t,
                self.times,
                reverse_noise,
                step=self.step,
                guide=guide,
                image=z,
                other_inputs=(image,),
            )
        return self.denoiser.decode(z)

    def walk(self, x: Tensor, noise: Noise) -> Iterator[tuple[float, Tensor]]:
        """Yield the path of `forward`, pass after pass, as (time left in all passes, image)."""
        z = self.denoiser.encode(x)
        guide = self._guide(z)

        def walk_once(pass_noise: Noise, z: Tensor) -> Iterator[tuple[float, Tensor]]:
            x_t, back = self._noised(z, pass_noise)
            return walk(self.denoiser, x_t, self.times, back, step=self.step, guide=guide)

        walks = [(self.t, partial(walk_once, noise.child("pass", i))) for i in range(self.passes)]
        for t, state in walk_in_sequence(z, walks):
            yield t, self.denoiser.decode(state)

    def with_fewer_steps(self, steps: int | None = None, matched: bool = True) -> Purifier:
        """The same purifier with fewer steps per pass, on the same noise path if `matched`."""
        return with_fewer_steps(self, steps, matched)

    def _noised(self, z: Tensor, pass_noise: Noise) -> tuple[Tensor, Noise]:
        """The noised state that a pass starts from, and the noise of its reverse process."""
        x_t = self.denoiser.perturb(z, self._noised_to, pass_noise.child("forward"))
        return x_t, pass_noise.child("reverse")

    def _guide(self, image: Tensor) -> Descent | None:
        if not self.scale or self.distance == "none":
            return None
        share = (
            3
            * self.scale
            / (2 * self.eps)
            / (len(image) if self.batch_mean else self.reference_batch_size)
        )
        return Descent(
            self._distance,
            image,
            lambda now: share * _rate(now),
            self.step,
            noised=self.anchor == "noised",
        )

    def _distance(self, state: Tensor, anchor: Tensor, noise: Noise) -> Tensor:
        if self.distance == "mse":
            return mse(state, anchor)
        if self.distance == "ssim-padded":
            state, anchor = (F.pad(image, [WINDOW_SIZE // 2] * 4) for image in (state, anchor))
        return 1 - ssim(state, anchor)


def _rate(now: Scales) -> Tensor:
    return now.sigma / now.alpha
