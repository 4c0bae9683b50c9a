"""The adjoint gradient of DiffPure's released code, for comparison; it is not exact.

Nie et al. (2022, proposition 3.3) differentiate with torchsde's `sdeint_adjoint`. Its forward pass
takes Euler-Maruyama steps; its backward pass takes Milstein steps, on a grid that is shifted by the
cut at the end and along a trajectory that it simulates anew. The two passes agree only in the limit
of small steps. Needs the extra `adjoint`.
"""

import importlib
import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.reverse import euler_maruyama, reverse
from unfool.noise import Noise

RELATIVE_TOLERANCE = 1e-6  # a time within this share of a step of a grid time counts as that time


def check_torchsde() -> None:
    """Check that torchsde is installed.

    Raises:
        ValueError: torchsde is not installed.
    """
    _torchsde()


def reverse_adjoint(denoiser: Denoiser, x: Tensor, times: Tensor, noise: Noise) -> Tensor:
    """Run `reverse` with Euler-Maruyama steps and torchsde's adjoint gradient.

    The values are those of `reverse`; the gradient reaches only `x`. The backward pass costs a
    second forward pass and one Milstein step per step.

    Args:
        denoiser: The model.
        x: States (B, C, H, W) in the denoiser's space, at `times[0]`.
        times: Falling times, as returned by `even`.
        noise: The noise, as for `reverse`.

    Raises:
        ValueError: torchsde is not installed.
    """
    torchsde = _torchsde()

    def run(x_t: Tensor) -> Tensor:
        return reverse(denoiser, x_t, times, noise, step=euler_maruyama)

    if not (torch.is_grad_enabled() and x.requires_grad):
        return run(x)

    def solve(x_t: Tensor) -> Tensor:
        when, h = 1 - times.double().cpu(), float(times[0]) / (len(times) - 1)
        states = torchsde.sdeint_adjoint(
            _Backwards(denoiser, x_t.shape),
            x_t.flatten(1),
            when[[0, -1]],
            bm=_brownian(torchsde, x_t.detach(), when.tolist(), noise),
            method="euler",
            dt=h,
            adjoint_params=(),
        )
        return states[-1].view(x_t.shape)

    return _Solved.apply(run, solve, x)  # pyright: ignore[reportReturnType]


class _Solved(torch.autograd.Function):
    """The values of `run` with the gradient of `solve`."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Tensor], solve: Any, x: Tensor) -> Tensor:
        ctx.solve = solve
        ctx.save_for_backward(x)
        return run(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            return None, None, torch.autograd.grad(ctx.solve(x), x, gradient)[0]


class _Backwards(nn.Module):
    """The reverse SDE in torchsde's form: flat states, and the rising time 1 - t."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, denoiser: Denoiser, shape: torch.Size):
        super().__init__()
        self.denoiser, self.shape = denoiser, shape

    def f(self, when: Tensor, y: Tensor) -> Tensor:
        """The drift beta (x / 2 + score)."""
        x_t = y.view(self.shape)
        now = self.denoiser.schedule(1 - when)
        score = (now.alpha * self.denoiser(x_t, now.t) - x_t) / now.sigma**2
        return (now.beta * (0.5 * x_t + score)).flatten(1)

    def g(self, when: Tensor, y: Tensor) -> Tensor:
        """The diffusion sqrt(beta)."""
        return torch.sqrt(self.denoiser.schedule(1 - when).beta).to(y).expand_as(y)


def _brownian(torchsde: Any, x: Tensor, grid: list[float], noise: Noise) -> Any:
    """The Brownian path whose increments over `grid` are the draws of `reverse`.

    Between two grid times it is a Brownian bridge, which the backward pass evaluates once.
    """
    path = [torch.zeros_like(x.flatten(1))]
    for k in range(len(grid) - 1):
        draw = noise.child(k).normal(x).flatten(1)
        path.append(path[-1] + math.sqrt(grid[k + 1] - grid[k]) * draw)

    def path_at(when: Tensor) -> Tensor:
        time = float(when)
        k = min(max(bisect_right(grid, time) - 1, 0), len(grid) - 2)
        h = grid[k + 1] - grid[k]
        share = min(max((time - grid[k]) / h, 0.0), 1.0)
        interpolated = (1 - share) * path[k] + share * path[k + 1]
        if min(share, 1 - share) < RELATIVE_TOLERANCE:
            return interpolated
        bridge = noise.child(k, "bridge").normal(x).flatten(1)
        return interpolated + math.sqrt(share * (1 - share) * h) * bridge

    class Path(torchsde.BaseBrownian):
        dtype, device, shape = x.dtype, x.device, path[0].shape
        levy_area_approximation = "none"

        def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False):
            return path_at(tb) - path_at(ta)

        def __repr__(self):
            return "the path of the purifier's noise"

    return Path()


def _torchsde() -> Any:
    try:
        return importlib.import_module("torchsde")
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            "the adjoint gradient needs torchsde: run pip install 'unfool[adjoint]', or use the "
            "view `exact`"
        ) from error
