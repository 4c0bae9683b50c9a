"""Published U-Nets under our names: the blocks of a file in order, and the network that they make.

Each family names the parts of its blocks, and says where in the network a name belongs. Widths, depth,
attention and labels are then read off the shapes.
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
Part = dict[str, Tensor]
Sections = dict[str, list[Part]]
Order = Literal["heads", "pieces", "channels"]
# Where a name belongs: the section, the position of the block in it, and the name inside the block.
Place = Callable[[str], tuple[str, tuple[int, ...], str] | None]

FAMILIES = {  # a name that the files of a family have, after `module.` and the like
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
    """The weights of a file of a family, the averaged ones if there are any.

    Args:
        path: The file.
        family: A key of `FAMILIES`.
        name: What a spec calls the family, if otherwise.
        download: Whether a published file may be fetched.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, or is of another family.
    """
    path, name = find_file(Path(path), download), name or family
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and {name} reads a file: use name: diffusers for it")
    state = read_state(path)
    require_family(state, path, family, name)
    return state


def require_family(state: State, path: Path, family: str, name: str) -> None:
    """Refuse weights of another family.

    Raises:
        ValueError: They lack a name that all files of the family have.
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
    state: State, place: Place, names: Mapping[str, str], order: Order = "pieces", heads: int = 0,
    head_width: int = 64,
) -> tuple[Sections, Part]:  # fmt: skip
    """The blocks of a U-Net by our names, and what lies outside its blocks.

    Args:
        state: The weights by their published names.
        place: Where a name belongs; None outside the blocks.
        names: The name of each part of a block, and ours.
        order: How the rows of queries, keys and values lie in a common table `qkv`: head by head, each
            in one piece, or channel by channel.
        heads: Of the attention, if their number is fixed.
        head_width: Their width where it is not.
    """
    blocks: dict[tuple[str, tuple[int, ...]], Part] = {}
    outside: Part = {}
    for name, value in state.items():
        found = place(name)
        if found is None:
            outside[name] = value
            continue
        section, position, inner = found
        part, _, kind = inner.rpartition(".")
        block = blocks.setdefault((section, position), {})
        if part == "qkv":
            rows = _rows(value, order, heads or len(value) // 3 // head_width)
            block |= {f"attention.to_{to}.{kind}": r for to, r in zip("qkv", rows, strict=True)}
        else:
            ours = names.get(part, part)
            # Of a convolution of 1 x 1.
            flat = ours.startswith("attention.to_") and kind == "weight"
            block[f"{ours}.{kind}"] = value.flatten(1) if flat else value
    sections: Sections = {"down": [], "middle": [], "up": []}
    for section, position in sorted(blocks):
        sections[section].append(blocks[section, position])
    return sections, outside


def place_by_resolution(name: str) -> tuple[str, tuple[int, ...], str] | None:
    """Where a name of EDM belongs: the levels are named by their resolution."""
    found = re.fullmatch(r"(enc|dec)\.(\d+)x\d+_(down|up|in|block)(\d*)\.(.+)", name)
    if found is None:
        return None
    half, side, kind, number, inner = found.groups()
    if kind == "in":
        return "middle", (int(number),), inner
    position = (-1 if kind in ("down", "up") else int(number),)
    return (
        ("down", (-int(side), *position), inner)
        if half == "enc"
        else ("up", (int(side), *position), inner)
    )


def renamed(state: State, names: Mapping[str, str]) -> Part:
    """Weights under other names of their modules; a name that is not listed stays."""
    split = ((*name.rpartition("."), value) for name, value in state.items())
    return {f"{names.get(part, part)}{dot}{kind}": value for part, dot, kind, value in split}


def depth(sections: Sections) -> tuple[int, list[Part]]:
    """The residual blocks of a level on the way down, and the first block of each level."""
    down = sections["down"]
    levels = max(len(sections["up"]) - len(down), 1)  # of each level, one more block on the way up
    layers = max((len(down) + 1) // levels - 1, 0)
    return layers, down[:: layers + 1]


def build_unet(
    sections: Sections, outside: State, style: Style, source: Path, heads: int = 0, head_width: int = 64
) -> ScoreUNet:  # fmt: skip
    """The network that the weights fit, with the weights themselves, in float32 and frozen.

    Args:
        sections: The blocks on the way down, in the middle and on the way up, by our names.
        outside: The other weights, by our names.
        style: What distinguishes the family; what can be read off the shapes is.
        source: The file, for messages.
        heads: Of the attention, if their number is fixed.
        head_width: Their width where it is not.

    Raises:
        ValueError: The weights do not make a whole network.
    """
    down, up = sections["down"], sections["up"]
    layers, firsts = depth(sections)
    levels = len(firsts)
    whole = layers > 0 and len(down) == levels * (layers + 1) - 1 and len(up) == len(down) + levels
    if not whole or not all("conv1.weight" in part for part in firsts):
        raise ValueError(
            f"{source} does not hold a complete U-Net (it has {len(down)} down blocks and "
            f"{len(up)} up blocks): it is truncated or of an unsupported kind, so check the file"
        )
    state = dict(outside)
    for section, parts in sections.items():
        state |= {f"{section}.{i}.{n}": v for i, part in enumerate(parts) for n, v in part.items()}
    needed = ("conv_in.weight", "time.0.weight", "conv_out.weight", "middle.0.time.weight")
    if lacks := [name for name in needed if name not in state]:
        raise ValueError(
            f"{source} does not hold a complete U-Net ({lacks[0]} is missing): fetch it again"
        )
    told = len(state["middle.0.time.weight"]) // len(state["middle.0.conv1.weight"])
    style = replace(
        style,
        scale_shift=told == 2,
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
            embedded=state["time.0.weight"].shape[1] // (2 if style.fourier else 1),
            labels=0 if labels is None else len(labels),
            heads=heads,
            head_width=head_width,
            style=style,
        )
    load_state(network, {n: v.float() for n, v in state.items()}, str(source), assign=True)
    return network.eval().requires_grad_(False)


def _rows(value: Tensor, order: Order, heads: int) -> tuple[Tensor, ...]:
    """The tables of queries, keys and values in one table."""
    table = value.flatten(1) if value.ndim > 1 else value
    if order == "pieces":
        return table.chunk(3)
    if order == "channels":
        return tuple(table[i::3] for i in range(3))
    by_head = table.unflatten(0, (heads, 3, -1))
    return tuple(rows.flatten(0, 1) for rows in by_head.unbind(1))
