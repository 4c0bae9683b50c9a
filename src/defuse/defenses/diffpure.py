"""DiffPure (Nie et al., 2022): noise the image to time t*, then run the model back."""

from collections.abc import Iterator
from typing import Literal, get_args

from torch import Tensor, nn

from defuse.diffusion.denoise import Denoiser
from defuse.diffusion.reverse import (
    DDIM,
    END,
    Ancestral,
    Step,
    euler_maruyama,
    even,
    flow,
    reverse,
    strided,
    walk,
)
from defuse.diffusion.schedule import Discrete, chain_length, pixel_noise
from defuse.noise import Noise

Sampler = Literal["sde", "ddpm", "ddim", "ode"]
Variance = Literal["small", "large"]
Forward = Literal["continuous", "discrete"]


class DiffPure(nn.Module):
    """Forward noise to t*, then back by the reverse SDE, DDPM, DDIM or the flow ODE.

    It draws from the streams `forward` and `reverse`. Nothing is clipped, as in the release.

    Args:
        denoiser: The diffusion model.
        t: t*, the time to noise to, in (0, 1]; 0.1 is 100 of 1000 steps.
        steps: How many steps lead back, each one call of the network. Of DDPM and DDIM no more than
            the chain has below t*.
        sampler: `"sde"` (Euler-Maruyama, the paper's), `"ddpm"`, `"ddim"` or `"ode"`.
        variance: Of `"ddpm"`: `"small"` (posterior) or `"large"` (forward).
        eta: Of `"ddim"`: the share of fresh noise, 0 to 1.
        forward: `"continuous"` noises by the denoiser's own schedule, as the paper writes;
            `"discrete"` by the linear chain of 1000 steps, as the released code does (sigma 0.3209
            instead of 0.3221 at t* = 0.1).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        t: float = 0.1,
        steps: int = 100,
        sampler: Sampler = "sde",
        variance: Variance = "small",
        eta: float = 0.0,
        forward: Forward = "continuous",
    ):
        super().__init__()
        if not 1e-4 <= t <= 1:
            raise ValueError(f"t is a time from 0.0001 to 1 (0.1 is 100 of 1000), not {t}")
        for name, value, kinds in (
            ("sampler", sampler, Sampler),
            ("variance", variance, Variance),
            ("forward", forward, Forward),
        ):
            if value not in get_args(kinds):
                raise ValueError(f"{name} is one of {', '.join(get_args(kinds))}, not {value!r}")
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, not {steps}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be from 0 to 1, not {eta}")
        self.denoiser, self.t, self.steps = denoiser, t, steps
        self._noising = Discrete(1000) if forward == "discrete" else denoiser.schedule
        chain = chain_length(denoiser.schedule)
        jumps = sampler in ("ddpm", "ddim")
        if (jumps or isinstance(denoiser.schedule, Discrete)) and steps > round(t * chain):
            raise ValueError(
                f"steps must be at most {round(t * chain)}: the chain of {chain} has no more below "
                f"t = {t}, not {steps}"
            )
        if not jumps and t / steps <= END:
            raise ValueError(f"steps must be below t / {END:g} = {t / END:.0f}, not {steps}")
        self.times = strided(t, steps, chain) if jumps else even(t, steps)
        choices: dict[Sampler, Step] = {
            "sde": euler_maruyama,
            "ddpm": Ancestral(variance),
            "ddim": DDIM(eta),
            "ode": flow,
        }
        self.step = choices[sampler]

    @property
    def pixel_noise(self) -> float:
        """The noise put on the image, in units of [0, 1] pixels."""
        return pixel_noise(self._noising, self.t)

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Purified images, shaped like `x` (B, C, H, W) in [0, 1]."""
        x_t, back = self._noised(x, noise), noise.fold("reverse")
        return self.denoiser.decode(reverse(self.denoiser, x_t, self.times, back, step=self.step))

    def walk(self, x: Tensor, noise: Noise) -> Iterator[tuple[float, Tensor]]:
        """The way back of `forward`: (time, image) from the noised image to the purified one."""
        x_t, back = self._noised(x, noise), noise.fold("reverse")
        for t, state in walk(self.denoiser, x_t, self.times, back, step=self.step):
            yield t, self.denoiser.decode(state)

    def _noised(self, x: Tensor, noise: Noise) -> Tensor:
        z, forward = self.denoiser.encode(x), noise.fold("forward")
        return self.denoiser.perturb(z, self.times[0], forward, self._noising)
