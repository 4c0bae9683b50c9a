"""Conversion of published U-Nets to our names and our network.

Each family of files defines how the parts of its blocks are named, and where in the network a name
belongs. Widths, depth, attention and labels are then read from the shapes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unfool.models.checkpoints import load_state, read_state
from unfool.networks.score_unet import ScoreUNet, Style
from unfool.runtime.published_files import find_file

State = Mapping[str, Tensor]
BlockWeights = dict[str, Tensor]
Sections = dict[str, list[BlockWeights]]
Order = Literal["heads", "pieces", "channels"]
# Tells where a name belongs: the section, the position of the block in it, and the name inside the block.
Locate = Callable[[str], tuple[str, tuple[int, ...], str] | None]

FAMILIES = {  # a weight that all files of a family have, without prefixes such as `module.`
    "score-sde": "all_modules.1.weight",
    "guided-diffusion": "input_blocks.0.0.weight",
    "edm": "map_layer0.weight",
    "ddpm": "temb.dense.0.weight",
    "diffusers": "time_embedding.linear_1.weight",
    "dit": "x_embedder.proj.weight",
    "stable-diffusion": "model.diffusion_model.input_blocks.0.0.weight",
}


def read_family(
    path: Path, family: str, name: str = "", download: bool = False
) -> dict[str, Tensor]:
    """Read the weights from a file of a family, the averaged ones if there are any.

    Args:
        path: The file.
        family: A key of `FAMILIES`.
        name: The name of the family in a spec, if it differs.
        download: Whether a published file may be downloaded.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, or belongs to another family.
    """
    path, name = find_file(Path(path), download), name or family
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and {name} reads a file: use name: diffusers for it")
    state = read_state(path)
    require_family(state, path, family, name)
    return state


def require_family(state: State, path: Path, family: str, name: str) -> None:
    """Check that weights belong to a family.

    Raises:
        ValueError: The weight that all files of the family have is missing.
    """
    if FAMILIES[family] in state:
        return
    others = [o for o, key in FAMILIES.items() if key in state or f"model.{key}" in state]
    advice = f"its weights have the names of {others[0]}, so use name: {others[0]}" if others else (
        "it belongs to another network or is truncated, so check the file, or use name: network "
        "with your own network"
    )  # fmt: skip
    raise ValueError(f"{path} is not a file of {name}, for it lacks {FAMILIES[family]}: {advice}")


def gather(
    state: State, locate: Locate, names: Mapping[str, str], order: Order = "pieces", heads: int = 0,
    head_width: int = 64,
) -> tuple[Sections, BlockWeights]:  # fmt: skip
    """Return the blocks of a U-Net by our names, and the weights outside the blocks.

    Args:
        state: The weights by their published names.
        locate: Returns where a name belongs, or None outside the blocks.
        names: The published name of each part of a block, and our name.
        order: The order of the rows of a common weight `qkv`: per head (`"heads"`), all queries,
            then all keys, then all values (`"pieces"`), or per channel (`"channels"`).
        heads: Number of attention heads; 0 if `head_width` is fixed instead.
        head_width: Channels per attention head if `heads` is 0.
    """
    blocks: dict[tuple[str, tuple[int, ...]], BlockWeights] = {}
    outside: BlockWeights = {}
    for name, value in state.items():
        location = locate(name)
        if location is None:
            outside[name] = value
            continue
        section, position, inner = location
        part, _, kind = inner.rpartition(".")
        block = blocks.setdefault((section, position), {})
        if part == "qkv":
            rows = _rows(value, order, heads or len(value) // 3 // head_width)
            block |= {f"attention.to_{to}.{kind}": r for to, r in zip("qkv", rows, strict=True)}
        else:
            ours = names.get(part, part)
            # Published networks have 1x1 convolutions where ours has linear layers.
            flat = ours.startswith("attention.to_") and kind == "weight"
            block[f"{ours}.{kind}"] = value.flatten(1) if flat else value
    sections: Sections = {"down": [], "middle": [], "up": []}
    for section, position in sorted(blocks):
        sections[section].append(blocks[section, position])
    return sections, outside


def locate_by_resolution(name: str) -> tuple[str, tuple[int, ...], str] | None:
    """Return where a name of EDM belongs; its levels are named by their resolution."""
    match = re.fullmatch(r"(enc|dec)\.(\d+)x\d+_(down|up|in|block)(\d*)\.(.+)", name)
    if match is None:
        return None
    half, side, kind, number, inner = match.groups()
    if kind == "in":
        return "middle", (int(number),), inner
    position = (-1 if kind in ("down", "up") else int(number),)
    return (
        ("down", (-int(side), *position), inner)
        if half == "enc"
        else ("up", (int(side), *position), inner)
    )


def renamed(state: State, names: Mapping[str, str]) -> BlockWeights:
    """Rename the modules of weights; modules that are not listed keep their names."""
    split = ((*name.rpartition("."), value) for name, value in state.items())
    return {f"{names.get(part, part)}{dot}{kind}": value for part, dot, kind, value in split}


def depth(sections: Sections) -> tuple[int, list[BlockWeights]]:
    """Return the residual blocks per level on the way down, and the first block of each level."""
    down = sections["down"]
    levels = max(len(sections["up"]) - len(down), 1)  # each level has one more block on the way up
    layers = max((len(down) + 1) // levels - 1, 0)
    return layers, down[:: layers + 1]


def build_unet(
    sections: Sections, outside: State, style: Style, source: Path, heads: int = 0, head_width: int = 64
) -> ScoreUNet:  # fmt: skip
    """Build the network that the weights belong to, in float32 and frozen.

    Args:
        sections: The blocks on the way down, in the middle and on the way up, by our names.
        outside: The other weights, by our names.
        style: The details of the family, except those that are read from the shapes.
        source: The file, for messages.
        heads: Number of attention heads; 0 if `head_width` is fixed instead.
        head_width: Channels per attention head if `heads` is 0.

    Raises:
        ValueError: The network is incomplete.
    """
    down, up = sections["down"], sections["up"]
    layers, firsts = depth(sections)
    levels = len(firsts)
    complete = (
        layers > 0 and len(down) == levels * (layers + 1) - 1 and len(up) == len(down) + levels
    )
    if not complete or not all("conv1.weight" in part for part in firsts):
        raise ValueError(
            f"{source} does not hold a complete U-Net (it has {len(down)} down blocks and "
            f"{len(up)} up blocks): it is truncated or of an unsupported kind, so check the file"
        )
    state = dict(outside)
    for section, parts in sections.items():
        state |= {f"{section}.{i}.{n}": v for i, part in enumerate(parts) for n, v in part.items()}
    needed = ("conv_in.weight", "time.0.weight", "conv_out.weight", "middle.0.time.weight")
    if missing := [name for name in needed if name not in state]:
        raise ValueError(
            f"{source} does not hold a complete U-Net ({missing[0]} is missing): fetch it again"
        )
    outputs_per_channel = len(state["middle.0.time.weight"]) // len(state["middle.0.conv1.weight"])
    style = replace(
        style,
        scale_shift=outputs_per_channel == 2,
        blocks_resample=levels == 1 or "conv1.weight" in down[layers],
    )
    labels = state.get("label.weight")
    with torch.device("meta"):
        network = ScoreUNet(
            [len(first["conv1.weight"]) for first in firsts],
            layers=layers,
            attention=[i for i, first in enumerate(firsts) if "attention.to_q.weight" in first],
            channels=state["conv_in.weight"].shape[1],
            outputs=len(state["conv_out.weight"]),
            first=len(state["conv_in.weight"]),
            time_size=state["time.0.weight"].shape[1] // (2 if style.fourier else 1),
            labels=0 if labels is None else len(labels),
            heads=heads,
            head_width=head_width,
            style=style,
        )
    load_state(network, {n: v.float() for n, v in state.items()}, str(source), assign=True)
    return network.eval().requires_grad_(False)


def _rows(value: Tensor, order: Order, heads: int) -> tuple[Tensor, ...]:
    """Split a common weight into those of queries, keys and values."""
    table = value.flatten(1) if value.ndim > 1 else value
    if order == "pieces":
        return table.chunk(3)
    if order == "channels":
        return tuple(table[i::3] for i in range(3))
    by_head = table.unflatten(0, (heads, 3, -1))
    return tuple(rows.flatten(0, 1) for rows in by_head.unbind(1))
