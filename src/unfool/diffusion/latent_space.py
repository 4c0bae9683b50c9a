"""Latent models: a denoiser in the space of an autoencoder, conditional on a text or a class number.

An image is resized and encoded once, whatever is then asked of it, so that a gradient takes one
vector-Jacobian product through the encoder. The network may compute in a half precision: everything
around it stays in the precision of its input, and gradients are carried through it at a scale of their
own, because those of a mean over pixels and draws are less than float16 can hold.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.schedule import Schedule

AT_ONCE = 4  # images in the autoencoder at a time: at 512 pixels its activations are gigabytes


class Latent(NetworkDenoiser):
    """A network on the latents of an autoencoder.

    For purification its images have to be of its own size (see `defenses.resized`). The network alone
    is to be trained; a class with several wordings is then told in its first.

    Args:
        network: Called with (z_t, time (B,), labels (B,)), where the label `classes` is the null one.
        vae: diffusers' `AutoencoderKL`.
        size: Height and width of the images that are encoded, in pixels.
        schedule: The noise schedule; `network` is told the index of its steps.
        predicts: `"noise"`, `"image"` or `"velocity"`.
        classes: How many labels it knows.
        wordings: In how many ways each class can be told (see `Denoiser`).

    Raises:
        ValueError: The size is no multiple of the autoencoder's factor.
    """

    resizes = True

    def __init__(
        self,
        network: nn.Module,
        vae: Any,
        *,
        size: int,
        schedule: Schedule,
        predicts: Literal["noise", "image", "velocity"],
        classes: int,
        wordings: tuple[int, ...] = (),
    ):
        factor = factor_of(vae)
        if size < 1 or size % factor:
            raise ValueError(f"size must be a multiple of {factor} pixels, not {size}")
        shape = (vae.config["in_channels"], size, size)
        super().__init__(
            network,
            schedule=schedule,
            predicts=predicts,
            shape=shape,
            classes=classes,
            time="index",
        )
        self.vae, self.wordings = vae, wordings
        self._scale: float = vae.config["scaling_factor"]
        self._shift: float = vae.config["shift_factor"] or 0.0

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) of [0, 1], of any size, to latents: means of the posterior, scaled.

        The shorter side is resized to the model's (bicubic, antialiased, not clipped), and the middle
        of the longer one is taken.

        Raises:
            ValueError: They have not as many channels as the model.
        """
        channels, size, _ = self.shape or (x.shape[1], 0, 0)
        if x.shape[1] != channels:
            raise ValueError(
                f"the model takes images of {channels} channels, and these have {x.shape[1]}: "
                "convert the images"
            )
        return _in_parts(self._code, square(x, size))

    def decode(self, z: Tensor) -> Tensor:
        """Latents to images of [0, 1], of the model's own size."""
        return _in_parts(self._image, z)

    def _code(self, x: Tensor) -> Tensor:
        mean = self.vae.encode((2 * x - 1).to(self.vae.dtype)).latent_dist.mean
        return (mean.to(x) - self._shift) * self._scale

    def _image(self, z: Tensor) -> Tensor:
        out = self.vae.decode((z / self._scale + self._shift).to(self.vae.dtype)).sample
        return (out.to(z) + 1) / 2


class Prompted(nn.Module):
    """A diffusers `UNet2DConditionModel` that is told labels by the embeddings of their texts.

    Args:
        unet: The network.
        texts: Embeddings (P, L, D), in any order.
        places: Of each label, which of them is its text, (labels,).
    """

    texts: Tensor
    places: Tensor

    def __init__(self, unet: Any, texts: Tensor, places: Tensor):
        super().__init__()
        self.unet = unet
        self.register_buffer("texts", texts.to(unet.dtype), persistent=False)
        self.register_buffer("places", places, persistent=False)

    def forward(self, z_t: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """The prediction for z_t (B, C, H, W) at times (B,) and labels (B,)."""
        texts = self.texts[self.places[label]]
        return through(lambda z: self.unet(z, time, texts, return_dict=False)[0], z_t, self.unet)


class Numbered(nn.Module):
    """A diffusers `DiTTransformer2DModel` that is told classes by their numbers.

    What it says of the variance, in its last channels, is left out.

    Args:
        transformer: The network.
        places: Of each label, its number in the network, (labels,).
    """

    places: Tensor

    def __init__(self, transformer: Any, places: Tensor):
        super().__init__()
        self.transformer = transformer
        self.register_buffer("places", places, persistent=False)

    def forward(self, z_t: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """The prediction for z_t (B, C, H, W) at times (B,) and labels (B,)."""
        number = self.places[label]

        def run(z: Tensor) -> Tensor:
            return self.transformer(z, time, number, return_dict=False)[0][:, : z.shape[1]]

        return through(run, z_t, self.transformer)


def factor_of(vae: Any) -> int:
    """How many pixels of a side a latent of an `AutoencoderKL` stands for."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def square(x: Tensor, size: int) -> Tensor:
    """The middle square of images (B, C, H, W), resized to `size` (bicubic, antialiased)."""
    high, wide = x.shape[2:]
    if min(high, wide) != size:
        ratio = size / min(high, wide)
        high, wide = (max(size, round(side * ratio)) for side in (high, wide))
        x = F.interpolate(x, size=(high, wide), mode="bicubic", antialias=True)
    top, left = (high - size) // 2, (wide - size) // 2
    return x[:, :, top : top + size, left : left + size]


def through(run: Callable[[Tensor], Tensor], x: Tensor, network: Any) -> Tensor:
    """`run(x)` in the precision of the weights of `network`, which it calls, given back in that of `x`.

    In another precision, the gradient of each row is scaled by a power of 2, to 1 at the most, before it
    enters the network from behind, and back in front of it. Where weights are in training, which would
    see the scale, it is not.
    """
    if network.dtype == x.dtype:
        return run(x).to(x)  # under autocast it may be another
    if not x.requires_grad or any(p.requires_grad for p in network.parameters()):
        return run(x.to(network.dtype)).to(x)
    carried: list[Tensor] = []
    inside = _Enter.apply(x, network.dtype, carried)
    return _Leave.apply(run(inside), x.dtype, carried)  # pyright: ignore


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: torch.dtype, carried: list[Tensor]) -> Tensor:
        ctx.kind, ctx.carried = x.dtype, carried
        return x.to(kind)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        return gradient.to(ctx.kind) * ctx.carried[-1].to(ctx.kind), None, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, kind: torch.dtype, carried: list[Tensor]) -> Tensor:
        ctx.kind, ctx.carried = out.dtype, carried
        return out.to(kind)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        most = gradient.detach().flatten(1).abs().amax(1)
        scale = torch.ldexp(torch.ones_like(most), most.frexp().exponent)
        scale = scale.view(-1, *[1] * (gradient.ndim - 1))
        ctx.carried.append(scale)
        return (gradient / scale).to(ctx.kind), None, None


def _in_parts(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function` of a few images at a time; more than these are computed again on the way back."""
    parts = x.split(AT_ONCE)
    if len(parts) == 1:
        return function(x)
    again = torch.is_grad_enabled() and x.requires_grad
    done = [
        checkpoint(function, part, use_reentrant=False, preserve_rng_state=False)
        if again
        else function(part)
        for part in parts
    ]
    return torch.cat(done)  # pyright: ignore
