"""The methods of differentiating a purifier that are compared, and the networks used for that."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unfool.defenses.coup import Confidence
from unfool.diffusion.adjoint import reverse_adjoint
from unfool.diffusion.denoiser import Denoiser, NetworkDenoiser
from unfool.diffusion.gradient import keep_graphs
from unfool.diffusion.reverse import Guide, Heun, Step, reverse, scales_along
from unfool.diffusion.schedule import Scales
from unfool.models.build import small_cnn
from unfool.models.unet import unet
from unfool.noise import Noise, seed_torch

Chain = Callable[[Tensor], Tensor]


class Case:
    """A chain of steps through a network: the times, the step, the noise, and a guide if any.

    Args:
        denoiser: The denoiser, whose weights this freezes.
        images: The batch size.
        times: Decreasing times (N + 1,).
        step: The step from one time to the next.
        guided: Whether a classifier guides (COUP), which needs second derivatives.
        device: Device to compute on.
        dtype: Data type to compute in.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        images: int,
        times: Tensor,
        step: Step | Heun,
        guided: bool = False,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        assert denoiser.shape is not None
        channels, size, _ = denoiser.shape
        frozen(denoiser)
        self.denoiser = denoiser.to(device, dtype)
        self.times, self.step, self.noise = times, step, Noise.of(0, range(images))
        like = torch.empty(images, *denoiser.shape, device=device, dtype=dtype)
        self.x = self.noise.child("x").normal(like)
        self.weigh = self.noise.child("weigh").normal(like)
        self.guide: Guide | None = None
        if guided:
            seed_torch(0, "classifier")
            classifier = frozen(small_cnn(channels, size)).to(device, dtype)
            self.guide = Confidence(classifier, denoiser, weight=1.0)

    @property
    def steps(self) -> int:
        """The number of steps of the chain."""
        return len(self.times) - 1

    def floor(self) -> None:
        """Run one forward pass of the network per step, and nothing else."""
        time = torch.full((len(self.x),), 50.0).to(self.x)
        network: nn.Module = self.denoiser.get_submodule("network")
        with torch.no_grad():
            for _ in range(self.steps):
                network(self.x, time)

    def purify(self) -> Tensor:
        """Run the chain without a gradient."""
        with torch.no_grad():
            return self.ours(self.x)

    def ours(self, x: Tensor) -> Tensor:
        """Run the chain with the package's own loop."""
        return reverse(self.denoiser, x, self.times, self.noise, step=self.step, guide=self.guide)

    def kept(self, graphs: int | None, x: Tensor) -> Tensor:
        """Run the package's loop and keep the graphs of `graphs` steps; None lets it choose."""
        with keep_graphs(graphs):
            return self.ours(x)

    def plain(self, x: Tensor) -> Tensor:
        """Run a plain loop, for autograd to differentiate."""
        for i in range(self.steps):
            x = self._advance(i, x)
        return x

    def checkpointed(self, x: Tensor) -> Tensor:
        """Run a plain loop with torch's checkpoint around each step."""
        for i in range(self.steps):
            x = checkpoint(partial(self._advance, i), x, use_reentrant=False)  # pyright: ignore
        return x

    def adjoint(self, x: Tensor) -> Tensor:
        """Run the chain with the gradient of DiffPure's release: torchsde's adjoint, weights frozen."""
        return reverse_adjoint(self.denoiser, x, self.times, self.noise)

    def _advance(self, i: int, x: Tensor) -> Tensor:
        now, then = scales_along(self.denoiser, self.times[i : i + 2])
        noise = self.noise.child(i)

        def estimate(x_t: Tensor, at: Scales) -> Tensor:
            x_hat = self.denoiser(x_t, at.t)
            if self.guide is None:
                return x_hat
            term = self.guide(x_t, x_hat, at, then, noise.child("guide"))
            return x_hat + at.sigma**2 / at.alpha * term

        if isinstance(self.step, Heun):
            return self.step.solve(estimate, x, now, then, noise)
        return self.step(x, estimate(x, now), now, then, noise)

    def gradient(self, chain: Chain) -> Tensor:
        """The gradient of a fixed linear function of a chain's output."""
        x = self.x.clone().requires_grad_()
        return torch.autograd.grad((self.weigh * chain(x)).sum(), x)[0]

    def ways(self) -> dict[str, Chain]:
        """The methods of computing the gradient, by name."""
        chains: dict[str, Chain] = {
            "one activation set": partial(self.kept, 0),
            "automatic": partial(self.kept, None),
            "all kept": partial(self.kept, self.steps),
            "plain autograd": self.plain,
            "torch checkpoint": self.checkpointed,
        }
        if self.guide is None and find_spec("torchsde"):
            chains["torchsde adjoint"] = self.adjoint
        return chains


def frozen(network: nn.Module) -> nn.Module:
    """Put a network in evaluation mode, and turn off the gradients of its weights."""
    return network.eval().requires_grad_(False)


class _Pair(nn.Module):
    """Two convolutions whose output depends on the time."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x) + time[:, None, None, None] / 100))


def pair() -> Denoiser:
    """A denoiser with two convolutions, for 8 x 8 pixels."""
    seed_torch(0, "pair")
    return NetworkDenoiser(_Pair(), shape=(3, 8, 8))


def tiny() -> Denoiser:
    """A U-Net for 16 x 16 pixels, with attention."""
    seed_torch(0, "tiny")
    return unet(size=16, widths=(16, 32), groups=8, attention=(1,))


def small() -> Denoiser:
    """A U-Net with the architecture of the shipped CIFAR-10 denoiser (4.2 M parameters)."""
    seed_torch(0, "small")
    return unet(widths=(64, 128, 128), patch=2, groups=16, predicts="edm")


def base() -> Denoiser:
    """A U-Net with the architecture of google/ddpm-cifar10-32 (35.7 M parameters; Ho et al., 2020)."""
    seed_torch(0, "base")
    return unet(widths=(128, 256, 256, 256), layers=2, attention=(1,))
