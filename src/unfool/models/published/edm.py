"""Networks of EDM and EDM2 (Karras et al., 2022; 2024), from their pickles or plain state dicts.

The pickles hold the source code of their classes, which is not run (see `models.pickles`).
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unfool.diffusion.denoiser import NetworkDenoiser, Prediction, Time
from unfool.diffusion.schedule import Scales
from unfool.models.checkpoints import choose_state, read_content
from unfool.models.pickles import Inert
from unfool.models.published.edm2 import FAMILY as EDM2
from unfool.models.published.edm2 import build_edm2
from unfool.models.published.parts import (
    BlockWeights,
    build_unet,
    gather,
    locate_by_resolution,
    renamed,
    require_family,
)
from unfool.networks.magnitude_unet import MagnitudeUNet
from unfool.networks.score_unet import ADM, DDPMPP, ScoreUNet
from unfool.runtime.published_files import find_file

Preconditioning = Literal["edm", "vp", "ve", "iddpm"]
TimeInput = Time | Callable[[Scales], Tensor]
_OF_CLASS: dict[str, Preconditioning] = {
    "EDMPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
    "Precond": "edm",  # of EDM2
}
_BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "time",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "shortcut",
    "norm2": "attention.norm",
    "proj": "attention.to_out",
}
_ENDS = {
    "map_layer0": "time.0",
    "map_layer1": "time.1",
    "out_norm": "norm_out",  # of ADM
    "out_conv": "conv_out",
}


def edm(
    weights: Path,
    preconditioning: Preconditioning | None = None,
    clip_x0: bool = False,
    download: bool = False,
) -> NetworkDenoiser:
    """A network of EDM or EDM2 (Karras et al., 2022; 2024).

    Args:
        weights: The pickle, such as `edm-cifar10-32x32-uncond-vp.pkl`, of which no code is run, or
            a file with a plain state dict.
        preconditioning: How the inputs and outputs of the network are scaled; None takes what the
            pickle says, and EDM's for a plain state dict.
        clip_x0: Whether the estimate of x_0 is clipped to [-1, 1].
        download: Download a published file that is missing (see docs/checkpoints.md).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, holds another network, or lacks what `preconditioning`
            needs.
    """
    path = find_file(Path(weights), download)
    content = read_content(path)
    kind = preconditioning or _kind(content, path)
    head_width = _settings(content).get("channels_per_head", 64)
    state = choose_state(content, path)
    del content  # so that memory holds only one copy of weights that are scaled below
    size = max(_resolution(name.removeprefix("unet.").removeprefix("model.")) for name in state)
    if EDM2 in state:
        network = build_edm2(state, path, head_width)
        classes = 0 if network.label is None else network.label.in_features
        return _denoiser(network, ("edm", "edm"), _shape(network, size), classes, clip_x0)
    state = {n.removeprefix("model."): v for n, v in state.items() if "resample_filter" not in n}
    levels = state.pop("u", None)  # the noise level of each step, only for "iddpm"
    if kind == "iddpm" and levels is None:
        raise ValueError(
            f"{path} lacks the table u, which preconditioning: iddpm needs: choose another "
            "preconditioning"
        )
    require_family(state, path, "edm", "edm")
    network = build_edm(state, path)
    prediction_and_time: dict[Preconditioning, tuple[Prediction, TimeInput]] = {
        "edm": ("edm", "edm"),
        "vp": ("noise", "score_sde"),
        "ve": ("ve", "ve"),
        "iddpm": ("noise", "index" if levels is None else NearestStep(levels)),
    }
    classes = 0 if network.label is None else network.label.num_embeddings - 1
    return _denoiser(network, prediction_and_time[kind], _shape(network, size), classes, clip_x0)


def build_edm(state: dict[str, Tensor], source: Path) -> ScoreUNet:
    """Build the network of EDM's weights: DDPM++ or NCSN++ (`SongUNet`), or ADM (`DhariwalUNet`).

    Raises:
        ValueError: The network is incomplete.
    """
    sections, outside = gather(state, locate_by_resolution, _BLOCK, "channels")
    first = next(
        (name for name in outside if re.fullmatch(r"enc\.\d+x\d+_conv\.weight", name)), None
    )
    if first is None:
        raise ValueError(
            f"{source} does not hold a complete U-Net (enc.*_conv is missing): fetch it again"
        )
    adm = "out_conv.weight" in outside
    pyramid = sorted((n for n in outside if "_aux_residual." in n), key=_resolution, reverse=True)
    pyramid_layers = sorted(
        {name.rpartition(".")[0] for name in pyramid}, key=_resolution, reverse=True
    )
    names = _ENDS | {first.removesuffix(".weight"): "conv_in"}
    names |= {name: f"pyramid.{i}" for i, name in enumerate(pyramid_layers)}
    for name in outside:  # in DDPM++ and NCSN++, the last layers are part of the decoder
        part = name.rpartition(".")[0]
        if part.endswith(("_aux_norm", "_aux_conv")):
            names[part] = "norm_out" if part.endswith("norm") else "conv_out"
    state = renamed({n: v for n, v in outside.items() if "map_augment" not in n}, names)
    state |= _labels(state, adm)
    if adm:
        return build_unet(sections, state, ADM, source)
    style = replace(
        DDPMPP,
        fourier="map_noise.freqs" in state,
        pyramid=bool(pyramid_layers),
        resample_filter=(1, 3, 3, 1) if pyramid_layers else (1, 1),
    )
    if style.fourier:
        state["frequencies"] = state.pop("map_noise.freqs")
    return build_unet(sections, state, style, source, heads=1)


class NearestStep:
    """A time input: the index of the step with the nearest noise level, as in EDM's `iDDPMPrecond`.

    Args:
        levels: The noise level sigma / alpha of each step, (T + 1,), falling to 0.
    """

    def __init__(self, levels: Tensor):
        self.levels = levels.double()

    def __call__(self, scales: Scales) -> Tensor:
        """Return the step indices, shaped like the scales."""
        noise = scales.sigma / scales.alpha
        gap = (noise[..., None].double() - self.levels.to(noise.device)).abs()
        return (len(self.levels) - 2 - gap.argmin(-1)).to(noise)


def _denoiser(
    network: ScoreUNet | MagnitudeUNet,
    prediction_and_time: tuple[Prediction, TimeInput],
    shape: tuple[int, int, int],
    classes: int,
    clip_x0: bool,
) -> NetworkDenoiser:
    predicts, time = prediction_and_time
    return NetworkDenoiser(
        network, predicts=predicts, time=time, shape=shape, classes=classes, clip_x0=clip_x0
    ).eval()


def _shape(network: ScoreUNet | MagnitudeUNet, size: int) -> tuple[int, int, int]:
    """Return the image shape (C, H, W)."""
    # A `MagnitudeUNet` has an additional input channel of ones.
    channels = network.conv_in.in_channels - isinstance(network, MagnitudeUNet)
    return channels, size, size


def _settings(content: object) -> dict[str, Any]:
    """Return the constructor arguments of the network in a pickle; {} if there is none."""
    network = content.get("ema") if isinstance(content, dict) else None
    return network.state.get("_init_kwargs", {}) if isinstance(network, Inert) else {}


def _kind(content: object, path: Path) -> Preconditioning:
    """Return the preconditioning of the network in a pickle; `"edm"` if there is none."""
    network = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(network, Inert):
        return "edm"
    name = type(network).__name__
    if name not in _OF_CLASS:
        raise ValueError(
            f"{path} holds a {name}, which is not one of {', '.join(_OF_CLASS)}: take another file"
        )
    return _OF_CLASS[name]


def _labels(state: BlockWeights, adm: bool) -> BlockWeights:
    """Convert the linear layer of one-hot labels to an embedding that ends with the null class."""
    if "map_label.weight" not in state:
        return {}
    table = state.pop("map_label.weight").T.float()
    null = torch.zeros_like(table[:1])
    if adm:
        return {"label.weight": torch.cat([table, null])}
    shift = state.pop("map_label.bias").float()
    return {"label.weight": torch.cat([table * math.sqrt(len(table)), null]) + shift}


def _resolution(name: str) -> int:
    """Return the resolution in the name of a weight; 0 if it has none."""
    match = re.match(r"(?:enc|dec)\.(\d+)x", name)
    return int(match[1]) if match else 0
