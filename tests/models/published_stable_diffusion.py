"""A small Stable Diffusion in two layouts: a folder of diffusers, and the authors' single file."""

from pathlib import Path

import tiny
import torch
from torch import Tensor

from unfool.noise import Noise, seed_torch

State = dict[str, Tensor]


def save_folder(folder: Path, version: int, prediction: str = "epsilon") -> Path:
    """Save a folder of Stable Diffusion 1 or 2 with as few channels as its norms and heads allow."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    seed_torch(version, "published")
    words = tiny.tokenizer(folder, "!" if version == 2 else "<|endoftext|>")
    text = CLIPTextConfig(
        vocab_size=words,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        hidden_act="gelu" if version == 2 else "quick_gelu",
        bos_token_id=words - 2,
        eos_token_id=words - 1,
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=128,
        attention_head_dim=(1, 2) if version == 2 else 8,  # pyright: ignore[reportArgumentType]
        use_linear_projection=version == 2,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        layers_per_block=2,
        latent_channels=4,
        sample_size=8,
    )
    tiny.lively(unet).save_pretrained(folder / "unet")
    tiny.lively(vae).save_pretrained(folder / "vae")
    tiny.lively(CLIPTextModel(text)).save_pretrained(folder / "text_encoder")
    tiny.scheduler(folder, prediction, "scaled_linear", 0.00085, 0.012)
    return folder


def single_state(folder: Path, version: int) -> State:
    """Return the weights of a folder under the names of the original code."""
    from safetensors.torch import load_file

    unet, vae, text = (
        load_file(next((folder / part).glob("*.safetensors")))
        for part in ("unet", "vae", "text_encoder")
    )
    state = {f"model.diffusion_model.{n}": v for n, v in _unet(unet).items()}
    state |= {f"first_stage_model.{n}": v for n, v in _vae(vae).items()}
    text = {n.removeprefix("text_model."): v for n, v in text.items()}
    if version == 1:
        state |= {f"cond_stage_model.transformer.text_model.{n}": v for n, v in text.items()}
        positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
        return state | {positions: torch.arange(24)[None]}
    return state | {f"cond_stage_model.model.{n}": v for n, v in _open_clip(text).items()}


def with_averages(state: State) -> State:
    """Return a training checkpoint: `state` as averages, whose names lack dots, and other raw weights."""
    home = "model.diffusion_model."
    averaged = {n: v for n, v in state.items() if n.startswith(home)}
    names = {
        n: "model_ema.diffusion_model" + n.removeprefix(home).replace(".", "") for n in averaged
    }
    raw = {n: v + 1 for n, v in averaged.items()}
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    return {**state, **raw, **{names[n]: v for n, v in averaged.items()}, **counters}


def _unet(state: State) -> State:
    """Rename a U-Net of two levels: input block 3 downsamples, and output block 2 upsamples."""
    ends = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",  # no attention at the deepest level
    }
    ends |= {f"mid_block.{part}": f"middle_block.{i}"
             for i, part in enumerate(("resnets.0", "attentions.0", "resnets.1"))}  # fmt: skip
    for level, first in ((0, 1), (1, 4)):
        for j in range(2):
            ends[f"down_blocks.{level}.resnets.{j}"] = f"input_blocks.{first + j}.0"
            ends[f"down_blocks.{level}.attentions.{j}"] = f"input_blocks.{first + j}.1"
    for level, first in ((0, 0), (1, 3)):
        for j in range(3):
            ends[f"up_blocks.{level}.resnets.{j}"] = f"output_blocks.{first + j}.0"
            ends[f"up_blocks.{level}.attentions.{j}"] = f"output_blocks.{first + j}.1"
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    return {_replaced(name, ends, inner, ".resnets."): value for name, value in state.items()}


def _vae(state: State) -> State:
    ends = {}
    for half, ours in (("encoder", "down"), ("decoder", "up")):
        for i in range(2):
            there = i if ours == "down" else 1 - i
            for j in range(3):
                ends[f"{half}.{ours}_blocks.{i}.resnets.{j}"] = f"{half}.{ours}.{there}.block.{j}"
            sampler = f"{half}.{ours}_blocks.{i}.{ours}samplers.0"
            ends[sampler] = f"{half}.{ours}.{there}.{ours}sample"
        for theirs, name in (
            ("resnets.0", "block_1"),
            ("resnets.1", "block_2"),
            ("attentions.0", "attn_1"),
        ):
            ends[f"{half}.mid_block.{theirs}"] = f"{half}.mid.{name}"
        ends[f"{half}.conv_norm_out"] = f"{half}.norm_out"
    inner = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    renamed = {}
    for name, value in state.items():
        looks = ".attentions." in name
        there = _replaced(name, ends, inner, ".attentions.")
        there = there.replace("conv_shortcut", "nin_shortcut")
        renamed[there] = value[:, :, None, None] if looks and value.ndim == 2 else value
    return renamed


def _open_clip(state: State) -> State:
    """Rename the text encoder, and add a last block, which Stable Diffusion leaves out."""
    state = dict(state)
    for name in list(state):
        if name.startswith("encoder.layers.1."):
            state[name.replace("layers.1.", "layers.2.")] = state[name] + 1
    renamed = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": Noise.of(5, [0]).normal(torch.empty(1, 128, 128))[0],
        "logit_scale": torch.tensor(4.6),
    }
    inner = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for i in range(3):
        theirs, ours = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            for name, new in inner.items():
                renamed[f"{ours}{new}.{kind}"] = state[f"{theirs}{name}.{kind}"]
            rows = [state[f"{theirs}self_attn.{to}_proj.{kind}"] for to in "qkv"]
            renamed[f"{ours}attn.in_proj_{kind}"] = torch.cat(rows)
    return renamed


def _replaced(name: str, ends: dict[str, str], inner: dict[str, str], where: str) -> str:
    home = next((h for h in sorted(ends, key=len, reverse=True) if name.startswith(f"{h}.")), None)
    if home is None:
        return name
    rest = name.removeprefix(f"{home}.")
    if where in f"{home}.":
        part, _, kind = rest.rpartition(".")
        rest = f"{inner.get(part, part)}.{kind}"
    return f"{ends[home]}.{rest}"
