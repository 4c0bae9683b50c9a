"""Checkpoints named as in guided-diffusion: also improved-diffusion and consistency models.

Names and shapes in a file show everything but the size of the images, the attention heads, the
order of the attention's weights, and the schedule. The published files are recognized by their
widths.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from unfool.diffusion.denoiser import NetworkDenoiser, Time
from unfool.diffusion.schedule import Discrete, Schedule
from unfool.models.published.parts import Order, build_unet, depth, gather, read_family, renamed
from unfool.networks.score_unet import ADM, ScoreUNet
from unfool.ranges import Count

_ENDS = {
    "time_embed.0": "time.0",
    "time_embed.2": "time.1",
    "label_emb": "label",
    "input_blocks.0.0": "conv_in",
    "out.0": "norm_out",
    "out.2": "conv_out",
}
_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "shortcut",
    "norm": "attention.norm",
    "proj_out": "attention.to_out",
    "op": "conv",
}


LINEAR, LONG = Discrete(), Discrete(4000, "cosine")


@dataclass(frozen=True)
class Setting:
    """The properties of a network that its weights do not show.

    Attributes:
        size: Height and width of its images in pixels.
        heads: Number of attention heads; 0 if `head_width` is fixed instead.
        head_width: Channels per attention head if `heads` is 0.
        order: The order of queries, keys and values in their common weight.
        schedule: The noise schedule of its training.
        time: The time input of the network.
    """

    size: int
    heads: int = 0
    head_width: int = 64
    order: Order = "heads"
    schedule: Schedule = LINEAR
    time: Time = "index"


# The channels of the first convolution, the widths as multiples of them, blocks per level, classes.
Key = tuple[int, tuple[int, ...], int, int]
GUIDED: dict[Key, Setting] = {
    (192, (1, 2, 3, 4), 3, 1000): Setting(64, order="pieces", schedule=Discrete(1000, "cosine")),
    (256, (1, 1, 2, 3, 4), 2, 1000): Setting(128, heads=4),
    (256, (1, 1, 2, 2, 4, 4), 2, 1000): Setting(256),
    (256, (1, 1, 2, 2, 4, 4), 2, 0): Setting(256),
    (128, (1, 2, 2, 4, 4, 8, 8), 2, 1000): Setting(512),
}
IMPROVED: dict[Key, Setting] = {
    (128, (1, 2, 2, 2), 3, 0): Setting(32, heads=4, schedule=LONG, time="rescaled"),
    (128, (1, 2, 3, 4), 3, 0): Setting(64, heads=4, schedule=LONG, time="rescaled"),
    (192, (1, 2, 3, 4), 3, 1000): Setting(64, heads=4, schedule=LONG),
    (128, (1, 1, 2, 2, 4, 4), 2, 0): Setting(256, heads=1),
}
CONSISTENCY: dict[Key, Setting] = {
    (192, (1, 2, 3, 4), 3, 1000): Setting(64, order="pieces"),
    (256, (1, 1, 2, 2, 4, 4), 2, 0): Setting(256, order="pieces"),
}


def guided_diffusion(
    weights: Path,
    size: Count | None = None,
    heads: Count | None = None,
    head_width: Count | None = None,
    attention_order: Literal["legacy", "new"] | None = None,
    schedule: Schedule | None = None,
    clip_x0: bool = False,
    download: bool = False,
) -> NetworkDenoiser:
    """A network of guided-diffusion (Dhariwal and Nichol, 2021).

    The options are known for the published files, which are recognized by their widths; any other
    file needs `size`, and `heads` or `head_width`. The conditional networks have no null class.

    Args:
        weights: The file, such as `256x256_diffusion_uncond.pt`.
        size: Height and width of its images in pixels.
        heads: The number of attention heads (`--num_heads`), if it is fixed.
        head_width: Channels per attention head (`--num_head_channels`), if that is fixed.
        attention_order: `"new"` for a network trained with `--use_new_attention_order`.
        schedule: The schedule it was trained with; None takes 1000 linear steps, except for the
            published network for 64 pixels.
        clip_x0: Whether the estimate of x_0 is clipped to [-1, 1].
        download: Download a published file that is missing (see docs/checkpoints.md).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read or holds another network, or an option is needed.
    """
    state = read_family(weights, "guided-diffusion", download=download)
    order: Order | None = attention_order and ("pieces" if attention_order == "new" else "heads")
    options = _Options(size, heads, head_width, order)
    network, setting = _build(state, weights, GUIDED, options, Setting(0))
    return _denoiser(network, replace(setting, schedule=schedule or setting.schedule), clip_x0)


def improved_diffusion(
    weights: Path,
    size: Count | None = None,
    heads: Count | None = None,
    schedule: Schedule | None = None,
    rescale_timesteps: bool | None = None,
    clip_x0: bool = False,
    download: bool = False,
) -> NetworkDenoiser:
    """A network of improved-diffusion (Nichol and Dhariwal, 2021).

    The options are known for the published files, which are recognized by their widths; any other
    file needs `size` and `heads`.

    Args:
        weights: The file, such as `cifar10_uncond_50M_500K.pt`.
        size: Height and width of its images in pixels.
        heads: The number of attention heads (`--num_heads`).
        schedule: The schedule it was trained with; None takes 4000 cosine steps, except for the
            published network for LSUN.
        rescale_timesteps: Whether its time input is rescaled to a schedule of 1000 steps; None
            takes true if it has no classes, except for the published network for LSUN.
        clip_x0: Whether the estimate of x_0 is clipped to [-1, 1].
        download: Download a published file that is missing (see docs/checkpoints.md).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read or holds another network, or an option is needed.
    """
    state = read_family(weights, "guided-diffusion", "improved-diffusion", download)
    unknown = Setting(0, schedule=LONG, time="index" if "label_emb.weight" in state else "rescaled")
    network, setting = _build(state, weights, IMPROVED, _Options(size, heads, None, None), unknown)
    if rescale_timesteps is not None:
        setting = replace(setting, time="rescaled" if rescale_timesteps else "index")
    return _denoiser(network, replace(setting, schedule=schedule or setting.schedule), clip_x0)


def consistency(
    weights: Path,
    kind: Literal["teacher", "model"] | None = None,
    size: Count | None = None,
    heads: Count | None = None,
    head_width: Count | None = None,
    attention_order: Literal["legacy", "new"] = "new",
    clip_x0: bool = False,
    download: bool = False,
) -> NetworkDenoiser:
    """A network of the consistency models (Song et al., 2023), such as `edm_bedroom256_ema.pt`.

    The EDM teachers are denoisers. A consistency model returns the end point of the probability
    flow, which is not E[x_0 | x_t]: use it to purify in one step. The network for ImageNet has no
    null class.

    Args:
        weights: The file.
        kind: `"teacher"` (an EDM denoiser) or `"model"` (a consistency model); None decides by the
            name of the file: `edm...` is a teacher, and `cd...` or `ct...` is a model.
        size: Height and width of its images in pixels; known for the published files.
        heads: The number of attention heads, if it is fixed.
        head_width: Channels per attention head, if that is fixed; known for the published files.
        attention_order: The order of the attention's weights: `"legacy"`, or `"new"` (flash
            attention), with which the published ones were trained.
        clip_x0: Whether the estimate of x_0 is clipped to [-1, 1].
        download: Download a published file that is missing (see docs/checkpoints.md).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read or holds another network, or an option is needed.
    """
    path = Path(weights)
    kind_by_prefix: dict[str, Literal["teacher", "model"]] = {
        "edm": "teacher",
        "cd": "model",
        "ct": "model",
    }
    kind = kind or kind_by_prefix.get(re.split(r"[_-]", path.name)[0])
    if kind is None:
        raise ValueError(
            f"the name of {path} does not say whether it is an EDM teacher (edm_...) or a "
            "consistency model (cd_..., ct_...): set kind: teacher or kind: model"
        )
    state = read_family(path, "guided-diffusion", "consistency", download)
    order: Order = "pieces" if attention_order == "new" else "heads"
    options = _Options(size, heads, head_width, order)
    network, setting = _build(state, path, CONSISTENCY, options, Setting(0))
    return NetworkDenoiser(
        network,
        predicts="edm" if kind == "teacher" else "consistency",
        time="consistency",
        shape=(network.conv_in.in_channels, setting.size, setting.size),
        classes=_classes(network),
        null=False,
        clip_x0=clip_x0,
    ).eval()


def family_of(state: Mapping[str, Tensor], name: str) -> str:
    """Return the family of a file among those that share these names, as a spec calls it.

    Args:
        state: The weights by name.
        name: The name of the file; those of consistency models begin with edm, cd or ct.
    """
    if re.split(r"[_-]", name)[0] in ("edm", "cd", "ct"):
        return "consistency"
    plain = any(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", key) for key in state)
    return "improved-diffusion" if plain else "guided-diffusion"  # whose blocks resample


def _denoiser(network: ScoreUNet, setting: Setting, clip_x0: bool) -> NetworkDenoiser:
    return NetworkDenoiser(
        network,
        schedule=setting.schedule,
        time=setting.time,
        shape=(network.conv_in.in_channels, setting.size, setting.size),
        classes=_classes(network),
        null=False,
        clip_x0=clip_x0,
    ).eval()


@dataclass(frozen=True)
class _Options:
    """The options that a user gave for a file; None takes the known value."""

    size: int | None
    heads: int | None
    head_width: int | None
    order: Order | None


def _build(
    state: dict[str, Tensor],
    path: Path,
    known: Mapping[Key, Setting],
    options: _Options,
    unknown: Setting,
) -> tuple[ScoreUNet, Setting]:
    """Build the network of a file, and return it with its properties, known or given."""
    key = _key(state)
    setting = known.get(key, unknown)
    if options.size is None and not setting.size:
        raise _missing(path, key, "the size of its images in pixels (size: 64)")
    if options.heads and options.head_width:
        raise ValueError("give either heads or head_width, for one follows from the other")
    if not (options.heads or options.head_width) and key not in known and _attends(state):
        raise _missing(path, key, "the heads of its attention (heads: 4, or head_width: 64)")
    if options.heads or options.head_width:
        setting = replace(setting, heads=options.heads or 0, head_width=options.head_width or 64)
    setting = replace(
        setting, size=options.size or setting.size, order=options.order or setting.order
    )
    heads, width = setting.heads, setting.head_width
    for name, value in state.items():
        wide = len(value) // 3
        if ".qkv." in name and (wide % heads if heads else wide % width):
            option = f"heads: {heads}" if heads else f"head_width: {width}"
            raise ValueError(
                f"{path} has attention of {wide} channels, which {option} does not divide: give the "
                "value of its training"
            )
    sections, outside = gather(state, _locate, _BLOCK, setting.order, heads, width)
    network = build_unet(sections, renamed(outside, _ENDS), ADM, path, heads, width)
    if network.conv_in.in_channels == 6:
        raise ValueError(
            f"{path} is an upsampler, which needs a smaller image as well as x_t and cannot "
            "denoise alone: take the network of the smaller images"
        )
    return network, setting


def _missing(path: Path, key: Key, what: str) -> ValueError:
    width, multiples, layers, classes = key
    architecture = (
        f"width {width}, levels {','.join(map(str, multiples))}, {layers} blocks, {classes} classes"
    )
    return ValueError(f"{path} is not one of the published files ({architecture}): give {what}")


def _key(state: Mapping[str, Tensor]) -> Key:
    """Return the properties by which published files are recognized."""
    sections, _ = gather(state, _locate, _BLOCK, "pieces")
    width = len(state["input_blocks.0.0.weight"])
    layers, firsts = depth(sections)
    widths = [len(part["conv1.weight"]) for part in firsts if "conv1.weight" in part]
    classes = len(state.get("label_emb.weight", ()))
    return width, tuple(w // width for w in widths), layers, classes


def _locate(name: str) -> tuple[str, tuple[int, ...], str] | None:
    """Return where a name belongs. On the way up, upsampling is a layer of the block before it."""
    match = re.fullmatch(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(.+)", name)
    if match is None or name.startswith("input_blocks.0."):
        return None
    number, inner = int(match[2]), match[3]
    if match[1] == "middle_block":  # a residual block, attention, and a residual block
        return "middle", (number // 2,), inner
    layer, _, inner = inner.partition(".")
    if match[1] == "input_blocks":
        return "down", (number,), inner
    resamples = layer != "0" and inner.partition(".")[0] not in ("norm", "qkv", "proj_out")
    return "up", (number, int(resamples)), inner


def _attends(state: Mapping[str, Tensor]) -> bool:
    return any(".qkv." in name for name in state)


def _classes(network: ScoreUNet) -> int:
    return 0 if network.label is None else network.label.num_embeddings
