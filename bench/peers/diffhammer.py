"""DiffHammer's gradient (github.com/Ka1b0/DiffHammer, defense/diffpure.py), from a checkout.

Differences to the original: the network is ours, with trainable weights (its `.backward()` needs their
gradients), `Tensor.cuda` is the identity if there is no GPU, the classifier is a linear function of the
image, and its `utils`, which imports every network it ships, is replaced by the two functions that its
file uses. The noise is DiffHammer's own; the sampler is DDPM, differentiated through every step.
"""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from measuring import error
from unfool.diffusion.reverse import Ancestral, strided
from variants import Case

FOLDER = "DiffHammer"
STEP = Ancestral()
DEPTH = 100  # noise steps, of the 1000 of the chain


def times(steps: int) -> Tensor:
    """The times of DiffHammer's chain."""
    return strided(DEPTH / 1000, steps, 1000)


class Peer:
    """DiffHammer's defense with the network of a case."""

    def __init__(self, folder: Path, case: Case):
        self.case, self.labels = case, torch.zeros(len(case.x))  # the loss ignores labels
        if not torch.cuda.is_available():
            torch.Tensor.cuda = lambda self, *_: self  # pyright: ignore
        utils: Any = types.ModuleType("utils")
        utils.register = lambda name=None, funcs="": lambda cls: cls
        utils.set_seed = torch.random.manual_seed
        sys.modules["utils"] = utils
        spec = importlib.util.spec_from_file_location("theirs", folder / "defense" / "diffpure.py")
        assert spec is not None
        assert spec.loader is not None
        theirs = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(theirs)
        stride = str(DEPTH // case.steps)
        config = {"att_max_timesteps": str(DEPTH), "att_denoising_steps": stride}
        config |= {"def_max_timesteps": str(DEPTH), "def_denoising_steps": stride}
        config |= {"sampling_method": "ddpm", "guided": False, "diff_attack": False, "eps": 8 / 255}
        network = case.denoiser.get_submodule("network")
        self.defense = theirs.DiffPureClassifier(_Answers(network), nn.Identity(), config)
        self.weights = list(network.parameters())

    def gradient(self) -> Tensor:
        """DiffHammer's gradient of the case's linear function."""
        for weight in self.weights:
            weight.requires_grad_(True)
        image_gradient = self.defense.gradient(self.case.x, self.labels, self._loss, seeds=0)[0]
        for weight in self.weights:
            weight.requires_grad_(False)
            weight.grad = None
        return image_gradient

    def error(self) -> float:
        """The relative error, compared with autograd through the same steps on the same noise."""
        defense, gradient = self.defense, self.gradient()
        x = self.case.x.clone().requires_grad_()
        torch.random.manual_seed(0)
        state = (x - 0.5) * 2
        state = defense.noised(state, defense.def_max_timesteps[0], torch.randn_like(x))  # noqa: TID251
        steps = defense.defense_steps[0]
        for k in reversed(range(len(steps))):
            i, j = steps[k], steps[k - 1] if k else -1
            answer = defense.diffusion(state, i * torch.ones_like(x[:, 0, 0, 0]))
            ahead, back, fresh = defense.get_coefficient(i, j)
            state = ahead * state + back * answer + fresh * torch.randn_like(x)  # noqa: TID251
        return error(gradient, torch.autograd.grad(self._loss(state / 2 + 0.5).sum(), x)[0])

    def _loss(self, images: Tensor, _: object = None) -> Tensor:
        return (self.case.weigh * images).flatten(1).sum(1)


class _Answers(nn.Module):
    """A network with the call signature that DiffHammer expects."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.network(x, time)
