"""The package's U-Net as a denoiser."""

from collections.abc import Sequence

from unfool.diffusion.denoiser import NetworkDenoiser, Prediction, Time
from unfool.diffusion.schedule import Schedule
from unfool.networks.unet import UNet
from unfool.ranges import Count, CountFromZero, ShareBelowOne, check_arguments


def unet(
    *,
    channels: Count = 3,
    size: Count = 32,
    widths: Sequence[Count] = (64, 128, 256),
    layers: Count = 1,
    attention: Sequence[CountFromZero] = (),
    patch: Count = 1,
    groups: Count = 32,
    dropout: ShareBelowOne = 0.0,
    classes: CountFromZero = 0,
    multi_head: bool = False,
    predicts: Prediction = "noise",
    schedule: Schedule | None = None,
    time: Time = "scaled",
    clip_x0: bool = False,
) -> NetworkDenoiser:
    """A U-Net denoiser with random weights.

    Args:
        channels: Channels of an image.
        size: Height and width of an image in pixels.
        widths: Channels of each level; each level has half the resolution of the one before.
        layers: Residual blocks per level.
        attention: The levels (from 0) that have self-attention; the middle has it if any does.
        patch: Side of a patch in pixels; the first level has the resolution `size / patch`.
        groups: Number of groups of the group normalization; each width is a multiple of it.
        dropout: The dropout rate of the residual blocks.
        classes: Labels to condition on, besides the null class; 0 for none.
        multi_head: Whether each label has its own output layer, so that one forward pass predicts
            for all labels; a diffusion classifier then needs one forward pass per random draw.
        predicts: What the network predicts (see `NetworkDenoiser`).
        schedule: The noise schedule; continuous VP if None.
        time: The time input of the network (see `NetworkDenoiser`).
        clip_x0: Whether the estimate of x_0 is clipped to [-1, 1].

    Raises:
        ValueError: An option is out of range, or two options contradict each other.
    """
    check_arguments(unet, locals())
    if size % (patch * 2 ** (len(widths) - 1)):
        raise ValueError(
            f"size must be a multiple of patch x 2^(levels - 1) = {patch * 2 ** (len(widths) - 1)}, "
            f"not {size}"
        )
    if any(width % groups for width in widths):
        raise ValueError(f"every width must be a multiple of groups = {groups}, not {list(widths)}")
    if multi_head and not classes:
        raise ValueError(
            "multi_head needs classes: give the number of classes, or leave multi_head out"
        )
    network = UNet(
        channels,
        widths,
        layers=layers,
        attention=attention,
        patch=patch,
        groups=groups,
        dropout=dropout,
        classes=classes,
        multi_head=multi_head,
    )
    return NetworkDenoiser(
        network,
        schedule=schedule,
        predicts=predicts,
        shape=(channels, size, size),
        classes=classes,
        multi_head=multi_head,
        time=time,
        clip_x0=clip_x0,
    )
