"""Layers that take less time and memory while their weights are frozen.

A gradient toward the image alone needs less than PyTorch keeps: of a convolution nothing but its
weights, of a normalization followed by SiLU nothing but its input. PyTorch copies the weights of a
convolution into the order of oneDNN at each call on a CPU; where there is no gradient, frozen weights are
copied once. The values and gradients are the same up to rounding. Where weights are trained or a compiler
plans the memory, the layers do what `nn.Conv2d`, `nn.GroupNorm` and `F.silu` do.
"""

from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Whether steps may be replayed with a graph; then they are taken the way that those are which have one.
replayed = ContextVar("replayed", default=False)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` whose graph does not keep the input while the weights are frozen.

    Without a graph, on a CPU and in float32, it answers with the channels innermost.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features (B, C, H, W) to features (B, C', H', W')."""
        simple = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if not simple or not _leads_to(input, self.weight, self.bias):
            if simple and _packs(self.weight, self.bias, input):
                return _packed(self).convolve(input, self.bias)
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
        stride, padding, dilation = layer.stride, layer.padding, layer.dilation
        smallest = [  # of the inputs that have an output of this size
            (out - 1) * stride[i] - 2 * padding[i] + dilation[i] * (size - 1) + 1
            for i, (out, size) in enumerate(zip(gradient.shape[2:], layer.kernel_size, strict=True))
        ]
        beyond = [size - least for size, least in zip(ctx.shape[2:], smallest, strict=True)]
        weight = layer.weight.to(gradient.dtype)
        found = F.conv_transpose2d(
            gradient, weight, None, stride, padding, beyond, layer.groups, dilation
        )
        return found, None


def _packs(weight: Tensor, bias: Tensor | None, x: Tensor) -> bool:
    """Whether oneDNN convolves `x`, without a graph, with a weight that is there to stay."""
    return (
        not replayed.get()
        and not weight.requires_grad
        and not (bias is not None and bias.requires_grad)
        and not (torch.is_grad_enabled() and x.requires_grad)
        and x.is_cpu
        and weight.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and x.ndim == 4
        and x.numel() > 0
        and not weight.is_inference()  # which has no version
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


class _Packed:
    """The weight of a layer in the order in which oneDNN reads it.

    Whatever changes a weight counts up its version, except through `weight.data`; so some of its numbers
    are compared, too.
    """

    def __init__(self, layer: Conv2d):
        weight = layer.weight.detach()
        self.made_of = weight.data_ptr(), layer.weight._version
        self.some = weight.flatten()[:: max(1, weight.numel() // COMPARED)]
        self.seen = self.some.clone()
        self.options = layer.padding, layer.stride, layer.dilation, layer.groups
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.options)

    def is_of(self, layer: Conv2d) -> bool:
        """Whether the layer still has that weight."""
        weight = layer.weight
        now = weight.data_ptr(), weight._version
        return self.made_of == now and torch.equal(self.some, self.seen)

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer makes of features."""
        return _convolution(x, self.weight, bias, *self.options, "none", [], "")


def _packed(layer: Conv2d) -> _Packed:
    found = _all_packed.get(layer)
    if found is None or not found.is_of(layer):
        found = _all_packed[layer] = _Packed(layer)
    return found


COMPARED = 16  # numbers of a weight
_convolution = torch.ops.mkldnn._convolution_pointwise
_all_packed: WeakKeyDictionary[nn.Module, _Packed] = WeakKeyDictionary()


class _NormSiLU(torch.autograd.Function):
    """SiLU of a normalization, which keeps its input alone and normalizes it again on the way back."""

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
        rows, channels, places, groups = *x.shape[:2], x.shape[2:].numel(), norm.num_groups
        y, mean, rstd = torch.native_group_norm(
            x, norm.weight, norm.bias, rows, channels, places, groups, norm.eps
        )
        gradient = torch.ops.aten.silu_backward(gradient, _modulated(y, scale, shift))
        gradient = gradient if scale is None else gradient.mul_(1 + scale)
        gradient = gradient.contiguous(memory_format=_format(x))
        found, _, _ = torch.ops.aten.native_group_norm_backward(
            gradient, x, mean, rstd, norm.weight, rows, channels, places, groups,
            [True, False, False],
        )  # fmt: skip
        return found, None, None, None


def _format(x: Tensor) -> torch.memory_format:
    """The layout in which torch normalizes such features: a CPU takes channels last as they are."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    whole = x.stride(0) == x.shape[1:].numel()  # of one image torch lets that number be another
    return torch.channels_last if last and whole and not x.is_cuda else torch.contiguous_format
