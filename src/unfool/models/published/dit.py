"""DiT (Peebles and Xie, 2023) from the files of its authors, in the network of diffusers."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfool.models.checkpoints import load_state
from unfool.models.published.parts import read_family

_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # attention heads of published networks, by width
_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_SHARED = {  # shared by all blocks of the original network, but repeated in each block of diffusers
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
_ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}


def build_transformer(path: Path, heads: int | None, dtype: torch.dtype) -> Any:
    """Build a `DiTTransformer2DModel` from an original file, such as `DiT-XL-2-256x256.pt`.

    Args:
        path: The file; from a training checkpoint, the averaged weights are used.
        heads: Number of attention heads; None takes that of the published network.
        dtype: The type of the weights.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read or holds another network, or `heads` is needed.
    """
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    state = read_family(path, "dit")
    positions = state.pop("pos_embed", None)
    layers = 1 + max((int(n.split(".")[1]) for n in state if n.startswith("blocks.")), default=-1)
    if positions is None or layers == 0 or "final_layer.linear.weight" not in state:
        raise ValueError(f"{path} does not hold a complete DiT: fetch it again")
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    heads = heads or _HEADS.get(width)
    if heads is None or width % heads:
        advice = "give the number of its attention heads (such as heads: 16)"
        raise ValueError(f"{path} has a width of {width}, which no published DiT has: {advice}")
    table = state.get("y_embedder.embedding_table.weight", torch.empty(1, 0))
    with torch.device("meta"):
        network = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=channels,
            out_channels=len(state["final_layer.linear.weight"]) // patch**2,
            num_layers=layers,
            sample_size=math.isqrt(positions.shape[1]) * patch,
            patch_size=patch,
            num_embeds_ada_norm=len(table) - 1,  # the last row is the null class
        )
    ours = {n: v.to(dtype) for n, v in _renamed(state, layers).items()}
    load_state(network, ours, str(path), assign=True)
    vars(network.pos_embed)["_buffers"]["pos_embed"] = positions.float()
    return network


def tell_time_as_original(network: Any) -> None:
    """Make diffusers' network compute what the original network does, as its weights expect.

    The network of diffusers embeds the time at other frequencies, and normalizes with another
    epsilon.
    """
    for module in network.modules():
        if hasattr(module, "downscale_freq_shift"):
            module.downscale_freq_shift = 0
        if hasattr(module, "norm3"):
            module.norm3.eps = 1e-6


def _renamed(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Rename the weights to the names of diffusers."""
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        part, _, kind = name.rpartition(".")
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", part)
        if part in _SHARED:
            prefix = "transformer_blocks.{}.norm1.emb." + _SHARED[part]
            ours |= {f"{prefix.format(i)}.{kind}": value.clone() for i in range(layers)}
        elif match and match[2] == "attn.qkv":
            prefix = f"transformer_blocks.{match[1]}.attn1"
            rows = zip("qkv", value.chunk(3), strict=True)
            ours |= {f"{prefix}.to_{to}.{kind}": r for to, r in rows}
        elif match:
            ours[f"transformer_blocks.{match[1]}.{_BLOCK.get(match[2], match[2])}.{kind}"] = value
        else:
            ours[f"{_ENDS.get(part, part)}.{kind}"] = value
    return ours
