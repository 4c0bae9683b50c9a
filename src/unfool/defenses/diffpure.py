"""DiffPure (Nie et al., 2022): add noise up to time t*, then run the reverse process."""

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

from unfool.argument_checks import check_images
from unfool.defenses.fewer_steps import with_fewer_steps
from unfool.defenses.sampling import SamplerName, Variance, make_sampler
from unfool.diffusion.adjoint import check_torchsde, reverse_adjoint
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.protocols import Correction, Guide, ImageGuide, NoiseLevel, Shaping, Step
from unfool.diffusion.reverse import Heun, euler_maruyama, reverse, walk
from unfool.diffusion.schedule import Discrete, Scales, pixel_noise, scales_of_images
from unfool.noise import Noise
from unfool.protocols import Purifier
from unfool.ranges import Count, Share, Time, check_arguments
from unfool.runtime.text import html_repr, short_repr

Forward = Literal["continuous", "discrete"]


class DiffPure(nn.Module):
    """A purifier that noises to t*, then denoises by the reverse SDE, DDPM, DDIM, ODE, or Heun.

    It draws from the streams `forward` and `reverse`. Nothing is clipped, as in the release (Nie et
    al., 2022).

    Args:
        denoiser: The diffusion model.
        t: t*, the time to noise to, in (0, 1]; 0.1 is 100 of 1000 steps.
        steps: Reverse steps, each one call of the network (with `"heun"` two, except the last).
            DDPM and DDIM allow at most as many as the schedule has below t*.
        sampler: `"sde"` (Euler-Maruyama, the paper's), `"ddpm"`, `"ddim"`, `"ode"`, `"heun"`, or
            your own step (`protocols.Step`).
        variance: The variance of a `"ddpm"` step: `"small"` (posterior) or `"large"` (forward).
        eta: The share of fresh noise in `"ddim"` and `"heun"`, 0 to 1.
        forward: `"continuous"` noises by the denoiser's own schedule, as the paper writes;
            `"discrete"` by the linear chain of 1000 steps, as the released code does (sigma 0.3209
            instead of 0.3221 at t* = 0.1).
        guide: A term to add to the score (`protocols.Guide`), or None. It draws from the stream
            `guide` below that of a step.
        correction: Changes each estimate of the clean image before the guide sees it
            (`protocols.Correction`), or None.
        noise_level: Chooses the t* of each image (`protocols.NoiseLevel`), or None for `t`. All
            images take `steps` steps, whose lengths are in proportion to their t*. It draws from
            the stream `level` below `forward`, and cannot be used with `"heun"`.
        shaping: Shapes the forward noise by the image (`protocols.Shaping`), or None.

    Raises:
        ValueError: An option is out of range, or there is a noise level with the sampler `"heun"`.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        t: Time = 0.1,
        steps: Count = 100,
        sampler: SamplerName | Step = "sde",
        variance: Variance = "small",
        eta: Share = 0.0,
        forward: Forward = "continuous",
        guide: Guide | ImageGuide | None = None,
        correction: Correction | None = None,
        noise_level: NoiseLevel | None = None,
        shaping: Shaping | None = None,
    ):
        super().__init__()
        check_arguments(DiffPure, locals())
        self.denoiser, self.t, self.steps = denoiser, t, steps
        self.sampler, self.variance, self.eta = sampler, variance, eta  # for `repr`
        self.times, self.step = make_sampler(denoiser, t, steps, sampler, variance, eta)
        if noise_level is not None and isinstance(self.step, Heun):
            raise ValueError(
                "with a noise level, each image has its own times, which the sampler `heun` does "
                "not support: use `sde`"
            )
        self.guide, self.correction = guide, correction
        self.noise_level, self.shaping = noise_level, shaping
        self._noising = Discrete(1000) if forward == "discrete" else denoiser.schedule

    @property
    def pixel_noise(self) -> float:
        """The noise put on an image that is noised to `t`, in units of [0, 1] pixels."""
        return pixel_noise(self._noising, self.t)

    def add_noise(self, x: Tensor, noise: Noise) -> Tensor:
        """Images with the forward noise that `forward` adds, not scaled by alpha."""
        z, eps, _, scales = self._forward_process(x, noise)
        return self.denoiser.decode(z + scales.sigma / scales.alpha * eps)

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Purified images, shaped like `x` (B, C, H, W) in [0, 1]."""
        check_images(x)
        z, x_t, start_times, reverse_noise = self._noised(x, noise)
        options = self._reverse_options() | {"image": z, "start_times": start_times}
        x_0 = reverse(self.denoiser, x_t, self.times, reverse_noise, **options)
        return self.denoiser.decode(x_0)

    def walk(self, x: Tensor, noise: Noise) -> Iterator[tuple[float, Tensor]]:
        """Yield the reverse path of `forward` as (time, image), from noised to purified image."""
        z, x_t, start_times, reverse_noise = self._noised(x, noise)
        options = self._reverse_options() | {"image": z, "start_times": start_times}
        for t, state in walk(self.denoiser, x_t, self.times, reverse_noise, **options):
            yield t, self.denoiser.decode(state)

    def adjoint(self) -> Purifier:
        """The same purifier with the gradient of the release, which is not exact.

        Raises:
            ValueError: The sampler is not `"sde"`, there is a guide, a correction, or a noise
                level, or torchsde is not installed.
        """
        if self.step is not euler_maruyama or self.guide or self.correction or self.noise_level:
            raise ValueError(
                "the adjoint gradient needs the sampler `sde` without a guide, a correction, or a "
                "noise level: use the view `exact`"
            )
        check_torchsde()

        def purify(x: Tensor, noise: Noise) -> Tensor:
            _, x_t, _, reverse_noise = self._noised(x, noise)
            return self.denoiser.decode(
                reverse_adjoint(self.denoiser, x_t, self.times, reverse_noise)
            )

        return purify

    def with_fewer_steps(self, steps: int | None = None, matched: bool = True) -> Purifier:
        """The same purifier in fewer steps, on the same noise path if `matched`.

        Raises:
            ValueError: There are not that many steps, or `matched` is true and there is a noise
                level.
        """
        if matched and self.noise_level:
            raise ValueError(
                "with a noise level, each image has its own times, so fewer steps cannot follow "
                "the same noise path: use the view `surrogate` or `exact`"
            )
        return with_fewer_steps(self, steps, matched)

    def _reverse_options(self) -> dict[str, Any]:
        return {"step": self.step, "guide": self.guide, "correction": self.correction}

    def _noised(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor | None, Noise]:
        """The encoded images, x_t at t*, the t* of each, and the noise for the reverse process."""
        z, eps, start_times, scales = self._forward_process(x, noise)
        return z, scales.alpha * z + scales.sigma * eps, start_times, noise.child("reverse")

    def _forward_process(
        self, x: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor | None, Scales]:
        """The encoded images, the noise in x_t, and the t* of each with its scales."""
        z = self.denoiser.encode(x)
        eps = noise.child("forward").normal(z)
        if self.shaping is not None:
            eps = self.shaping(eps, z)
        start_times = self._start_times(z, noise.child("forward", "level"))
        scales = (
            self._noising(self.times[0])
            if start_times is None
            else scales_of_images(self._noising, start_times)
        )
        return z, eps, start_times, scales

    def _start_times(self, z: Tensor, noise: Noise) -> Tensor | None:
        """The t* of each image (B,), or None if all have the same."""
        if self.noise_level is None:
            return None
        start_times = self.noise_level(z, self.t, noise)
        if start_times.shape != z.shape[:1] or not bool(
            ((start_times >= 1e-4) & (start_times <= 1)).all()
        ):
            raise ValueError(
                f"the noise level returned {start_times.detach().flatten()[:4].tolist()} of shape "
                f"{tuple(start_times.shape)} for {len(z)} images: it must return one time from "
                "0.0001 to 1 for each image"
            )
        return start_times.to(z)
