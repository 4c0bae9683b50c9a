"""Views: functions from a model to the version of it that an attack differentiates."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unfool.argument_checks import check_finite, check_logits
from unfool.batching import BatchLimit, in_parts
from unfool.diffusion.per_step_loss import deviating
from unfool.noise import Noise
from unfool.protocols import Classifier, Defended, Purifier
from unfool.ranges import Count, Positive
from unfool.runtime.device import bfloat16_costs
from unfool.runtime.progress import tick

BACKWARD_COST = 2  # the cost of a backward pass, in forward calls


def exact(model: Classifier) -> Classifier:
    """The model itself, with its exact gradient."""
    return model


def bpda(model: Classifier) -> Classifier:
    """The model, with the identity in place of the purifier's gradient (Athalye et al., 2018)."""
    defended = _require_defended(model)
    return batched_like(model, defended.with_purifier(straight_through(defended.purifier)))


def adjoint(model: Classifier) -> Classifier:
    """The model, with the adjoint gradient of DiffPure's release, which is not exact.

    Use it only to compare with published numbers: it makes defenses look more robust than they are.
    """
    defended = _require_defended(model)
    if not hasattr(defended.purifier, "adjoint"):
        raise ValueError(
            "the view `adjoint` needs the purifier diffpure with the sampler sde: use the view "
            "`exact`"
        )
    return batched_like(model, defended.with_purifier(defended.purifier.adjoint()))  # pyright: ignore


def bfloat16(model: Classifier) -> Classifier:
    """The model with its convolutions and matrix products in bfloat16, where that is faster.

    Only the attack uses bfloat16: the evaluation always uses the model's own precision. Guides that
    require float32 keep it.

    Raises:
        ValueError: bfloat16 is not faster than float32 on this device.
    """
    inner = model.model if isinstance(model, Batched) else model
    parameters = inner.parameters() if isinstance(inner, nn.Module) else iter(())
    device = next((str(p.device) for p in parameters), "cpu")
    if bfloat16_costs(device) >= 1:
        raise ValueError("the view `bfloat16` is slower here than `exact` in float32: use `exact`")

    def in_bfloat16(x: Tensor, noise: Noise) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return model(x, noise).to(x)

    return batched_like(model, in_bfloat16)


def surrogate(model: Classifier, steps: Count | None = None) -> Classifier:
    """The model with fewer purifier steps, on noise of its own (Lee and Kim, 2023).

    Args:
        model: A classifier behind a purifier that denoises step by step.
        steps: How many; None is a tenth of the defense's, but at least 5 (or all if it has fewer).

    Raises:
        ValueError: The purifier does not support fewer steps, or has fewer than `steps`.
    """
    return _with_fewer_steps(model, steps, matched=False)


def surrogate_same_noise(model: Classifier, steps: Count | None = None) -> Classifier:
    """The model with fewer purifier steps, on the same path of noise in every draw.

    The noise of a long step combines that of the short steps that it replaces; with all steps, this
    is the model itself.

    Args:
        model: A classifier behind a purifier that denoises step by step.
        steps: How many; None is a tenth of the defense's, but at least 5 (or all if it has fewer).

    Raises:
        ValueError: The purifier does not support fewer steps, or has fewer than `steps`.
    """
    return _with_fewer_steps(model, steps, matched=True)


def per_step(model: Classifier, weight: Positive = 10.0) -> Classifier:
    """The model, with a loss that also drives each reverse step off its course (Kang et al., 2023).

    So the gradient reaches every step of the reverse process directly, not only through the last
    one. The losses at the steps cost no additional calls. Attacks still compare images by the
    model's own outputs.

    Args:
        model: A classifier behind `diffpure` or `gdmp`.
        weight: The weight of the deviation, in units of the attack's loss.

    Raises:
        ValueError: There is no purifier; or, when the view is called, the purifier has no
            step-by-step reverse process.
    """
    _require_defended(model)
    inner = model.model if isinstance(model, Batched) else model

    def deviated(x: Tensor, noise: Noise) -> Tensor:
        with deviating(weight) as deviation:
            logits = inner(x, noise)
        if torch.is_grad_enabled() and not deviation.chains:
            raise ValueError(
                "the view `per-step` needs a purifier that denoises step by step (`diffpure` or "
                "`gdmp`), and this one does not: use the view `exact`"
            )
        return logits

    return batched_like(model, deviated)


def classifier_only(model: Classifier) -> Classifier:
    """The classifier alone, for an attacker who does not know of the defense (transfer attack)."""
    return batched_like(model, _require_defended(model).classifier)


def no_elimination(model: Classifier, draws: Count | None = None) -> Classifier:
    """A diffusion classifier on the same draws but without elimination, which hides gradients.

    Args:
        model: The classifier `diffusion`, alone or behind a purifier.
        draws: How many of its draws the attack uses, evenly spread over all, with their own noise,
            so that a step costs less; the evaluation uses all. None uses all.

    Raises:
        ValueError: The model is not a diffusion classifier, or has fewer draws.
    """
    return _change_diffusion_classifier(
        model, lambda classifier: classifier.without_elimination(draws)
    )


def first_stage(model: Classifier) -> Classifier:
    """The scores of a diffusion classifier's first stage of elimination (the early-exit attack).

    The stage eliminates the true class if as many classes as it keeps score above it. So attacks
    raise the lowest of these above the true class (`classes_kept`; see `protocols.Classifier`).
    """
    return _change_diffusion_classifier(model, lambda classifier: classifier.stage(1))


def without_elimination(model: Classifier) -> Classifier:
    """Return what attacks should differentiate: `no_elimination` if possible, else the model."""
    try:
        return no_elimination(model)
    except ValueError:
        return model


def straight_through(purifier: Purifier) -> Purifier:
    """A purifier with the same output, whose gradient is that of the identity."""

    def purify(x: Tensor, noise: Noise) -> Tensor:
        with torch.no_grad():
            change = purifier(x, noise) - x
        return x + change

    return purify


class Batched:
    """A model that is called with at most `batch_size` images at a time.

    `classes_kept` says how many classes it keeps (see `protocols.Classifier` for both).

    When memory runs out, `batch_size` is halved and the call continues. Given another `Batched`
    model as `batch_size`, both share one limit. Each call reports its number of images as
    progress, and a backward pass twice that.
    """

    def __init__(
        self, model: Classifier, batch_size: "int | Batched | None", classes_kept: int = 1
    ):
        self.model, self.classes_kept = model, classes_kept
        self._batch_limit = (
            batch_size._batch_limit if isinstance(batch_size, Batched) else BatchLimit(batch_size)
        )

    @property
    def batch_size(self) -> int | None:
        """The maximum number of images in a call; None for no limit."""
        return self._batch_limit.batch_size

    @batch_size.setter
    def batch_size(self, size: int | None) -> None:
        self._batch_limit.batch_size = size

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """The logits of the model."""
        return self._in_parts(self.model, x, noise)

    def decide(self, x: Tensor, noise: Noise) -> Tensor:
        """The classes (B,) that the model predicts, by its own `decide` if it has one.

        Raises:
            ValueError: The model does not return logits of at least 2 classes.
            RuntimeError: Logits are not finite, so that no class is the highest.
        """
        if not hasattr(self.model, "decide"):
            logits = self(x, noise)
            check_logits(logits, len(x))
            check_finite(logits)
            return logits.argmax(1)
        return self._in_parts(self.model.decide, x, noise)  # pyright: ignore

    def _in_parts(self, call: Classifier, x: Tensor, noise: Noise) -> Tensor:
        if not len(x):
            return call(x, noise)

        def part(rows: slice) -> Tensor:
            count = rows.stop - rows.start
            is_whole = count == len(x)
            out = (
                call(x, noise)
                if is_whole
                else call(x[rows], noise.take(range(rows.start, rows.stop)))
            )
            tick(count)
            if isinstance(out, Tensor) and out.requires_grad:
                out.register_hook(lambda gradient: tick(BACKWARD_COST * count))
            return out

        outputs = in_parts(part, len(x), self)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def batched_like(model: Classifier, view: Classifier) -> Classifier:
    """Return `view`, called with at most as many images at a time as `model`, if that has a limit."""
    limit = _limit_of(model)
    return view if limit is None else Batched(view, limit)


def _limit_of(model: Classifier) -> "int | Batched | None":
    return model if isinstance(model, Batched) else getattr(model, "batch_size", None)


def _with_fewer_steps(model: Classifier, steps: int | None, matched: bool) -> Classifier:
    defended = _require_defended(model)
    if not hasattr(defended.purifier, "with_fewer_steps"):
        raise ValueError(
            "the views `surrogate` and `surrogate-same-noise` take fewer purifier steps, which "
            "this purifier does not support: use the view `bpda` or `exact`"
        )
    shorter = defended.purifier.with_fewer_steps(steps, matched)  # pyright: ignore
    return batched_like(model, defended.with_purifier(shorter))


def _require_defended(model: Classifier) -> Defended:
    inner = model.model if isinstance(model, Batched) else model
    if not isinstance(inner, Defended):
        raise ValueError(
            "this view treats purifier and classifier separately, and the model is not a "
            "classifier behind a purifier: use the view `exact`"
        )
    return inner


def _change_diffusion_classifier(model: Classifier, change: Callable[[Any], Any]) -> Classifier:
    """Change the diffusion classifier of a model, which may be behind a purifier."""
    inner: Any = model.model if isinstance(model, Batched) else model
    limit = _limit_of(model)
    if hasattr(inner, "without_elimination"):
        changed = change(inner)
        return Batched(changed, limit, changed.classes_kept)
    if hasattr(inner, "with_classifier") and hasattr(inner.classifier, "without_elimination"):
        changed = change(inner.classifier)
        return Batched(inner.with_classifier(changed), limit, changed.classes_kept)
    raise ValueError(
        "this view needs the classifier `diffusion`, alone or behind a purifier: use the view "
        "`exact`"
    )
