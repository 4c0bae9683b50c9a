"""Checkpoints of score_sde (Song et al., 2021): DDPM++ and NCSN++."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from unfool.diffusion.denoiser import NetworkDenoiser, Prediction, Time
from unfool.models.published.parts import BlockWeights, Sections, build_unet, read_family, renamed
from unfool.networks.score_unet import DDPMPP, ScoreUNet
from unfool.ranges import Count

SDE = Literal["vp", "subvp", "ve"]

_BLOCK = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "Dense_0": "time",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
    "Conv_2": "shortcut",
}
_ATTENTION = {"NIN_0": "to_q", "NIN_1": "to_k", "NIN_2": "to_v", "NIN_3": "to_out"}


def score_sde(
    weights: Path,
    sde: SDE | None = None,
    continuous: bool = True,
    size: Count = 32,
    clip_x0: bool = False,
    download: bool = False,
) -> NetworkDenoiser:
    """DDPM++ or NCSN++ from a checkpoint of score_sde (Song et al., 2021), with averaged weights.

    Args:
        weights: The file, such as `checkpoint_8.pth` of `vp/cifar10_ddpmpp_deep_continuous`.
        sde: The SDE that the network was trained with. None takes the VE SDE for a network that
            embeds the time at random frequencies, and the VP SDE for others; `"subvp"` must be
            given.
        continuous: Whether it was trained at continuous times (as checkpoints named `continuous`)
            or at 1000 steps.
        size: Height and width of its images in pixels.
        clip_x0: Whether the estimate of x_0 is clipped to [-1, 1].
        download: Download a published file that is missing (see docs/checkpoints.md).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, or holds another network.
    """
    state = read_family(weights, "score-sde", download=download)
    network = build_score_sde(state, Path(weights))
    kind = sde or ("ve" if network.style.fourier else "vp")
    prediction_and_time: dict[SDE, tuple[Prediction, Time]] = {
        "vp": ("noise", "score_sde" if continuous else "index"),
        "subvp": ("subvp", "subvp"),
        "ve": ("ve", "ve"),
    }
    if (kind == "ve") != network.style.fourier:
        needed = "ve" if network.style.fourier else "vp or subvp"
        raise ValueError(f"{weights} holds a network of another SDE: set sde: {needed}, not {kind}")
    predicts, time = prediction_and_time[kind]
    return NetworkDenoiser(
        network,
        predicts=predicts,
        time=time,
        shape=(network.conv_in.in_channels, size, size),
        clip_x0=clip_x0,
    ).eval()


def build_score_sde(state: dict[str, Tensor], source: Path) -> ScoreUNet:
    """Build the network of score_sde's weights, whose modules are numbered in order of creation.

    Raises:
        ValueError: The network is incomplete or not supported.
    """
    groups: dict[int, BlockWeights] = {}
    outside: BlockWeights = {}
    for name, value in state.items():
        if match := re.fullmatch(r"all_modules\.(\d+)\.(.+)", name):
            groups.setdefault(int(match[1]), {})[match[2]] = value
        elif name != "sigmas":  # the noise level of each step, which is not needed
            outside[name] = value
    blocks: list[BlockWeights] = []
    others: list[BlockWeights] = []
    for _, group in sorted(groups.items()):
        if "NIN_0.W" in group and blocks:  # attention belongs to the block before it
            blocks[-1] |= _attention(group)
        elif "Conv_0.weight" in group:
            blocks.append(renamed(group, _BLOCK))
        elif "W" in group:
            outside["frequencies"] = group["W"]
        else:
            others.append(renamed(group, {"Conv2d_0": "pyramid"}))
    pyramid = [part for part in others if "pyramid.weight" in part]
    ends = [part for part in others if "pyramid.weight" not in part]
    if len(ends) != 5:
        raise ValueError(
            f"{source} is not supported, for it has {len(ends)} parts besides its blocks, and "
            "DDPM++ and NCSN++ without an output pyramid have 5: take a checkpoint for CIFAR-10"
        )
    for name, part in zip(
        ("time.0", "time.1", "conv_in", "norm_out", "conv_out"), ends, strict=True
    ):
        outside |= {f"{name}.{kind}": value for kind, value in part.items()}
    for i, part in enumerate(pyramid):
        outside |= {n.replace("pyramid", f"pyramid.{i}"): value for n, value in part.items()}
    style = replace(
        DDPMPP,
        fourier="frequencies" in outside,
        pyramid=bool(pyramid),
        resample_filter=(1, 3, 3, 1) if pyramid else (1, 1),
    )
    return build_unet(_in_sections(blocks), outside, style, source, heads=1)


def _in_sections(blocks: list[BlockWeights]) -> Sections:
    """Divide the blocks into sections; a shortcut without a change of width marks resampling."""
    resampling = [
        "shortcut.weight" in b and b["shortcut.weight"].shape[0] == b["shortcut.weight"].shape[1]
        for b in blocks
    ]
    levels = sum(resampling) // 2 + 1
    middle = (len(blocks) - levels) // 2 - 1  # each level has one more block on the way up
    return {
        "down": blocks[:middle],
        "middle": blocks[middle : middle + 2],
        "up": blocks[middle + 2 :],
    }


def _attention(group: BlockWeights) -> BlockWeights:
    """Rename the weights of an attention, and transpose its matrices from (in, out)."""
    ours = renamed({n: v for n, v in group.items() if "NIN" not in n}, {"GroupNorm_0": "norm"})
    for theirs, name in _ATTENTION.items():
        ours |= {f"{name}.weight": group[f"{theirs}.W"].T, f"{name}.bias": group[f"{theirs}.b"]}
    return {f"attention.{name}": value for name, value in ours.items()}
