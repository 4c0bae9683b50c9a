"""Tiny latent models, saved in the layout of diffusers."""

import json
import string
from pathlib import Path
from typing import Any

import torch

from unfool.noise import Noise, seed_torch


def autoencoder():
    """Return an autoencoder for 8 x 8 images, with latents of 4 channels."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    blocks: dict[str, Any] = {  # tuples of any length work, whatever the type hints say
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=8,
        **blocks,
    )


def lively(network):
    """Replace all-zero parameters by random ones, so that every weight affects the output."""
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            if not bool(p.any()):
                p.copy_(0.2 * Noise.of(3, [i]).normal(p[None])[0])
    return network


def scheduler(folder, prediction, kind, low, high):
    """Write the scheduler settings of a diffusion process with 1000 steps."""
    (folder / "scheduler").mkdir(parents=True)
    settings = {"beta_schedule": kind, "beta_start": low, "beta_end": high}
    settings |= {"num_train_timesteps": 1000, "prediction_type": prediction}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))


def tokenizer(folder: Path, fill: str = "!") -> int:
    """Write a tokenizer whose tokens are letters. Return the size of its vocabulary.

    As in Stable Diffusion 2, its files disagree about the padding token; `fill` is the one used.
    """
    letters = string.ascii_lowercase
    words = ["!", *letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    home = folder / "tokenizer"
    home.mkdir(parents=True)
    (home / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (home / "merges.txt").write_text("#version: 0.2\n")
    settings = {"pad_token": "<|endoftext|>", "model_max_length": 24}
    (home / "tokenizer_config.json").write_text(json.dumps(settings))
    (home / "special_tokens_map.json").write_text(json.dumps({"pad_token": fill}))
    return len(words)


def stable_diffusion(folder: Path, prediction: str = "epsilon") -> Path:
    """Save a text encoder with a tokenizer of letters, an autoencoder, and a U-Net for 8 x 8 images."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    seed_torch(0, "tiny")
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=(2, 2),  # pyright: ignore[reportArgumentType]
        use_linear_projection=True,
    )
    lively(unet).save_pretrained(folder / "unet")
    lively(autoencoder()).save_pretrained(folder / "vae")
    words = tokenizer(folder)
    text = CLIPTextConfig(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    scheduler(folder, prediction, "scaled_linear", 0.00085, 0.012)
    return folder


def dit(folder: Path) -> Path:
    """Save a DiT with 6 classes for 8 x 8 images, under the class name that the published ones have."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    seed_torch(1, "tiny")
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        norm_num_groups=4,
        sample_size=4,
        num_embeds_ada_norm=6,
    )
    lively(transformer).save_pretrained(folder / "transformer")
    path = folder / "transformer" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"_class_name": "Transformer2DModel"})
    )
    lively(autoencoder()).save_pretrained(folder / "vae")
    scheduler(folder, "epsilon", "linear", 1e-4, 0.02)
    return folder
