"""Layers whose autograd graphs take less memory while the weights are frozen.

A gradient with respect to the image alone needs less than PyTorch saves: only the weights of a
convolution, and only the input of a normalization followed by SiLU. Values and gradients are the
same. When weights are trained, when torch.compile plans the memory, or when no gradient is needed,
the layers do what `nn.Conv2d`, `nn.GroupNorm` and `F.silu` do.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that does not save its input for the gradient while its weights are frozen."""

    def forward(self, input: Tensor) -> Tensor:
        """Map features (B, C, H, W) to features (B, C', H', W')."""
        simple = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if not simple or not _needs_only_input_gradient(input, self.weight, self.bias):
            return super().forward(input)
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        return _Convolution.apply(input, self)  # pyright: ignore[reportReturnType]


def norm_silu(
    norm: nn.GroupNorm, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Compute `silu(norm(x))`, or `silu(norm(x) * (1 + scale) + shift)`.

    Args:
        norm: The normalization, with weights.
        x: Features (B, C, H, W).
        scale: The scale of each channel (B, C, 1, 1); used only together with `shift`.
        shift: The shift of each channel (B, C, 1, 1).
    """
    cast = torch.is_autocast_enabled(x.device.type)
    if _needs_only_input_gradient(x, norm.weight, norm.bias, scale, shift) and not cast:
        x = x.contiguous(memory_format=_format(x))
        return _NormSiLU.apply(x, norm, scale, shift)  # pyright: ignore[reportReturnType]
    in_place = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return F.silu(_modulated(norm(x), scale, shift), inplace=in_place)


def _needs_only_input_gradient(x: Tensor, *others: Tensor | None) -> bool:
    """Return whether autograd tracks `x` but none of `others`, outside torch.compile."""
    return (
        torch.is_grad_enabled()
        and x.requires_grad
        and not any(tensor is not None and tensor.requires_grad for tensor in others)
        and not torch.compiler.is_compiling()
    )


def _modulated(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return x if scale is None or shift is None else x * (1 + scale) + shift


class _Convolution(torch.autograd.Function):
    """A convolution that saves the shape of its input instead of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Conv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return layer._conv_forward(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layer, gradient = ctx.layer, gradients[0]
        stride, padding, dilation = layer.stride, layer.padding, layer.dilation
        smallest = [  # the smallest input size with an output of this size
            (out - 1) * stride[i] - 2 * padding[i] + dilation[i] * (size - 1) + 1
            for i, (out, size) in enumerate(zip(gradient.shape[2:], layer.kernel_size, strict=True))
        ]
        output_padding = [size - least for size, least in zip(ctx.shape[2:], smallest, strict=True)]
        weight = layer.weight.to(gradient.dtype)
        input_gradient = F.conv_transpose2d(
            gradient, weight, None, stride, padding, output_padding, layer.groups, dilation
        )
        return input_gradient, None


class _NormSiLU(torch.autograd.Function):
    """SiLU of a normalization, which saves only its input and recomputes the rest backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: nn.GroupNorm, scale: Tensor | None, shift: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.norm, ctx.scale, ctx.shift = norm, scale, shift
        return F.silu(_modulated(norm(x), scale, shift), inplace=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,), gradient = ctx.saved_tensors, gradients[0]
        norm, scale, shift = ctx.norm, ctx.scale, ctx.shift
        if torch.is_grad_enabled():  # the gradient will itself be differentiated
            y = F.silu(_modulated(norm(x), scale, shift))
            return torch.autograd.grad(y, x, gradient, create_graph=True)[0], None, None, None
        rows, channels, positions, groups = *x.shape[:2], x.shape[2:].numel(), norm.num_groups
        y, mean, rstd = torch.native_group_norm(
            x, norm.weight, norm.bias, rows, channels, positions, groups, norm.eps
        )
        gradient = torch.ops.aten.silu_backward(gradient, _modulated(y, scale, shift))
        gradient = gradient if scale is None else gradient.mul_(1 + scale)
        gradient = gradient.contiguous(memory_format=_format(x))
        input_gradient, _, _ = torch.ops.aten.native_group_norm_backward(
            gradient, x, mean, rstd, norm.weight, rows, channels, positions, groups,
            [True, False, False],
        )  # fmt: skip
        return input_gradient, None, None, None


def _format(x: Tensor) -> torch.memory_format:
    """Return the memory format in which torch normalizes `x`: only a CPU keeps channels last."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    # For a single image torch allows any stride(0).
    channels_last = channels_last and x.stride(0) == x.shape[1:].numel() and not x.is_cuda
    return torch.channels_last if channels_last else torch.contiguous_format
