"""Networks of EDM2 (Karras et al., 2024), with the normalization of weights done at loading."""

import math
from pathlib import Path

import torch
from torch import Tensor

from unfool.models.checkpoints import load_state
from unfool.models.published.parts import depth, gather, locate_by_resolution, renamed
from unfool.networks.magnitude_unet import MagnitudeUNet, to_unit

FAMILY = "unet.emb_fourier.freqs"  # a weight that all files of EDM2 have
_BLOCK = {
    "conv_res0": "conv1",
    "conv_res1": "conv2",
    "emb_linear": "time",
    "conv_skip": "shortcut",
    "attn_qkv": "qkv",
    "attn_proj": "out",
}
_ENDS = {"emb_noise": "time", "emb_label": "label", "out_conv": "conv_out"}


def build_edm2(state: dict[str, Tensor], source: Path, head_width: int) -> MagnitudeUNet:
    """Build the network of EDM2's weights, in float32 and frozen.

    Args:
        state: The weights by their published names; it is emptied to save memory.
        source: The file, for messages.
        head_width: Channels per attention head.

    Raises:
        ValueError: The network is incomplete or works on latents.
    """
    sections, outside = gather(_scaled(state), locate_by_resolution, _BLOCK)
    layers, firsts = depth(sections)
    first = next((n for n in outside if n.startswith("enc.") and n.endswith("_conv.weight")), None)
    if first is None or layers == 0 or "out_conv.weight" not in outside:
        raise ValueError(f"{source} does not hold a complete network of EDM2: fetch it again")
    if len(outside["out_conv.weight"]) not in (1, 3):
        raise ValueError(
            f"{source} works on latents of {len(outside['out_conv.weight'])} channels, which is "
            "not supported: take a file for 64 pixels (edm2-img64-...)"
        )
    ours = renamed(outside, _ENDS | {first.removesuffix(".weight"): "conv_in"})
    for theirs, name in (("freqs", "frequencies"), ("phases", "phases")):
        ours[name] = ours.pop(f"emb_fourier.{theirs}")
    for section, parts in sections.items():
        ours |= {f"{section}.{i}.{n}": v for i, part in enumerate(parts) for n, v in part.items()}
    label = ours.get("label.weight")
    with torch.device("meta"):
        network = MagnitudeUNet(
            [len(part["conv1.weight"]) for part in firsts],
            layers=layers,
            attention=[i for i, part in enumerate(firsts) if "qkv.weight" in part],
            channels=len(ours["conv_out.weight"]),
            embedding_size=len(ours["time.weight"]),
            frequencies=len(ours["frequencies"]),
            classes=0 if label is None else label.shape[1],
            head_width=head_width,
        )
    load_state(network, {n: v.float() for n, v in ours.items()}, str(source), assign=True)
    return network.eval().requires_grad_(False)


def _scaled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Normalize weights to unit magnitude per output, divide by sqrt(inputs), multiply by gains.

    The weights are removed from `state`.
    """
    gains = {n.removeprefix("unet."): state.pop(n) for n in list(state) if n.endswith("_gain")}
    gains = {n.replace("emb_gain", "emb_linear.weight").replace("out_gain", "out_conv.weight"): gain
             for n, gain in gains.items()}  # fmt: skip
    scaled: dict[str, Tensor] = {}
    for name in list(state):
        value, inner = state.pop(name), name.removeprefix("unet.")
        if inner.startswith("logvar_"):  # used only in training
            continue
        if inner.endswith(".weight") and value.ndim > 1:
            unit = to_unit(value.float(), tuple(range(1, value.ndim)))
            scaled[inner] = unit * gains.get(inner, 1) / math.sqrt(value[0].numel())
        else:
            scaled[inner] = value
    return scaled
