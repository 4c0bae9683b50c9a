"""Gradual purification (Lee and Kim, 2023): passes of DiffPure, the later ones with more noise."""

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor, nn

from unfool.argument_checks import check_images, images_of_any_range
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.sampling import SamplerName, Variance, walk_in_sequence
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.protocols import Correction, Step
from unfool.noise import Noise
from unfool.ranges import Count, Share, Time
from unfool.runtime.text import html_repr, short_repr

CIFAR = ((0.03, 30),) * 4 + ((0.05, 50),) * 2 + ((0.125, 125),) * 2


class Gradual(nn.Module):
    """DiffPure in several passes, each of which starts from the result of the previous one.

    Pass i draws from the streams `forward` and `reverse` below ("pass", i).

    Args:
        denoiser: The diffusion model.
        passes: (t*, steps) of each pass. The default is the paper's for CIFAR-10, which takes the
            vote of 10 purifications (`aggregate.Aggregated`).
        sampler: `"sde"`, `"ddpm"` (the paper's), `"ddim"`, `"ode"`, `"heun"`, or your own step.
        variance: The variance of a `"ddpm"` step: `"small"` (posterior) or `"large"` (forward).
        eta: The share of fresh noise in `"ddim"` and `"heun"`, 0 to 1.
        correction: Changes each estimate of the clean image (`protocols.Correction`), or None. In
            each pass, it gets the image that the pass started from.

    Raises:
        ValueError: The list of passes is empty, or one of them is out of range.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        passes: Sequence[tuple[Time, Count]] = CIFAR,
        sampler: SamplerName | Step = "ddpm",
        variance: Variance = "small",
        eta: Share = 0.0,
        correction: Correction | None = None,
    ):
        super().__init__()
        if not passes:
            raise ValueError("passes must be a list of at least one pair (t, steps)")
        self.denoiser = denoiser
        self.passes = nn.ModuleList()
        for i, (t, steps) in enumerate(passes):
            options = {"sampler": sampler, "variance": variance, "eta": eta}
            try:
                purify = DiffPure(denoiser, t=t, steps=steps, correction=correction, **options)
                self.passes.append(purify)
            except ValueError as error:
                raise ValueError(f"pass {i}: {error}") from error

    @property
    def pixel_noise(self) -> float:
        """The most noise put on the image in a pass, in units of [0, 1] pixels."""
        return max(purify.pixel_noise for purify in self.passes)  # pyright: ignore

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Purified images, shaped like `x` (B, C, H, W) in [0, 1]."""
        check_images(x)
        with images_of_any_range():  # what a pass returns is not clamped
            for i, purify in enumerate(self.passes):
                x = purify(x, noise.child("pass", i))
        return x

    def walk(self, x: Tensor, noise: Noise) -> Iterator[tuple[float, Tensor]]:
        """Yield the path of `forward`, pass after pass, as (time left in all passes, image)."""
        walks = [
            (purify.t, partial(purify.walk, noise=noise.child("pass", i)))  # pyright: ignore
            for i, purify in enumerate(self.passes)
        ]
        return walk_in_sequence(x, walks)  # pyright: ignore[reportArgumentType]
