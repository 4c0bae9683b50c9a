"""LoRA (Hu et al., 2022): a few trained weights added to a frozen network, by the library peft.

A layer with matrix W gets matrices A and B of low rank, and computes (W + alpha / rank B A) x. B
starts at 0, so the network is unchanged at first. Adapters are stored in the layout of diffusers.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfool.models.checkpoints import read_state
from unfool.ranges import Count, Positive, ShareBelowOne, check_arguments

ATTENTION = ("to_q", "to_k", "to_v", "to_out", "to_out.0")  # `to_out.0` in diffusers
Layers = str | Sequence[str] | None

_ROLES = ("unet.", "transformer.")  # prefixes of diffusers before the names of a network's layers
_METADATA = "lora_adapter_metadata"  # the entry in which diffusers looks for alpha


def add(
    model: nn.Module,
    rank: Count = 4,
    alpha: Positive | None = None,
    layers: Layers = None,
    dropout: ShareBelowOne = 0.0,
) -> list[str]:
    """Add an adapter to layers of a denoiser's network, and freeze all other weights.

    Args:
        model: A denoiser, or any module; it is changed in place.
        rank: The rank of the adapter.
        alpha: The strength of the adapter; None takes the rank.
        layers: `"attention"` (queries, keys, values and outputs), `"convolutions"`, or names of
            linear and convolutional layers, in full or from a dot on; None takes the attention
            layers, or the convolutions if there are none.
        dropout: The share of the adapter's inputs that is dropped in training.

    Returns:
        The names of the layers within the network.

    Raises:
        ValueError: There are no such layers, an option is out of range, or peft is not installed.
    """
    check_arguments(add, locals())
    network = adapted_network(model)
    names = _choose_layers(network, layers)
    model.requires_grad_(False)
    _inject(network, rank, alpha or rank, names, dropout)
    return names


def save(model: nn.Module) -> bytes:
    """Return the adapter of a model as the content of a file `pytorch_lora_weights.safetensors`."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save as to_bytes

    network = adapted_network(model)
    role = _ROLES["Transformer" in type(network).__name__]
    adapters: Any = network.peft_config
    config = adapters["default"]
    state = {
        role + name: tensor.detach().float().cpu().contiguous()
        for name, tensor in get_peft_model_state_dict(network).items()
    }
    metadata = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": list(_adapted(network)),
    }
    metadata = json.dumps({role + key: value for key, value in metadata.items()})
    # A single entry, because the order of several varies.
    return to_bytes(state, {_METADATA: metadata})


def load(model: nn.Module, path: Path, base: str | None = None, precision: str = "float32") -> None:
    """Merge an adapter from a file into the weights of a model.

    Args:
        model: The denoiser that the adapter belongs to, in float32 (lower precision would round off
            what is added); it is changed in place.
        path: The file, in the layout of peft or an older one of diffusers.
        base: The hash that `base_weights_hash` returned for the model in training; None if it is
            unknown.
        precision: The precision of the network in training, to which the merged one is converted.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds no adapter or one for another model, or peft is not installed.
    """
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    network = adapted_network(model)
    state: dict[str, Tensor] = convert_unet_state_dict_to_peft(read_state(path))
    for role in _ROLES:
        state = {name.removeprefix(role): value for name, value in state.items()}
    parts = {name: re.fullmatch(r"(.+)\.lora_[AB]\.weight", name) for name in state}
    for name, part in parts.items():
        if part is None:
            raise ValueError(
                f"{path} is not a LoRA adapter of a denoiser, for it holds {name}: name the file "
                "of an adapter"
            )
    layers = sorted({part[1] for part in parts.values() if part})
    halves = (f"{layer}.lora_{half}.weight" for layer in layers for half in "AB")
    if lacks := [name for name in halves if name not in state]:
        raise ValueError(
            f"{path} is not a complete LoRA adapter, for it lacks {lacks[0]}: copy it again"
        )
    own = dict(network.named_modules())
    strange = [name for name in layers if not isinstance(own.get(name), nn.Linear | nn.Conv2d)]
    misfit = f"{path} is an adapter for another model"
    if strange:
        raise ValueError(f"{misfit}: this one has no layer {strange[0]}")
    if base is not None and base_weights_hash(model, layers, precision) != base:
        raise ValueError(f"{misfit}: the base weights have changed since it was trained")
    rank = next(len(value) for name, value in state.items() if ".lora_A." in name)
    _inject(network, rank, _alpha(path) or rank, layers)
    from peft import set_peft_model_state_dict

    try:
        result = set_peft_model_state_dict(network, state)
    except RuntimeError as error:
        raise ValueError(f"{misfit}: a layer has another size ({str(error)[-80:]})") from error
    if result.unexpected_keys:
        raise ValueError(
            f"{misfit}: it has the weight {result.unexpected_keys[0]}, which this one lacks"
        )
    _merge(network)
    if precision != "float32":
        getattr(model, "network", model).to(getattr(torch, precision))


def merged(model: nn.Module) -> nn.Module:
    """Return a copy of a model with the adapter merged into its weights, in the original layers."""
    copy = deepcopy(model)
    _merge(adapted_network(copy))
    return copy


def base_weights_hash(
    model: nn.Module, layers: Sequence[str] | None = None, precision: str = "float32"
) -> str:
    """Return a hash of the weights that an adapter belongs to, rounded to `precision`.

    Name `layers` if the model has no adapter yet.
    """
    network, digest = adapted_network(model), hashlib.sha256()
    for name in sorted(layers or _adapted(network)):
        layer: Any = network.get_submodule(name)
        weight = getattr(layer, "base_layer", layer).weight
        rounded = weight.detach().to(getattr(torch, precision)).float().cpu().contiguous()
        digest.update(name.encode() + rounded.numpy().tobytes())
    return digest.hexdigest()


def adapted_network(model: nn.Module) -> nn.Module:
    """Return the network that names the layers: diffusers' inner network, if there is one."""
    network = getattr(model, "network", model)
    return next((part for part in network.modules() if _of_diffusers(part)), network)


def _of_diffusers(module: nn.Module) -> bool:
    """Return whether a module is a model of diffusers, without importing diffusers."""
    return any(kind.__name__ == "ModelMixin" for kind in type(module).__mro__)


def _choose_layers(network: nn.Module, layers: Layers) -> list[str]:
    candidates = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}

    def ending(ends: Sequence[str]) -> list[str]:
        return [n for n in candidates if any(n == end or n.endswith(f".{end}") for end in ends)]

    convolutions = [name for name, layer in candidates.items() if isinstance(layer, nn.Conv2d)]
    if layers is None:
        names = ending(ATTENTION) or convolutions
    elif isinstance(layers, str):
        if layers not in ("attention", "convolutions"):
            raise ValueError(
                f"lora.layers must be attention, convolutions, or a list of names, not {layers!r}"
            )
        names = ending(ATTENTION) if layers == "attention" else convolutions
    else:
        unknown = [end for end in layers if not ending([end])]
        if unknown:
            raise ValueError(
                f"lora: the network has no linear or convolutional layer {unknown[0]!r}; it has "
                f"{', '.join(list(candidates)[:4])}, ..."
            )
        names = ending(layers)
    if not names:
        raise ValueError(f"lora: the network has no {layers or 'linear or convolutional'} layers")
    return names


def _inject(
    network: nn.Module, rank: int, alpha: float, names: Sequence[str], dropout: float = 0.0
) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except (ImportError, RuntimeError) as error:
        raise ValueError("LoRA needs the library peft: run pip install 'unfool[lora]'") from error
    if _adapted(network):
        raise ValueError("the network already has an adapter: name the weights without it")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore
        lora_dropout=dropout,
        target_modules="|".join(map(re.escape, names)),  # a pattern that matches only these names
        init_lora_weights="gaussian",
    )
    inject_adapter_in_model(config, network)
    for layer in _adapted(network).values():
        layer.lora_A.float()  # even if the weights are in half precision
        layer.lora_B.float()
        layer.train(network.training)  # new modules start in training mode, with dropout


def _merge(network: nn.Module) -> None:
    for name, layer in _adapted(network).items():
        layer.merge()
        network.set_submodule(name, layer.get_base_layer())
    del network.peft_config  # pyright: ignore


def _adapted(network: nn.Module) -> dict[str, Any]:
    return {
        n: m for n, m in network.named_modules() if hasattr(m, "lora_A") and hasattr(m, "merge")
    }


def _alpha(path: Path) -> float | None:
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return None
    with safe_open(path, "pt") as file:
        metadata = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    return next(
        (metadata[key] for role in (*_ROLES, "") if (key := f"{role}lora_alpha") in metadata), None
    )
