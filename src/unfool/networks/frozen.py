"""Layers whose graphs keep less memory while their weights are frozen.

A gradient toward the image alone needs less than PyTorch keeps: of a convolution nothing but its weights,
of a normalization followed by SiLU nothing but its input and the statistics of its groups. The values
and gradients are the same up to rounding. Where weights are trained, a compiler plans the memory, or no
gradient is asked for, the layers do what `nn.Conv2d`, `nn.GroupNorm` and `F.silu` do.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` whose graph does not keep the input while the weights are frozen."""

    def forward(self, input: Tensor) -> Tensor:
        """Features (B, C, H, W) to features (B, C', H', W')."""
        simple = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if not simple or not _leads_to(input, self.weight, self.bias):
            return super().forward(input)
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        return _Convolution.apply(input, self)  # pyright: ignore[reportReturnType]


def norm_silu(
    norm: nn.GroupNorm, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """`silu(norm(x))`, or `silu(norm(x) * (1 + scale) + shift)`, of features (B, C, H, W).

    Args:
        norm: The normalization, with weights.
        x: The features.
        scale: Of each channel (B, C, 1, 1), together with `shift`.
        shift: Of each channel (B, C, 1, 1).
    """
    cast = torch.is_autocast_enabled(x.device.type)
    if _leads_to(x, norm.weight, norm.bias, scale, shift) and not cast:
        x = x.contiguous(memory_format=_format(x))
        return _NormSiLU.apply(x, norm, scale, shift)  # pyright: ignore[reportReturnType]
    in_place = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return F.silu(_modulated(norm(x), scale, shift), inplace=in_place)


def _leads_to(x: Tensor, *others: Tensor | None) -> bool:
    """Whether a graph is made that leads to `x` and to none of the others, and is executed as written."""
    return (
        torch.is_grad_enabled()
        and x.requires_grad
        and not any(tensor is not None and tensor.requires_grad for tensor in others)
        and not torch.compiler.is_compiling()
    )


def _modulated(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return x if scale is None or shift is None else x * (1 + scale) + shift


class _Convolution(torch.autograd.Function):
    """A convolution that keeps the shape of its input in place of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Conv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return layer._conv_forward(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layer, gradient = ctx.layer, gradients[0]
        x = torch.empty(  # of which nothing is read but the shape
            ctx.shape,
            dtype=gradient.dtype,
            device=gradient.device,
            memory_format=_format(gradient),
        )
        weight = layer.weight.to(gradient.dtype)
        found, _, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, layer.stride, layer.padding, layer.dilation,
            False, [0, 0], layer.groups, [True, False, False],
        )  # fmt: skip
        return found, None


class _NormSiLU(torch.autograd.Function):
    """SiLU of a normalization that keeps nothing but the input of the normalization.

    The way back computes the output of the normalization once more, from the statistics of its groups.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: nn.GroupNorm, scale: Tensor | None, shift: Tensor | None
    ) -> Tensor:
        rows, channels, height, width = x.shape
        y, mean, rstd = torch.native_group_norm(
            x, norm.weight, norm.bias, rows, channels, height * width, norm.num_groups, norm.eps
        )  # fmt: skip
        ctx.save_for_backward(x, mean, rstd)
        ctx.norm, ctx.scale, ctx.shift = norm, scale, shift
        return F.silu(_modulated(y, scale, shift), inplace=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x, mean, rstd), gradient = ctx.saved_tensors, gradients[0]
        norm, scale, shift = ctx.norm, ctx.scale, ctx.shift
        if torch.is_grad_enabled():  # the gradient will itself be differentiated
            y = F.silu(_modulated(norm(x), scale, shift))
            return torch.autograd.grad(y, x, gradient, create_graph=True)[0], None, None, None
        rows, channels, height, width = x.shape
        by_group = norm.num_groups, channels // norm.num_groups
        factor = rstd[:, :, None] * norm.weight.view(by_group)
        offset = norm.bias.view(by_group) - factor * mean[:, :, None]
        factor, offset = (part.view(rows, channels, 1, 1) for part in (factor, offset))
        if scale is not None:
            factor, offset = factor * (1 + scale), offset * (1 + scale) + shift
        gradient = torch.ops.aten.silu_backward(gradient, _affine(x, factor, offset))
        gradient = gradient if scale is None else gradient.mul_(1 + scale)
        found, _, _ = torch.ops.aten.native_group_norm_backward(
            gradient.contiguous(memory_format=_format(x)), x, mean, rstd, norm.weight,
            rows, channels, height * width, norm.num_groups, [True, False, False],
        )  # fmt: skip
        return found, None, None, None


def _format(x: Tensor) -> torch.memory_format:
    """The layout in which torch normalizes such features: a CPU takes channels last as they are."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    whole = x.stride(0) == x.shape[1:].numel()  # of one image torch lets that number be another
    return torch.channels_last if last and whole and not x.is_cuda else torch.contiguous_format


def _affine(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """`x * factor + offset` for numbers of each channel (B, C, 1, 1), in one pass."""
    if not x.is_contiguous():
        return torch.addcmul(offset, x, factor)
    rows, channels, height, width = x.shape
    nothing, one = factor.new_zeros(rows * channels), factor.new_ones(rows * channels)
    flat = x.view(1, rows * channels, height, width)
    y = F.batch_norm(flat, nothing, one, factor.flatten(), offset.flatten(), eps=0.0)
    return y.view_as(x)
