"""Compare the speed of our U-Net with that of diffusers, with the same weights."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from measuring import error, interleaved, over, shown, table
from unfool.networks.unet import UNet
from unfool.noise import Noise, seed_torch
from variants import frozen

# The arguments of `UNet`, and the batch sizes that are measured.
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "4.2 M parameters": ({"widths": (64, 128, 128), "patch": 2, "groups": 16}, (1, 8, 32)),
    "35.7 M parameters": ({"widths": (128, 256, 256, 256), "layers": 2, "attention": (1,)}, (1, 4)),
}


def forwards(device: str, _: dict[str, Any], repetitions: int) -> list[str]:
    """Tabulate the speedup over diffusers, in a forward pass without a graph and in a gradient."""
    try:
        import diffusers  # noqa: F401
    except ImportError:
        return ["### Beside diffusers", "", "Not measured: diffusers is not installed.", ""]
    rows = []
    for name, (options, batches) in NETWORKS.items():
        seed_torch(0, name)
        ours, theirs = UNet(3, **options), _Theirs(options)
        ours.load_state_dict(theirs.unet.state_dict())
        for images in batches:
            x = Noise.of(0, range(images)).normal(torch.empty(images, 3, 32, 32)).to(device)
            nets = {"ours": frozen(ours).to(device), "theirs": frozen(theirs).to(device)}
            runs = {
                f"{who} {run.__name__}": partial(run, network, x)
                for who, network in nets.items()
                for run in (forward, gradient)
            }
            took = interleaved(runs, device, repetitions)
            rows.append(
                [
                    f"{name}, batch {images}",
                    over(took, "theirs forward", "ours forward"),
                    over(took, "theirs gradient", "ours gradient"),
                    shown(error(runs["ours forward"](), runs["theirs forward"]()), 1),
                ]
            )
    return [
        "### Beside diffusers",
        "",
        "Times faster than diffusers' `UNet2DModel` with the same weights, one time for all images.",
        "",
        *table(["", "forward", "forward and product", "error float32"], rows),
    ]


def forward(network: nn.Module, x: Tensor) -> Tensor:
    """The output of a network, without a graph."""
    with torch.no_grad():
        return network(x, torch.tensor(50.0, device=x.device).expand(len(x)))


def gradient(network: nn.Module, x: Tensor) -> Tensor:
    """The gradient of the squared norm of a network's output."""
    at = x.clone().requires_grad_()
    out = network(at, torch.tensor(50.0, device=x.device).expand(len(x)))
    return torch.autograd.grad(out.square().sum(), at)[0]


class _Theirs(nn.Module):
    """The U-Net of diffusers, applied to patches."""

    def __init__(self, options: dict[str, Any]):
        super().__init__()
        from diffusers.models.unets.unet_2d import UNet2DModel

        widths, attention = options["widths"], options.get("attention", ())
        attends = [level in attention for level in range(len(widths))]
        self.patch = options.get("patch", 1)
        self.unet = UNet2DModel(
            in_channels=3 * self.patch**2,
            out_channels=3 * self.patch**2,
            block_out_channels=widths,
            layers_per_block=options.get("layers", 1),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),  # pyright: ignore
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),  # pyright: ignore
            add_attention=any(attends),
            norm_num_groups=options.get("groups", 32),
            attention_head_dim=64,
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Do what `UNet.forward` does."""
        out = self.unet(F.pixel_unshuffle(x, self.patch), time, return_dict=False)[0]
        return F.pixel_shuffle(out, self.patch)
