"""The U-Net of the package: diffusers' `UNet2DModel`, on pixels or on patches of them."""

from collections.abc import Sequence
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F

from unfool.diffusion.denoiser import NetworkDenoiser, Prediction
from unfool.diffusion.schedule import Schedule


class PatchedUNet(nn.Module):
    """A U-Net that works on `patch` x `patch` pixels at once, each a channel of its own."""

    def __init__(self, unet: nn.Module, patch: int):
        super().__init__()
        self.unet, self.patch = unet, patch

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction for x (B, C, H, W) at times (B,) and labels (B,)."""
        x = F.pixel_unshuffle(x, self.patch)
        out = self.unet(x, time, label, return_dict=False)[0]
        return F.pixel_shuffle(out, self.patch)


def unet(
    *,
    channels: int = 3,
    size: int = 32,
    widths: Sequence[int] = (64, 128, 256),
    layers: int = 1,
    attention: Sequence[int] = (),
    patch: int = 1,
    groups: int = 32,
    dropout: float = 0.0,
    classes: int = 0,
    predicts: Prediction = "noise",
    schedule: Schedule | None = None,
    time: Literal["scaled", "score_sde", "index"] = "scaled",
    clip_x0: bool = False,
) -> NetworkDenoiser:
    """A U-Net denoiser with random weights.

    Args:
        channels: Of an image.
        size: Its height and width in pixels.
        widths: Channels of each level; each level has half the resolution of the one before.
        layers: Residual blocks of a level.
        attention: The levels (from 0) that have self-attention; the middle has it if any does.
        patch: Pixels per side that are taken together; the first level works at `size / patch`.
        groups: Of the group normalization; each width is a multiple of it.
        dropout: The rate in the residual blocks.
        classes: Labels to condition on, besides the null class; 0 for none.
        predicts: What the network says (see `Network`).
        schedule: The noise schedule; continuous VP if None.
        time: How the network is told the time (see `Network`).
        clip_x0: Whether x_hat is clipped to [-1, 1].
    """
    if size % (patch * 2 ** (len(widths) - 1)):
        raise ValueError(
            f"size must be a multiple of patch x 2^(levels - 1) = {patch * 2 ** (len(widths) - 1)}, "
            f"not {size}"
        )
    if any(width % groups for width in widths):
        raise ValueError(f"every width must be a multiple of groups = {groups}, not {list(widths)}")
    from diffusers.models.unets.unet_2d import UNet2DModel

    looks = [level in attention for level in range(len(widths))]
    inner = UNet2DModel(
        sample_size=size // patch,
        in_channels=channels * patch**2,
        out_channels=channels * patch**2,
        block_out_channels=cast(Any, tuple(widths)),
        layers_per_block=layers,
        down_block_types=cast(Any, tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in looks)),
        up_block_types=cast(Any, tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in looks[::-1])),
        add_attention=any(looks),
        norm_num_groups=groups,
        attention_head_dim=min(64, *widths),
        dropout=dropout,
        num_class_embeds=classes + 1 if classes else None,
    )
    for name, module in inner.named_modules():
        if name.endswith(("to_q", "to_k", "to_v")):
            module.register_forward_pre_hook(_in_one_piece)
    network = PatchedUNet(inner, patch)
    shape = (channels, size, size)
    return NetworkDenoiser(
        network,
        schedule=schedule,
        predicts=predicts,
        shape=shape,
        classes=classes,
        time=time,
        clip_x0=clip_x0,
    )


def _in_one_piece(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of the transposed view that diffusers hands attention, torch makes slow batched products."""
    return tuple(x.contiguous() for x in inputs)
