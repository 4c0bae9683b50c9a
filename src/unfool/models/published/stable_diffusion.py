"""Stable Diffusion (Rombach et al., 2022) from a single file, as its authors published it.

A file holds the U-Net, the autoencoder and the text encoder under the names of the original code.
They are loaded into networks of diffusers and transformers, with settings read from the shapes.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unfool.models.checkpoints import load_state
from unfool.models.published.ddpm import name_in_diffusers
from unfool.models.published.parts import read_family
from unfool.models.scheduler import Predicts

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_CLIP, _OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
_AVERAGE = "model_ema."
_HEADS, _HEAD_WIDTH = 8, 64  # attention heads of version 1, and channels per head of version 2
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_MIDDLE = {
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
_OF_OPEN_CLIP = (
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
)
_NO_WEIGHTS = ("position_ids", "attn_mask", "logit_scale", "text_projection")  # not used here
_PREDICTED: dict[str, Predicts] = {  # by the names of the published files of Stable Diffusion 2
    "512-base-ema": "noise",
    "v2-1_512-ema-pruned": "noise",
    "v2-1_512-nonema-pruned": "noise",
    "768-v-ema": "velocity",
    "v2-1_768-ema-pruned": "velocity",
    "v2-1_768-nonema-pruned": "velocity",
}


class SingleFile(NamedTuple):
    """The weights of Stable Diffusion in a file, by their names in diffusers and transformers.

    Attributes:
        path: The file.
        unet: The weights of the U-Net; the averaged ones if there are any.
        vae: The weights of the autoencoder.
        text: The weights of the text encoder.
        predicts: What the U-Net predicts.
        size: Height and width of its images in pixels.
        fill: The token with which the tokenizer pads texts.
    """

    path: Path
    unet: dict[str, Tensor]
    vae: dict[str, Tensor]
    text: dict[str, Tensor]
    predicts: Predicts
    size: int
    fill: str


def read_single_file(
    path: Path, predicts: Predicts | None = None, size: int | None = None
) -> SingleFile:
    """Read a file such as `v1-5-pruned-emaonly.safetensors` or `v2-1_768-ema-pruned.ckpt`.

    Args:
        path: A file of Stable Diffusion 1, 2 or 2.1.
        predicts: What the network predicts. It is known for files of Stable Diffusion 1, and for
            the published files of 2 by their names.
        size: Height and width of its images in pixels; None takes the published network's size.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read or holds another model, or `predicts` is needed.
    """
    state = read_family(path, "stable-diffusion")
    second = any(name.startswith(_OPEN_CLIP) for name in state)
    prefix = _OPEN_CLIP if second else _CLIP
    for part, part_prefix in (("autoencoder", _VAE), ("text encoder", prefix)):
        if not any(name.startswith(part_prefix) for name in state):
            raise ValueError(
                f"{path} holds no {part} of Stable Diffusion 1 or 2 (no name begins with "
                f"{part_prefix!r}): take the complete file of the model, or its folder in the layout "
                "of diffusers"
            )
    if second and (predicts := predicts or _PREDICTED.get(Path(path).stem)) is None:
        raise ValueError(
            f"{path} holds Stable Diffusion 2, whose files do not say what the network predicts: "
            "set predicts: noise for a model for 512 pixels (2-base, 2.1-base), or predicts: "
            "velocity for one for 768 pixels (2, 2.1)"
        )
    predicts = predicts or "noise"
    text = _with_prefix(state, prefix)
    return SingleFile(
        Path(path),
        _unet_names(_averaged(state, path)),
        _vae_names(_with_prefix(state, _VAE)),
        _open_clip_names(text) if second else _clip_names(text),
        predicts,
        size or (768 if second and predicts == "velocity" else 512),
        "!" if second else "<|endoftext|>",
    )


def build_unet(file: SingleFile, dtype: torch.dtype, factor: int) -> Any:
    """Build the `UNet2DConditionModel` of a file, with its weights.

    Args:
        file: The weights and settings of the file.
        dtype: The type of the weights.
        factor: Height and width of an image divided by those of its latent.

    Raises:
        ValueError: The network is incomplete or of another kind.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    make: Any = UNet2DConditionModel  # its annotations are too narrow
    state = file.unet
    widths = _widths(state, "down_blocks.{}.resnets.0.conv1.weight")
    attends = [f"down_blocks.{i}.attentions.0.norm.weight" in state for i in range(len(widths))]
    text_weight = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    projection = state.get("mid_block.attentions.0.proj_in.weight")
    if (
        not widths
        or text_weight not in state
        or projection is None
        or "conv_out.weight" not in state
    ):
        raise ValueError(f"{file.path} does not hold a complete U-Net: fetch it again")
    linear = projection.ndim == 2  # from Stable Diffusion 2 on
    with torch.device("meta"):
        network = make(
            sample_size=file.size // factor,
            in_channels=state["conv_in.weight"].shape[1],
            out_channels=len(state["conv_out.weight"]),
            down_block_types=tuple(
                "CrossAttnDownBlock2D" if attending else "DownBlock2D" for attending in attends
            ),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if attending else "UpBlock2D" for attending in attends[::-1]
            ),
            block_out_channels=tuple(widths),
            layers_per_block=len(_widths(state, "down_blocks.0.resnets.{}.conv1.weight")),
            cross_attention_dim=state[text_weight].shape[1],
            attention_head_dim=tuple(w // _HEAD_WIDTH for w in widths) if linear else _HEADS,
            use_linear_projection=linear,
        )
    return _load_weights_into(network, state, file.path, dtype)


def build_vae(file: SingleFile) -> Any:
    """Build the `AutoencoderKL` of a file, with its weights, in float32.

    Raises:
        ValueError: The network is incomplete or of another kind.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    make: Any = AutoencoderKL  # as for the U-Net
    state = file.vae
    widths = _widths(state, "encoder.down_blocks.{}.resnets.0.conv1.weight")
    if not widths or "post_quant_conv.weight" not in state:
        raise ValueError(f"{file.path} does not hold a complete autoencoder: fetch it again")
    with torch.device("meta"):
        network = make(
            block_out_channels=tuple(widths),
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=len(_widths(state, "encoder.down_blocks.0.resnets.{}.conv1.weight")),
            latent_channels=state["post_quant_conv.weight"].shape[1],
            sample_size=file.size,
        )
    return _load_weights_into(network, state, file.path, torch.float32)


def build_text_encoder(file: SingleFile) -> Any:
    """Build the `CLIPTextModel` of a file, with its weights, in float32.

    Raises:
        ValueError: The network is incomplete or of another kind.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    state = file.text
    layers = len(_widths(state, "encoder.layers.{}.mlp.fc1.weight"))
    needed = ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight")
    if not layers or not all(name in state for name in needed):
        raise ValueError(f"{file.path} does not hold a complete text encoder: fetch it again")
    (words, width), (length, _) = (state[name].shape for name in needed)
    settings = CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=len(state["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 1),
        max_position_embeddings=length,
        hidden_act="gelu" if file.fill == "!" else "quick_gelu",
        bos_token_id=words - 2,
        eos_token_id=words - 1,
    )
    with torch.device("meta"):
        network = CLIPTextModel(settings)
    if hasattr(network, "text_model"):  # before transformers 5.6
        state = {f"text_model.{name}": value for name, value in state.items()}
    network = _load_weights_into(network, state, file.path, torch.float32)
    for module in network.modules():
        if "position_ids" in vars(module)["_buffers"]:  # not in the file, so still on meta
            module.position_ids = torch.arange(length)[None]
    return network


def _averaged(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the weights of the U-Net: the averaged ones (named without dots) if there are any."""
    raw = _with_prefix(state, _UNET)
    names = {name: f"{_AVERAGE}diffusion_model{name.replace('.', '')}" for name in raw}
    averaged = {name: state[other] for name, other in names.items() if other in state}
    if not averaged:
        return raw
    if missing := [name for name in raw if name not in averaged]:
        raise ValueError(
            f"{path} has averaged weights under {_AVERAGE!r}, but not of {missing[0]}: fetch it again"
        )
    print(f"unfool: {path}: using the averaged weights ({_AVERAGE.rstrip('.')!r})", file=sys.stderr)
    return averaged


def _unet_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    block_names = _block_names(state)
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        part, _, kind = name.rpartition(".")
        match = re.fullmatch(r"((?:input|output)_blocks\.\d+\.\d+|middle_block\.\d)\.(.+)", part)
        if match is None or match[1] not in block_names:
            new = _ENDS.get(part, part)
        elif ".resnets." in (block := block_names[match[1]]):
            new = f"{block}.{_RESNET.get(match[2], match[2])}"
        elif "samplers." in block:
            new = f"{block}.conv"
        else:
            new = f"{block}.{match[2]}"
        renamed[f"{new}.{kind}"] = value
    return renamed


def _block_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Map parts of blocks, such as `input_blocks.4.1`, to their names in diffusers."""
    names = dict(_MIDDLE)
    parts = {m[0] for name in state if (m := re.match(r"(input|output)_blocks\.\d+\.\d+\.", name))}
    for side, ours in (("input", "down"), ("output", "up")):
        layers = sorted(
            tuple(map(int, part.split(".")[1:3])) for part in parts if part.startswith(side)
        )
        level, number, last = 0, 0, 1 if side == "input" else 0
        for block, layer in layers:
            theirs = f"{side}_blocks.{block}.{layer}"
            if theirs == "input_blocks.0.0":
                continue
            if block != last:
                number, last = number + 1, block
            if f"{theirs}.op.weight" in state or f"{theirs}.conv.weight" in state:
                names[theirs] = f"{ours}_blocks.{level}.{ours}samplers.0"
                level, number = level + 1, -1
            else:
                kind = "resnets" if f"{theirs}.in_layers.0.weight" in state else "attentions"
                names[theirs] = f"{ours}_blocks.{level}.{kind}.{number}"
    return names


def _vae_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    levels = len({name.split(".")[2] for name in state if name.startswith("decoder.up.")})
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        half, _, inner = name.partition(".")
        if half in ("encoder", "decoder"):
            name = f"{half}.{name_in_diffusers(inner, levels)}"
            if ".attentions." in name and name.endswith(".weight"):
                value = value.flatten(1) if value.ndim == 4 else value  # from 1x1 convolutions
        renamed[name] = value
    return renamed


def _clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    used = {n: v for n, v in state.items() if not n.endswith(_NO_WEIGHTS)}
    return {name.removeprefix("text_model."): value for name, value in used.items()}


def _open_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of OpenCLIP, and drop the last block, which is not used."""
    blocks = "transformer.resblocks."
    last = max((int(n.split(".")[2]) for n in state if n.startswith(blocks)), default=0)
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(_NO_WEIGHTS) or name.startswith(f"{blocks}{last}."):
            continue
        for old, new in _OF_OPEN_CLIP:
            name = re.sub(old, new, name)
        if match := re.fullmatch(r"(.+)\.attn\.in_proj_(weight|bias)", name):
            rows = zip("qkv", value.chunk(3), strict=True)
            renamed |= {f"{match[1]}.self_attn.{to}_proj.{match[2]}": r for to, r in rows}
        else:
            renamed[name] = value
    return renamed


def _with_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def _widths(state: Mapping[str, Tensor], name: str) -> list[int]:
    """Count the rows of each weight `name` with 0, 1, ... filled in, until one is missing."""
    widths: list[int] = []
    while (weight := state.get(name.format(len(widths)))) is not None:
        widths.append(len(weight))
    return widths


def _load_weights_into(
    network: Any, state: Mapping[str, Tensor], path: Path, dtype: torch.dtype
) -> Any:
    load_state(network, {n: v.to(dtype) for n, v in state.items()}, str(path), assign=True)
    return network.eval().requires_grad_(False)
