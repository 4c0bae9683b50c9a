"""Files in the layouts of published checkpoints, with weights from a rule, and original outputs."""

import json
import math
import pickle
import sys
import types
import unittest.mock
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from published_rule import numbers
from unfool.networks.score_unet import ScoreUNet

HOME = Path(__file__).parents[1] / "fixtures" / "checkpoints"


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the weight of this name: matrices of unit gain, scales around 1, shifts around 0."""
    values = numbers(name, shape)
    if len(shape) >= 2:
        values = values * math.sqrt(3 / math.prod(shape[1:]))
    elif len(shape) == 0:
        values = 0.5 + 0.25 * values
    else:
        values = 1 + 0.2 * values if name.endswith("weight") else 0.2 * values
    return torch.from_numpy(np.asarray(values)).float()


def fixture(name: str) -> dict[str, Any]:
    """Load what is known of a published layout, such as the shapes of its weights."""
    return json.loads((HOME / f"{name}.json").read_text("utf-8"))


def state_of(known: dict[str, Any], seed: str | None = None) -> dict[str, Tensor]:
    """Return the weights of a layout under their published names; they depend on `seed`."""
    prefix = known.get("seed_prefix", "") if seed is None else seed
    return {n: weight(prefix + n, tuple(shape)) for n, shape in known["weights"].items()}


def lively(network: Any) -> Any:
    """Set the weights of a network by the rule, so that each of them affects the output."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(weight(name, tuple(value.shape)))
    return network.eval().requires_grad_(False)


def edm_pickle(known: dict[str, Any], path: Path) -> Path:
    """Write a pickle as EDM does: objects of classes that the reader lacks, with source code.

    The source would end the process if it ran. The file has raw weights beside the averaged ones.
    """
    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    homes = {n: types.ModuleType(n) for n in ("torch_utils", "torch_utils.persistence")}
    homes |= {n: types.ModuleType(n) for n in ("dnnlib", "dnnlib.util")}
    vars(homes["torch_utils.persistence"])["_reconstruct_persistent_obj"] = (
        _reconstruct_persistent_obj
    )
    vars(homes["dnnlib.util"])["EasyDict"] = easy
    content = {
        "model": _root(known, "raw."),
        "ema": _root(known, known.get("seed_prefix", "")),
        "dataset_kwargs": easy(batch=3),
        "loss": np.float64(1.5),
    }
    with unittest.mock.patch.dict(sys.modules, homes):
        path.write_bytes(pickle.dumps(content))
    return path


def _reconstruct_persistent_obj(_: Any) -> None:
    raise AssertionError("code of the file ran")


class _Persistent:
    """A module of EDM, which is pickled as the name and source of its class, and its attributes."""

    def __init__(self, name: str, **state: Any):
        self.name, self.state = name, state

    def __reduce__(self) -> Any:
        meta = {"type": "class", "version": 6, "class_name": self.name}
        meta |= {"module_src": "raise SystemExit", "state": self.state}
        return _reconstruct_persistent_obj, (meta,)


def _root(known: dict[str, Any], seed: str) -> _Persistent:
    """Build the tree of modules that the names of the weights describe."""
    root = _tree(known["class_name"])
    weights = state_of(known, seed) | {
        n: torch.ones(shape) for n, shape in known.get("constant", {}).items()
    }
    weights |= known.get("tables", {})
    for name, value in weights.items():
        *path, last = name.split(".")
        at = root
        for step in path:
            at = at.state["_modules"].setdefault(step, _tree("Layer"))
        kind = "_parameters" if last in ("weight", "bias") else "_buffers"
        at.state[kind][last] = nn.Parameter(value) if kind == "_parameters" else value
    root.state["_init_kwargs"] = known["init_kwargs"]
    return root


def _tree(name: str) -> _Persistent:
    return _Persistent(name, _parameters={}, _buffers={}, _modules={}, training=False)


OPENAI = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}


def openai_state(network: ScoreUNet, order: str) -> dict[str, Tensor]:
    """Return the weights of our network under the names of guided-diffusion."""
    state = {}

    def put(block: Any, place: str, layer: int) -> None:
        if hasattr(block, "conv"):
            name = "op" if place.startswith("input") else "conv"
            state.update(_named(block.conv, f"{place}.{layer}.{name}"))
            return
        for ours, theirs in OPENAI.items():
            state.update(_named(getattr(block, ours), f"{place}.{layer}.{theirs}"))
        if block.attention is not None:
            at = f"middle_block.{layer + 1}" if place == "middle_block" else f"{place}.{layer + 1}"
            attention = block.attention
            state.update(_named(attention.norm, f"{at}.norm"))
            heads = attention.to_q.out_features // attention.head
            parts = (attention.to_q, attention.to_k, attention.to_v)
            for kind in ("weight", "bias"):
                rows = [getattr(part, kind) for part in parts]
                if order == "legacy":  # head by head
                    rows = [r.chunk(heads)[i] for i in range(heads) for r in rows]
                table = torch.cat(rows)
                state[f"{at}.qkv.{kind}"] = table[..., None] if kind == "weight" else table
            state[f"{at}.proj_out.weight"] = attention.to_out.weight[..., None]
            state[f"{at}.proj_out.bias"] = attention.to_out.bias

    for i, linear in enumerate(network.time):
        state.update(_named(linear, f"time_embed.{2 * i}"))
    if network.label is not None:
        state["label_emb.weight"] = network.label.weight
    state.update(_named(network.conv_in, "input_blocks.0.0"))
    for i, block in enumerate(network.down, 1):
        put(block, f"input_blocks.{i}", 0)
    for i, block in enumerate(network.middle):
        put(block, "middle_block", 2 * i)
    number, layers = -1, 0
    for block in network.up:
        if not block.resample:
            number, layers = number + 1, 0
        put(block, f"output_blocks.{number}", layers)
        layers += 1 if getattr(block, "attention", None) is None else 2
    state.update(_named(network.norm_out, "out.0"))
    state.update(_named(network.conv_out, "out.2"))
    return state


def score_sde_state(network: ScoreUNet) -> dict[str, Tensor]:
    """Return the weights of our network under the names of score_sde."""
    parts: list[dict[str, Tensor]] = []
    if network.style.fourier:
        parts.append({"W": network.frequencies})
    pyramid = iter(network.pyramid)
    parts += [dict(linear.state_dict()) for linear in network.time]
    parts.append(dict(network.conv_in.state_dict()))
    blocks: list[Any] = [*network.down, *network.middle, *network.up]
    for block in blocks:
        state = {}
        for ours, theirs in SCORE_SDE.items():
            state |= _named(getattr(block, ours), theirs)
        parts.append(state)
        if block.attention is not None:
            state = _named(block.attention.norm, "GroupNorm_0")
            for i, part in enumerate(("to_q", "to_k", "to_v", "to_out")):
                linear = getattr(block.attention, part)
                state |= {f"NIN_{i}.W": linear.weight.T, f"NIN_{i}.b": linear.bias}
            parts.append(state)
        if block.resample == -1 and network.style.pyramid:
            parts.append(_named(next(pyramid), "Conv2d_0"))
    parts += [dict(network.norm_out.state_dict()), dict(network.conv_out.state_dict())]
    return {f"all_modules.{i}.{n}": v for i, part in enumerate(parts) for n, v in part.items()}


SCORE_SDE = {
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "time": "Dense_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
    "shortcut": "Conv_2",
}


def _named(module: nn.Module, name: str) -> dict[str, Tensor]:
    return {f"{name}.{kind}": value for kind, value in module.state_dict().items()}
