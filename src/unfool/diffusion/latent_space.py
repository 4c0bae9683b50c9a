"""Latent models: a denoiser in an autoencoder's space, conditioned on a text or a class number.

An image is resized and encoded once, however often its latent is used, so that a gradient takes one
vector-Jacobian product through the encoder. The network may compute in half precision. Everything
around it keeps the precision of its input, and gradients are rescaled on their way through it,
because those of a mean over pixels and draws are too small for float16.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.schedule import Schedule

MAX_IMAGES_AT_ONCE = (
    4  # images in the autoencoder at a time: at 512 pixels, its activations take gigabytes
)


class Latent(NetworkDenoiser):
    """A denoiser whose network works on the latents of an autoencoder.

    For purification, images must have the model's size (see `defenses.resized`). Train the network
    only; training uses the first wording of each class.

    Args:
        network: Called with (z_t, time (B,), labels (B,)), where the label `classes` is the null
            label.
        vae: A diffusers `AutoencoderKL`.
        size: Height and width of the images that are encoded, in pixels.
        schedule: The noise schedule; `network` gets the index of a step as its time.
        predicts: `"noise"`, `"image"` or `"velocity"`.
        classes: The number of class labels.
        wordings: The number of prompts of each class (see `Denoiser`).

    Raises:
        ValueError: The size is not a multiple of the autoencoder's factor.
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
        """Encode images (B, C, H, W) in [0, 1], of any size, as scaled means of the posterior.

        The shorter side is resized to the model's size (bicubic, antialiased, not clipped), and the
        longer one is cropped to its middle.

        Raises:
            ValueError: The images do not have the model's number of channels.
        """
        channels, size, _ = self.shape or (x.shape[1], 0, 0)
        if x.shape[1] != channels:
            raise ValueError(
                f"the model takes images of {channels} channels, and these have {x.shape[1]}: "
                "convert the images"
            )
        return _in_batches(self._code, square(x, size))

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents to images in [0, 1], of the model's own size."""
        return _in_batches(self._image, z)

    def _code(self, x: Tensor) -> Tensor:
        mean = self.vae.encode((2 * x - 1).to(self.vae.dtype)).latent_dist.mean
        return (mean.to(x) - self._shift) * self._scale

    def _image(self, z: Tensor) -> Tensor:
        out = self.vae.decode((z / self._scale + self._shift).to(self.vae.dtype)).sample
        return (out.to(z) + 1) / 2


class Prompted(nn.Module):
    """A diffusers `UNet2DConditionModel` conditioned on the text embeddings of labels.

    Args:
        unet: The network.
        texts: Text embeddings (P, L, D), in any order.
        places: The index in `texts` for each label, (labels,).
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
        return in_network_precision(
            lambda z: self.unet(z, time, texts, return_dict=False)[0], z_t, self.unet
        )


class Numbered(nn.Module):
    """A diffusers `DiTTransformer2DModel` conditioned on class numbers.

    Its last channels, which predict the variance, are dropped.

    Args:
        transformer: The network.
        places: The network's class number for each label, (labels,).
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

        return in_network_precision(run, z_t, self.transformer)


def factor_of(vae: Any) -> int:
    """The number of image pixels per latent along a side, for an `AutoencoderKL`."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def square(x: Tensor, size: int) -> Tensor:
    """Resize images (B, C, H, W) to `size` (bicubic, antialiased), and crop the middle square."""
    high, wide = x.shape[2:]
    if min(high, wide) != size:
        ratio = size / min(high, wide)
        high, wide = (max(size, round(side * ratio)) for side in (high, wide))
        x = F.interpolate(x, size=(high, wide), mode="bicubic", antialias=True)
    top, left = (high - size) // 2, (wide - size) // 2
    return x[:, :, top : top + size, left : left + size]


def in_network_precision(run: Callable[[Tensor], Tensor], x: Tensor, network: Any) -> Tensor:
    """Compute `run(x)`, which calls `network`, in its precision; return it in that of `x`.

    If the two precisions differ, the backward pass divides the gradient of each row by a power of
    2, so that no entry exceeds 1, before it goes through the network, and multiplies it back after
    that. If weights are in training, it does not, because their gradients would include the scale.
    """
    if network.dtype == x.dtype:
        return run(x).to(x)  # under autocast, the output may have another precision
    if not x.requires_grad or any(p.requires_grad for p in network.parameters()):
        return run(x.to(network.dtype)).to(x)
    scales: list[Tensor] = []
    converted = _Enter.apply(x, network.dtype, scales)
    return _Leave.apply(run(converted), x.dtype, scales)  # pyright: ignore


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, scales: list[Tensor]) -> Tensor:
        ctx.dtype, ctx.scales = x.dtype, scales
        return x.to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        return gradient.to(ctx.dtype) * ctx.scales[-1].to(ctx.dtype), None, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, dtype: torch.dtype, scales: list[Tensor]) -> Tensor:
        ctx.dtype, ctx.scales = out.dtype, scales
        return out.to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        largest = gradient.detach().flatten(1).abs().amax(1)
        scale = torch.ldexp(torch.ones_like(largest), largest.frexp().exponent)
        scale = scale.view(-1, *[1] * (gradient.ndim - 1))
        ctx.scales.append(scale)
        return (gradient / scale).to(ctx.dtype), None, None


def _in_batches(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply `function` to a few images at a time; the backward pass recomputes several parts."""
    parts = x.split(MAX_IMAGES_AT_ONCE)
    if len(parts) == 1:
        return function(x)
    recompute = torch.is_grad_enabled() and x.requires_grad
    outputs = [
        checkpoint(function, part, use_reentrant=False, preserve_rng_state=False)
        if recompute
        else function(part)
        for part in parts
    ]
    return torch.cat(outputs)  # pyright: ignore
