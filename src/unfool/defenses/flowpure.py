"""FlowPure (Collaert et al., 2025): a straight, noise-free path from the image to a clean one."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from unfool.argument_checks import check_images
from unfool.defenses.fewer_steps import with_fewer_steps
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.reverse import DDIM, reverse, walk
from unfool.diffusion.schedule import Schedule, pixel_noise, time_of_noise
from unfool.noise import Noise
from unfool.protocols import Purifier
from unfool.ranges import Count, Time, check_arguments
from unfool.runtime.text import html_repr, short_repr


class FlowPure(nn.Module):
    """A purifier of even Euler steps along a flow from the image at time t to a clean one at 0.

    With s = sigma / alpha, the flow's state is x / alpha, and its velocity along falling s is
    (x_hat - x / alpha) / s. The denoiser is trained for it with the objective `adversarial-bridge`
    and `path: flow`, and the input image takes the place of the end of that path. With an ordinary
    denoiser and `noised`, this is the paper's Gaussian variant.

    It is deterministic, except that `noised` draws from the stream `forward`.

    Args:
        denoiser: A denoiser that was trained on the straight path.
        t: The time at the end of the path, in (0, 1]: `t_max` of the training.
        steps: Euler steps, each one call of the network; the release uses 9 (between 10 times).
        noised: Whether noise of time t is added to the image first (the Gaussian variant).

    Raises:
        ValueError: An option is out of range, or the schedule has fewer times below t.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(
        self, denoiser: Denoiser, *, t: Time = 0.1, steps: Count = 9, noised: bool = False
    ):
        super().__init__()
        check_arguments(FlowPure, locals())
        self.denoiser, self.t, self.steps, self.noised = denoiser, t, steps, noised
        self.times, self.step = straight(denoiser.schedule, t, steps), DDIM()

    @property
    def pixel_noise(self) -> float:
        """The noise put on the image, in units of [0, 1] pixels."""
        return pixel_noise(self.denoiser.schedule, self.t) if self.noised else 0.0

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Purified images, shaped like `x` (B, C, H, W) in [0, 1]."""
        check_images(x)
        x_t, back = self._start(x, noise)
        return self.denoiser.decode(reverse(self.denoiser, x_t, self.times, back, step=self.step))

    def walk(self, x: Tensor, noise: Noise) -> Iterator[tuple[float, Tensor]]:
        """Yield the path of `forward`, (time, image) from the input image to the purified one."""
        x_t, back = self._start(x, noise)
        for t, state in walk(self.denoiser, x_t, self.times, back, step=self.step):
            alpha = self.denoiser.schedule(torch.tensor(t, dtype=torch.float64)).alpha
            yield t, self.denoiser.decode(state / alpha)

    def with_fewer_steps(self, steps: int | None = None, matched: bool = True) -> Purifier:
        """The same purifier in fewer steps (`with_fewer_steps`)."""
        return with_fewer_steps(self, steps, matched)

    def _start(self, x: Tensor, noise: Noise) -> tuple[Tensor, Noise]:
        """The state at the path's end, and the noise for `reverse`, which does not use it."""
        z, back = self.denoiser.encode(x), noise.child("reverse")
        if self.noised:
            return self.denoiser.perturb(z, self.times[0], noise.child("forward")), back
        return self.denoiser.schedule(self.times[0]).alpha * z, back


def straight(schedule: Schedule, t: float, steps: int) -> Tensor:
    """Falling times (steps + 1,) from `t` to 0, between which sigma / alpha falls evenly.

    Raises:
        ValueError: A discrete chain has fewer times below `t`.
    """
    sizes = [pixel_noise(schedule, t) * (1 - i / steps) for i in range(1, steps)]
    # a little less than `size`, so that rounding errors do not skip a step
    times = [time_of_noise(schedule, size * (1 - 1e-12)) for size in sizes]
    all_times = torch.tensor([t, *times, 0.0], dtype=torch.float64)
    if not bool((all_times.diff() < 0).all()):
        raise ValueError(
            f"steps = {steps} is more than the number of the schedule's times below t = {t}: take "
            "fewer"
        )
    return all_times
