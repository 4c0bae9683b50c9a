"""Compare the memory that a step's graph keeps with our frozen layers and with PyTorch's layers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from measuring import error, interleaved, over, shown, table
from unfool.diffusion.gradient import chain, keep_graphs
from unfool.networks import score_unet, unet
from unfool.networks.frozen_layers import Conv2d
from unfool.networks.score_unet import ADM, DDPMPP, ScoreUNet
from unfool.noise import Noise, seed_torch
from unfool.runtime.memory import kept_by_graphs
from variants import base, frozen, small

# Networks, and the shape of their images.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int, int]]] = {
    "4.2 M parameters": (lambda: small().get_submodule("network"), (4, 3, 32, 32)),
    "35.7 M parameters": (lambda: base().get_submodule("network"), (1, 3, 32, 32)),
    "DDPM++ (62 M)": (
        lambda: ScoreUNet([128, 256, 256, 256], layers=4, attention=[1], style=DDPMPP),
        (1, 3, 32, 32),
    ),
    "ADM, half as wide (138 M)": (
        lambda: ScoreUNet([128, 128, 256, 256, 512, 512], layers=2, attention=[3, 4, 5], style=ADM),
        (1, 3, 64, 64),
    ),
}
STEPS = 2  # steps of a chain whose graphs fit into memory only with our layers


def activations(device: str, _: dict[str, Any], repetitions: int) -> list[str]:
    """Tabulate the bytes of a step's graph, and the times of a forward pass and of a gradient."""
    rows = []
    for name, (make, shape) in NETWORKS.items():
        seed_torch(0, name)
        network = frozen(make()).to(device)
        _randomize(network)
        x = Noise.of(0, range(shape[0])).normal(torch.empty(shape)).to(device)
        time = torch.full((shape[0],), 100.0, device=device)
        ways = {way: _Way(network, x, time, way == "torch") for way in ("torch", "ours")}
        kept = {way: runs.kept() / shape[0] / 2**20 for way, runs in ways.items()}
        ways["torch"].graphs = int(STEPS * kept["ours"] / kept["torch"])
        took = interleaved(
            {f"{way} {run}": getattr(runs, run) for way, runs in ways.items() for run in _RUNS},
            device,
            repetitions,
        )
        rows.append(
            [
                name,
                f"{kept['torch']:.1f}",
                f"{kept['ours']:.1f}",
                f"{kept['ours'] / kept['torch']:.2f}",
                *(over(took, f"ours {run}", f"torch {run}") for run in _RUNS[:2]),
                over(took, f"torch {_RUNS[2]}", f"ours {_RUNS[2]}"),
                shown(error(ways["ours"].gradient(), ways["torch"].gradient()), 2),
            ]
        )
    heads = ["", "MiB, torch", "MiB, ours", "ratio", "forward", "gradient"]
    heads += ["fits only with ours", "error float32"]
    return [
        "### Memory of a step's graph",
        "",
        "MiB per image that the graph of one call keeps, with the layers of torch and with those of "
        "`networks/frozen_layers.py`; the time of ours over that of torch's. *Fits only with ours*: how "
        f"many times as fast a gradient through {STEPS} steps is, where {STEPS} of our graphs fit "
        "into memory and none of torch's does, so that these must be replayed.",
        "",
        *table(heads, rows),
    ]


_RUNS = ("forward", "gradient", "through_steps")


class _Way:
    """A network, executed with the layers of torch or with ours."""

    def __init__(self, network: nn.Module, x: Tensor, time: Tensor, plain: bool):
        self.network, self.x, self.time, self.plain = network, x, time, plain
        self.graphs = STEPS  # number of graphs that fit into memory

    def forward(self) -> Tensor:
        """The output of the network, without a graph."""
        with torch.no_grad(), _layers_of_torch(self.plain):
            return self.network(self.x, self.time)

    def gradient(self) -> Tensor:
        """The gradient of the squared norm of the output."""
        x = self.x.clone().requires_grad_()
        with _layers_of_torch(self.plain):
            return torch.autograd.grad(self.network(x, self.time).square().sum(), x)[0]

    def through_steps(self) -> Tensor:
        """The gradient through several steps, of which as many keep their graphs as fit."""
        x = self.x.clone().requires_grad_()
        with _layers_of_torch(self.plain), keep_graphs(self.graphs):
            out = chain(lambda _, x: x + 0.1 * self.network(x, self.time), x, STEPS)
            return torch.autograd.grad(out.square().sum(), x)[0]

    def kept(self) -> int:
        """The bytes that the graph of a gradient keeps."""
        with kept_by_graphs(self.network) as kept:
            self.gradient()
        return kept.peak


@contextmanager
def _layers_of_torch(plain: bool) -> Iterator[None]:
    if not plain:
        yield
        return
    with (
        patch.object(Conv2d, "forward", nn.Conv2d.forward),
        patch.object(unet, "norm_silu", _norm_silu),
        patch.object(score_unet, "norm_silu", _norm_silu),
    ):
        yield


def _norm_silu(
    norm: nn.GroupNorm, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    x = norm(x)
    return F.silu(x if scale is None or shift is None else x * (1 + scale) + shift)


def _randomize(network: nn.Module) -> None:
    """Randomize all matrices and kernels, because weights of 0 would make gradients 0."""
    for weight in network.parameters():
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight)
