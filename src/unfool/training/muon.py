"""An optimizer that uses Muon for convolution kernels and AdamW for all other weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# The quintic of Jordan et al. (2024): steepest at 0, and within 0.3 of 1 after five rounds.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Muon (orthogonalized momentum; Jordan et al., 2024) for convolution kernels, and AdamW.

    A kernel (out, in, k, k) is treated as a matrix (out, in k k). Its update is the orthogonal matrix
    nearest to the Nesterov momentum, times sqrt(max(1, out / (in k k))). AdamW updates other weights.

    Args:
        groups: Parameter groups, as torch.optim takes them. A group with `"muon": True` holds
            convolution kernels; the others hold the weights for AdamW.
        lr: The learning rate of groups without their own.
        weight_decay: Each step shrinks weights by the share lr x weight_decay.
        betas: The betas of AdamW.
        momentum: The momentum of Muon.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": 1e-8}
        super().__init__(list(groups), defaults | {"momentum": momentum, "muon": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._kernel if group["muon"] else self._other
                weight.sub_(group["lr"] * update(weight.grad, self.state[weight], group))

    def _kernel(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if not state:
            state["momentum"] = torch.zeros_like(grad)
        momentum, share = state["momentum"], 1 - group["momentum"]
        momentum.lerp_(grad, share)
        matrix = momentum.lerp(grad, share).flatten(1)
        rows, columns = matrix.shape
        return orthogonal(matrix).view_as(grad) * max(1, rows / columns) ** 0.5

    def _other(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if not state:
            state |= {"count": 0, "first": torch.zeros_like(grad), "second": torch.zeros_like(grad)}
        state["count"] += 1
        beta, other = group["betas"]
        state["first"].lerp_(grad, 1 - beta)
        state["second"].lerp_(grad.square(), 1 - other)
        size = (state["second"] / (1 - other ** state["count"])).sqrt_().add_(group["eps"])
        return state["first"] / (1 - beta ** state["count"]) / size


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximate the orthogonal matrix nearest to `matrix` (m, n).

    The Newton-Schulz iteration, in float32, brings all singular values between 0.7 and 1.2.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.float().T if tall else matrix.float()
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).to(matrix)


def is_kernel(weight: nn.Parameter) -> bool:
    """Whether a weight is the kernel of a two-dimensional convolution."""
    return weight.ndim == 4
