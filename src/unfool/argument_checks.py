"""Checks of the arguments of public functions, so that no number is silently wrong.

Attacks, purifiers, votes, evaluations, and certifications call these first. Each check reads its
input once, which costs nothing compared with a call of the model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from unfool.noise import Noise
from unfool.threat import Threat

SLACK = 1e-5  # how far rounding may put a pixel outside [0, 1]
MAX_CHANNELS = 4  # a shape (C, H, 1 or 3) with larger C and H is taken for (H, W, C)
NORMALIZED = (
    "if you normalize your data for the network, do it in the model instead, by "
    "unfool.NormalizedClassifier(network, mean, std)"
)
WRAPPED = ("model", "classifier", "purifier", "denoiser", "network")
RANDOM_IN_TRAINING = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
AttackMethod = TypeVar("AttackMethod", bound=Callable[..., Tensor])
_ANY_RANGE: ContextVar[bool] = ContextVar("any_range", default=False)


@contextmanager
def images_of_any_range() -> Iterator[None]:
    """Allow images outside [0, 1] in a block, for chained purifiers and to match released code."""
    token = _ANY_RANGE.set(True)
    try:
        yield
    finally:
        _ANY_RANGE.reset(token)


def check_images(x: Tensor) -> None:
    """Refuse anything but floating-point images (B, C, H, W) in [0, 1].

    Raises:
        TypeError: `x` is not a tensor.
        ValueError: `x` has another shape, type, or range, or contains NaN.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"images must be a tensor (B, C, H, W), not a {type(x).__name__}")
    if x.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W), not {tuple(x.shape)}")
    check_channels_first(x.shape)
    if not x.is_floating_point():
        raise ValueError(
            f"images must be floating point in [0, 1], not {x.dtype}: divide images of 0 to 255 by 255"
        )
    if not x.numel() or _ANY_RANGE.get():
        return
    low, high = (float(bound) for bound in x.detach().aminmax())
    if not (low >= -SLACK and high <= 1 + SLACK):  # NaN fails both comparisons
        raise ValueError(
            f"images must lie in [0, 1], and these go from {low:.4g} to {high:.4g}; {NORMALIZED}"
        )


def check_channels_first(shape: Sequence[int]) -> None:
    """Refuse the shape (..., C, H, W) of images whose channels seem to be last.

    Raises:
        ValueError: The last size is 3, or 1 after two equal sizes, and the two before are too large
            to be channels.
    """
    first, height, width = shape[-3:]
    if min(first, height) > MAX_CHANNELS and (width == 3 or (width == 1 and first == height)):
        before = range(len(shape) - 3)
        order = (*before, len(shape) - 1, len(shape) - 3, len(shape) - 2)
        raise ValueError(
            f"images must be ({'N, ' * len(before)}C, H, W), and {tuple(shape)} has the channels last: "
            f"convert them by images.permute{order}"
        )


def check_labels(y: Tensor, count: int, classes: int | None = None) -> None:
    """Refuse anything but int64 labels (count,) from 0 to `classes` - 1.

    Raises:
        TypeError: `y` is not a tensor.
        ValueError: `y` has another shape, type, or range.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"labels must be a tensor (B,), not a {type(y).__name__}")
    if y.shape != (count,):
        raise ValueError(f"labels of {count} images must be ({count},), not {tuple(y.shape)}")
    if y.dtype != torch.int64:
        raise ValueError(f"labels must be int64, not {y.dtype}: convert them by y.long()")
    if not count:
        return
    low, high = (int(bound) for bound in y.aminmax())
    if low < 0 or (classes is not None and high >= classes):
        upper_text = "up" if classes is None else f"to {classes - 1}"
        raise ValueError(f"labels must go from 0 {upper_text}, and these go from {low} to {high}")


def check_noise(noise: Noise, count: int) -> None:
    """Refuse noise that is not for `count` images.

    Raises:
        TypeError: `noise` is not a `Noise`.
        ValueError: The noise is for more or fewer images.
    """
    if not isinstance(noise, Noise):
        raise TypeError(
            f"noise must be a Noise, not a {type(noise).__name__}: make one by "
            "unfool.Noise.of(seed, range(len(x)))"
        )
    if len(noise) != count:
        raise ValueError(
            f"the noise is for {len(noise)} images, and there are {count} images: "
            "noise.take(which) selects the noise of some of them"
        )


def check_threat(threat: Threat, x: Tensor | None = None) -> None:
    """Refuse anything but a threat, and an l2 budget in units of 0 to 255.

    Args:
        threat: The threat; it checks its own budget for linf and l0 when it is created.
        x: Images, whose size limits the budget for l2.

    Raises:
        TypeError: `threat` is not a `Threat`.
        ValueError: The l2 budget exceeds the distance from black to white.
    """
    if not isinstance(threat, Threat):
        raise TypeError(
            f'threat must be a Threat such as unfool.Threat("linf", 8/255), not {threat!r}'
        )
    if threat.norm == "l2" and x is not None and x.numel():
        largest = x[0].numel() ** 0.5
        if threat.eps > largest + SLACK:
            raise ValueError(
                f"threat: eps of l2 is {threat.eps:g}, more than the distance {largest:.4g} from "
                "black to white: pixels are in [0, 1], so divide a budget for 0 to 255 by 255"
            )


def check_logits(logits: Tensor, count: int) -> None:
    """Refuse anything but logits (count, K) of at least two classes.

    Raises:
        ValueError: The logits have another shape or are not a tensor.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        returned = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the model must return logits of shape ({count}, K), and returned {returned}"
        )
    if logits.shape[1] < 2:
        raise ValueError(
            f"the model returns {logits.shape[1]} logit, and must return one for each of at least "
            "two classes: turn a single logit z into two by torch.cat([torch.zeros_like(z), z], 1)"
        )


def check_finite(logits: Tensor) -> None:
    """Refuse logits (B, K) that are not finite, because no class is then the highest.

    Raises:
        RuntimeError: Some logits are infinite or NaN.
    """
    if count := int((~logits.isfinite().all(1)).sum()):
        raise RuntimeError(
            f"the model returned logits that are not finite on {count} of {len(logits)} images "
            "and draws, so its answers there mean nothing: fix the model, or compute in a higher "
            "precision (see `unfool doctor`)"
        )


def check_evaluating(model: object) -> None:
    """Refuse a model with batch normalization or dropout in training mode.

    In training mode, an answer depends on the batch or on draws outside of any `Noise`, and each
    call of batch normalization changes its statistics.

    Raises:
        ValueError: A module inside is in training mode.
    """
    for module in _modules(model):
        if not module.training:
            continue
        kind = type(module).__name__
        dropped = float(getattr(module, "p", 1.0) or 0.0)  # Dropout(0) drops nothing
        if kind in ("DropPath", "StochasticDepth") or (
            isinstance(module, RANDOM_IN_TRAINING) and dropped
        ):
            raise ValueError(
                f"the model is in training mode, where its {kind} makes answers depend on chance "
                "or on the batch: call model.eval() first"
            )


def check_attack(model: object, x: Tensor, y: Tensor, threat: Threat, noise: Noise) -> None:
    """Refuse arguments that an attack cannot use or that would mislead it.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Images, labels, noise, threat, or model are invalid.
    """
    check_images(x)
    check_labels(y, len(x))
    check_noise(noise, len(x))
    check_threat(threat, x)
    check_evaluating(model)


def checked_attack(method: AttackMethod) -> AttackMethod:
    """Make an attack's `__call__` check its arguments, and return an empty batch unchanged.

    The attack leaves the caller's `torch.inference_mode()`, if any, because it needs gradients.
    """

    @wraps(method)
    def call(self: Any, model: Any, x: Tensor, y: Tensor, threat: Threat, noise: Noise) -> Tensor:
        check_attack(model, x, y, threat, noise)
        if not len(x):
            return x.clone()
        if not torch.is_inference_mode_enabled():
            return method(self, model, x, y, threat, noise)
        with torch.inference_mode(False):
            return method(self, model, x.clone(), y.clone(), threat, noise)

    return cast(AttackMethod, call)


def _modules(model: object) -> Iterator[nn.Module]:
    """Yield the modules of a model, including those inside of wrappers and functions."""
    seen: set[int] = set()
    todo = [model]
    while todo:
        part = todo.pop()
        if id(part) not in seen:
            seen.add(id(part))
            todo.extend(_parts_of(part))
            if isinstance(part, nn.Module):
                yield part


def _parts_of(part: Any) -> Iterator[Any]:
    if isinstance(part, nn.Module):
        yield from part.children()
    attributes = getattr(part, "__dict__", {})
    yield from (attributes[name] for name in WRAPPED if callable(attributes.get(name)))
    if isinstance(part, partial):
        yield from (part.func, *part.args)
    if callable(owner := getattr(part, "__self__", None)):  # the object of a bound method
        yield owner
    for cell in getattr(part, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            if callable(cell.cell_contents):
                yield cell.cell_contents
