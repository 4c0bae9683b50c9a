"""DiffBreak's gradient (github.com/andrekassis/DiffBreak, diffusion/grad_diff.py), from a checkout.

Differences to the original: its packages are imported without their `__init__` files, which import
TensorFlow and more; the network is ours; and `_Chain` replaces its `RevDiffusion`, using its `RevVPSDE`
and `BrownianPath` with the Euler step written out. The images of a batch take the place of EOT copies.
"""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from measuring import error
from unfool.diffusion.reverse import euler_maruyama, even
from variants import Case

FOLDER = "DiffBreak"
STEP = euler_maruyama


def times(steps: int) -> Tensor:
    """Times in steps of 1/1000, as in DiffBreak."""
    return even(steps / 1000, steps)


class Peer:
    """DiffBreak's gradient with the network of a case."""

    def __init__(self, folder: Path, case: Case):
        self.case = case
        for name in ("DiffBreak", "DiffBreak.diffusion", "DiffBreak.diffusion.utils"):
            package: Any = types.ModuleType(name)
            package.__path__ = [str(folder / name.replace(".", "/"))]
            sys.modules[name] = package
        core = importlib.import_module("DiffBreak.diffusion.utils._core")
        utils: Any = sys.modules["DiffBreak.diffusion.utils"]
        utils.NoiseGenerator, utils.BrownianPath = core.NoiseGenerator, core.BrownianPath
        self.function = importlib.import_module("DiffBreak.diffusion.grad_diff").DiffGrad
        flat = case.x.flatten(1)
        torch.random.manual_seed(0)
        begin = torch.zeros((), device=flat.device)
        self.path = core.BrownianPath(t0=begin, w0=torch.zeros_like(flat), dt=1e-3)
        self.chain = _Chain(core.RevVPSDE, case)

    def gradient(self) -> Tensor:
        """DiffBreak's gradient of the case's linear function, at images that are not EOT copies."""
        x, guide = self.case.x.clone().requires_grad_(), torch.zeros_like(self.case.x)
        guide.grad = torch.zeros_like(guide)
        steps, still = self.case.steps, torch.zeros_like(x)
        out = self.function.apply(
            x, guide, self.chain, "vpsde", steps, [self.path], still, False, len(x), self._zero,
            steps, False, 0, 1, 0, 0, False, None,
        )  # fmt: skip
        return torch.autograd.grad((self.case.weigh * out).sum(), x)[0]

    def error(self) -> float:
        """The relative error, compared with autograd through the same chain."""
        x, steps = self.case.x.clone().requires_grad_(), self.case.steps
        state = (2 * x - 1) * self.chain.a[steps - 1].sqrt()
        out = self.chain(state, t_start=steps / 1000, t_end=0.0, steps=steps + 1, bm=[self.path])
        out = out[-len(x) :]
        true = torch.autograd.grad((self.case.weigh * out).sum(), x)[0]
        return error(self.gradient(), true)

    @staticmethod
    def _zero(*_: object, **__: object) -> tuple[float, float]:
        return 0.0, 0.0


class _Chain:
    """DiffBreak's reverse SDE, step by step; a call returns the states after all steps."""

    num_diffusion_timesteps, precision = 1000, 3

    def __init__(self, sde: Any, case: Case):
        x = case.x
        betas = torch.linspace(1e-4, 2e-2, 1000, device=x.device, dtype=x.dtype)
        self.a = (1 - betas).cumprod(0)
        network = case.denoiser.get_submodule("network")
        self.sde = sde(
            lambda x, time: (network(x, time), None),
            lambda t: 999 * t,
            x.shape[-1],
            betas,
            3,
            None,
            self.preprocess_diffusion_t,
        )
        self.sde.no_score = False

    @staticmethod
    def preprocess_diffusion_t(t: int) -> int:
        """The index of a time, which is the time itself."""
        return t

    def __call__(
        self, x: Tensor, t_start: float, t_end: float, steps: int, bm: Any, **_: Any
    ) -> Tensor:
        flat, states = x.flatten(1), []
        path = bm[0] if isinstance(bm, list) else bm
        h = (t_start - t_end) / (steps - 1)
        for i in range(steps - 1):
            now, then = 1 - t_start + i * h, 1 - t_start + (i + 1) * h
            moved = path(torch.tensor(now), torch.tensor(then))
            flat = flat + self._drift(now, flat) * h + self.sde.g(now, flat) * moved
            states.append(flat.view_as(x))
        return torch.cat(states)

    def _drift(self, when: float, flat: Tensor) -> Tensor:
        time = torch.tensor(1 - when, dtype=flat.dtype, device=flat.device).expand(len(flat))
        drift, diffusion = self.sde.vpsde_fn(time, flat)
        answer = self.sde.model(flat.view(-1, *self.sde.img_shape), self.sde.scaler(time))[0]
        size = self.sde.sqrt_1m_alphas_cumprod_neg_recip_cont(time)[:, None]
        return -(drift - diffusion[:, None] ** 2 * size * answer.flatten(1))
