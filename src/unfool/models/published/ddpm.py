"""DDPM (Ho et al., 2020), from files of its PyTorch conversions or from folders of diffusers."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.schedule import Discrete, Schedule
from unfool.models.checkpoints import read_state
from unfool.models.published.parts import build_unet, gather, read_family, renamed, require_family
from unfool.models.scheduler import read_schedule
from unfool.networks.score_unet import DDPM
from unfool.ranges import Count
from unfool.runtime.files import weights_in

_ENDS = {
    "time_embedding.linear_1": "time.0",
    "time_embedding.linear_2": "time.1",
    "class_embedding": "label",
    "conv_norm_out": "norm_out",
}
_BLOCK = {
    "time_emb_proj": "time",
    "conv_shortcut": "shortcut",
    "group_norm": "attention.norm",
    "to_q": "attention.to_q",
    "to_k": "attention.to_k",
    "to_v": "attention.to_v",
    "to_out.0": "attention.to_out",
    "query": "attention.to_q",  # this and the next three are diffusers' names of 2022
    "key": "attention.to_k",
    "value": "attention.to_v",
    "proj_attn": "attention.to_out",
}
_OF_HO = (  # patterns of names in conversions of Ho's network, and the names in diffusers
    (r"^temb\.dense\.0", "time_embedding.linear_1"),
    (r"^temb\.dense\.1", "time_embedding.linear_2"),
    (r"^down\.(\d+)", r"down_blocks.\1"),
    (r"^mid\.block_1", "mid_block.resnets.0"),
    (r"^mid\.block_2", "mid_block.resnets.1"),
    (r"^mid\.attn_1", "mid_block.attentions.0"),
    (r"\.block\.", ".resnets."),
    (r"\.attn\.", ".attentions."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
    (r"\.(up|down)sample\.", r".\1samplers.0."),
    (r"temb_proj", "time_emb_proj"),
    (r"nin_shortcut", "conv_shortcut"),
    (r"^norm_out", "conv_norm_out"),
)
_SIZES = {(1, 2, 2, 2): 32, (1, 1, 2, 2, 4, 4): 256}  # image sizes of published files, by widths
_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
_BLOCKS += ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
_EXPECTED: dict[str, tuple[Any, ...]] = {  # the supported settings of a UNet2DModel
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",),
    "time_embedding_type": ("positional",),
}


def ddpm(
    weights: Path,
    size: Count | None = None,
    schedule: Schedule | None = None,
    clip_x0: bool = False,
    download: bool = False,
) -> NetworkDenoiser:
    """DDPM (Ho et al., 2020) from a file of ermongroup/ddim, SDEdit or DiffPure (`celeba_hq.ckpt`).

    From a training checkpoint of ddim (a list), the averaged weights are used. A flat state dict
    does not say whether its weights are averaged; of pesser's files, those named `ema_...` are.

    Args:
        weights: The file.
        size: Height and width of its images in pixels; known for the published files.
        schedule: The schedule it was trained with; None takes 1000 linear steps (Ho et al., 2020).
        clip_x0: Whether the estimate of x_0 is clipped to [-1, 1].
        download: Download a published file that is missing (see docs/checkpoints.md).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read or holds another network, or `size` is needed.
    """
    state = read_family(weights, "ddpm", download=download)
    levels = 1 + max(
        (int(name.split(".")[1]) for name in state if name.startswith("down.")), default=0
    )
    theirs = {name_in_diffusers(name, levels): value for name, value in state.items()}
    sections, outside = gather(theirs, _locate, _BLOCK)
    network = build_unet(sections, renamed(outside, _ENDS), DDPM, Path(weights), heads=1)
    first = len(state["conv_in.weight"])
    multiples = tuple(len(state[f"down.{i}.block.0.conv1.weight"]) // first for i in range(levels))
    size = size or _SIZES.get(multiples)
    if size is None:
        levels_text = ",".join(map(str, multiples))
        raise ValueError(
            f"{weights} is not one of the published files (levels {levels_text}): give the size of its "
            "images in pixels (such as size: 64)"
        )
    return NetworkDenoiser(
        network,
        schedule=schedule or Discrete(),
        time="index",
        shape=(network.conv_in.in_channels, size, size),
        clip_x0=clip_x0,
    ).eval()


def name_in_diffusers(name: str, levels: int) -> str:
    """Translate the name of a weight of Ho's network, or of an autoencoder's half, to diffusers.

    Args:
        name: The original name, such as `up.3.block.0.conv1.weight`.
        levels: Number of levels; on the way up, diffusers counts them from the deepest.
    """
    name = re.sub(r"^up\.(\d+)", lambda match: f"up_blocks.{levels - 1 - int(match[1])}", name)
    for old, new in _OF_HO:
        name = re.sub(old, new, name)
    return name


def diffusers(weights: Path, clip_x0: bool = False) -> NetworkDenoiser:
    """A `UNet2DModel` from a folder of diffusers, such as a copy of `google/ddpm-cifar10-32`.

    The network, its schedule, and what it predicts are read from the folder's settings.

    Args:
        weights: The folder, with `config.json` and the weights in it or in `unet`, and
            `scheduler_config.json` in it or in `scheduler`.
        clip_x0: Whether the estimate of x_0 is clipped to [-1, 1].

    Raises:
        ValueError: A file is missing or cannot be read, or the network is not supported.
    """
    folder = Path(weights)
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler = next(
        (
            path
            for path in (folder / "scheduler" / _SCHEDULER, folder / _SCHEDULER)
            if path.is_file()
        ),
        None,
    )
    file = weights_in(unet)
    if file is None or scheduler is None or not (unet / "config.json").is_file():
        raise ValueError(
            f"{folder} is not the folder of a UNet2DModel, which needs config.json, {_SCHEDULER} and "
            "diffusion_pytorch_model.safetensors (or .bin), in the folder or in its unet and "
            "scheduler"
        )
    settings = json.loads((unet / "config.json").read_text("utf-8"))
    _require_known(settings, unet / "config.json")
    state = read_state(file)
    require_family(state, file, "diffusers", "diffusers")
    sections, outside = gather(state, _locate, _BLOCK)
    style = replace(
        DDPM,
        groups=settings.get("norm_num_groups") or 32,
        eps=settings.get("norm_eps", 1e-5),
        sines_first=not settings.get("flip_sin_to_cos", True),
        lowest_frequency_exact=bool(settings.get("freq_shift", 0)),
        symmetric_padding=settings.get("downsample_padding", 1) == 1,
    )
    head_width = settings.get("attention_head_dim", 8)  # null means a single head
    options = {"head_width": head_width} if head_width else {"heads": 1}
    network = build_unet(sections, renamed(outside, _ENDS), style, file, **options)
    schedule, predicts = read_schedule(scheduler)
    size = settings["sample_size"]
    height, width = size if isinstance(size, list) else (size, size)
    return NetworkDenoiser(
        network,
        schedule=schedule,
        predicts=predicts,
        time="index",
        shape=(network.conv_in.in_channels, height, width),
        classes=0 if network.label is None else network.label.num_embeddings,
        null=False,
        clip_x0=clip_x0,
    ).eval()


_SCHEDULER = "scheduler_config.json"


def _require_known(settings: dict[str, Any], path: Path) -> None:
    """Check that a network's settings are supported.

    Raises:
        ValueError: A setting is not supported.
    """
    unsupported = [(key, settings[key]) for key, known in _EXPECTED.items()
            if key in settings and settings[key] not in known]  # fmt: skip
    blocks = [*settings.get("down_block_types", ()), *settings.get("up_block_types", ())]
    unsupported += [("block", name) for name in blocks if name not in _BLOCKS]
    unsupported += (
        [] if settings.get("freq_shift", 0) in (0, 1) else [("freq_shift", settings["freq_shift"])]
    )
    if unsupported:
        key, value = unsupported[0]
        raise ValueError(
            f"{path} describes a network with {key} {value!r}, which is not supported: use name: "
            "network, with your own network that loads it by diffusers"
        )


def _locate(name: str) -> tuple[str, tuple[int, ...], str] | None:
    """Return where a name of diffusers belongs (see `Locate`)."""
    match = re.fullmatch(
        r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|(?:down|up)samplers)\.(\d+)\.(.+)",
        name,
    )
    if match is None:
        return None
    section, level, kind, number, inner = match.groups()
    if section == "mid":
        return "middle", (int(number),), inner
    return section, (int(level), int(kind.endswith("samplers")), int(number)), inner
