"""The losses that attacks maximize, averaged over draws of the defense's noise (EOT)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unfool.argument_checks import check_labels, check_logits
from unfool.batching import in_parts
from unfool.noise import Noise, drawn_so_far
from unfool.protocols import Classifier

Loss = Literal["ce", "margin", "dlr"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy (B,) of logits (B, K) and labels (B,)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The highest wrong logit minus the true one (B,); positive if the image is misclassified."""
    true = F.one_hot(y, logits.shape[1]).bool()
    wrong = logits.masked_fill(true, -torch.inf).amax(1)
    return wrong - logits.gather(1, y[:, None])[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The margin divided by the gap between the top and third logits, (B,) (Croce and Hein, 2020).

    It does not change when logits are scaled or shifted.

    Raises:
        ValueError: There are fewer than 3 classes.
    """
    top = _top(logits, 3, "dlr")
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def toward_cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The log-probability of the class `target`, (B,)."""
    return -cross_entropy(logits, target)


def toward_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The logit of the class `target` minus the true one, (B,)."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]


def toward_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """`toward_margin` divided by a gap among the top four logits, (B,) (Croce and Hein, 2020).

    Raises:
        ValueError: There are fewer than 4 classes.
    """
    top = _top(logits, 4, "targeted dlr")
    gap = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return toward_margin(logits, y, target) / (gap + 1e-12)


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
}
TARGETED: dict[Loss, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce": toward_cross_entropy,
    "margin": toward_margin,
    "dlr": toward_dlr,
}


Weigh = Callable[[Tensor, Tensor], Tensor]


class QueryResult(NamedTuple):
    """The result of a query for each image, averaged over the attacker's draws.

    Attributes:
        loss: The mean loss (B,).
        error_rate: The share of draws that were misclassified (B,).
        gradient: The gradient of the loss at the images (B, C, H, W), averaged over draws with the
            weights of `Query.weigh`, without the draws where it is NaN; zeros if it was not asked
            for.
    """

    loss: Tensor
    error_rate: Tensor
    gradient: Tensor


class LossRecord(NamedTuple):
    """The loss of one gradient step of a search.

    Attributes:
        run: What identifies the run of the step: the keys of the noise and the name of the loss.
        loss: The mean loss (B,).
    """

    run: tuple[tuple[int, ...], str]
    loss: Tensor


_RECORDING: ContextVar[list[LossRecord] | None] = ContextVar("watched", default=None)


@contextmanager
def recording_losses() -> Iterator[list[LossRecord]]:
    """Record the loss of every gradient step inside the `with`, in order.

    A search need not know that it is recorded. In nested blocks, only the innermost one records.
    """
    steps: list[LossRecord] = []
    token = _RECORDING.set(steps)
    try:
        yield steps
    finally:
        _RECORDING.reset(token)


class Query(NamedTuple):
    """What a search asks of the model: the arguments of `query_model` other than the model.

    Attributes:
        weigh: A function from the losses (B, draws) and the gradients (B, draws, C, H, W) of all
            draws to their weights in the gradient (B, draws); None for equal weights. The loss
            stays the unweighted mean.
    """

    x: Tensor
    y: Tensor
    loss: Loss
    noise: Noise
    query_index: int
    draws: int
    gradient: bool = True
    target: Tensor | None = None
    weigh: Weigh | None = None


def query_model(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    noise: Noise,
    query_index: int,
    draws: int,
    gradient: bool = True,
    target: Tensor | None = None,
    weigh: Weigh | None = None,
) -> QueryResult:
    """Query the model at `x` with `draws` draws of its noise per image (EOT, Athalye et al., 2018).

    All draws of all images are batched, with up to `model.batch_size` in one call.

    Args:
        model: The model, as the attacker sees it.
        x: Images (B, C, H, W).
        y: Labels (B,).
        loss: The loss to average.
        noise: The attacker's noise.
        query_index: The number of this query; queries with the same number have the same draws.
        draws: Draws per image.
        gradient: Whether to compute the gradient.
        target: A class per image (B,) to move toward; None moves away from the true class. (In both
            cases, a draw is wrong if its answer is not the true class.)
        weigh: The weights of the draws in the gradient (see `Query`).
    """
    query = Query(x, y, loss, noise, query_index, draws, gradient, target, weigh)
    (result,) = query_batch(model, [query])
    if gradient:
        record_gradient_step(LossRecord((noise.keys, loss), result.loss))
    return result


def record_gradient_step(step: LossRecord) -> None:
    """Add a step to the innermost `recording_losses`, if there is one."""
    if (steps := _RECORDING.get()) is not None:
        steps.append(step)


def query_batch(model: Classifier, queries: Sequence[Query]) -> list[QueryResult]:
    """Answer several queries at once, batched like the draws of one (`query_model`).

    All queries must have the same loss, and agree on whether they want a gradient and whether they
    have a target. If the model keeps several classes (`protocols.Classifier`), the highest wrong
    logits, which may stay above the true one, are left out: the loss and the error rate depend only
    on the others. (A loss toward a target uses all logits.)
    """
    first, classes_kept = queries[0], getattr(model, "classes_kept", 1)
    images, labels = (
        torch.cat([field(q).repeat_interleave(q.draws, 0) for q in queries])
        for field in (lambda q: q.x.detach(), lambda q: q.y)
    )
    targets = [q.target.repeat_interleave(q.draws) for q in queries if q.target is not None]
    target_classes = torch.cat(targets) if targets else None
    copies = Noise.join([q.noise.for_query(q.query_index, q.draws) for q in queries])

    def run_part(rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        batch = images[rows].requires_grad_(first.gradient)
        with torch.set_grad_enabled(first.gradient):
            logits, y = model(batch, copies.take(range(rows.start, rows.stop))), labels[rows]
            check_logits(logits, len(batch))
            check_labels(y, len(batch), logits.shape[1])
            competing, true_index = competing_logits(logits, y, classes_kept)
            if target_classes is None:
                value = LOSSES[first.loss](competing, true_index)
            else:
                value = TARGETED[first.loss](logits, y, target_classes[rows])
            total = value.sum()
        if first.gradient and not value.requires_grad:
            raise RuntimeError(
                "the model's logits have no gradient with respect to the images: look for no_grad, "
                "detach, or rounding in the model, or use an attack without gradients or the view "
                "`bpda`"
            )
        gradient = torch.autograd.grad(total, batch)[0] if first.gradient else None
        return value.detach(), competing.detach().argmax(1) != true_index, gradient

    losses, wrongs, gradients = zip(*in_parts(run_part, len(images), model), strict=True)
    counts = [len(q.x) * q.draws for q in queries]
    means = [torch.cat(values).to(first.x.dtype).split(counts) for values in (losses, wrongs)]
    by_query = torch.cat(gradients).split(counts) if first.gradient else [None] * len(queries)

    def by_draw(values: Tensor, query: Query) -> Tensor:
        return values.view(len(query.x), query.draws, *values.shape[1:])

    def mean(values: Tensor, query: Query) -> Tensor:
        return by_draw(values, query).mean(1)

    def gradient_of(loss: Tensor, gradient: Tensor | None, query: Query) -> Tensor:
        if gradient is None:
            return torch.zeros_like(query.x)
        gradients = by_draw(gradient, query)
        if query.weigh is None:
            return _unless_nan(gradients.mean(1), gradients.nanmean(1))
        weights = query.weigh(by_draw(loss, query), gradients)
        weighted = weights[:, :, None, None, None] * gradients
        total = weights.sum(1)[:, None, None, None]
        some = torch.where(gradients.isnan().all(1), torch.nan, weighted.nansum(1))
        return _unless_nan(weighted.sum(1) / total, some / total)

    return [
        QueryResult(
            mean(loss, q),
            mean(wrong, q),
            gradient_of(loss, gradient, q),
        )
        for q, loss, wrong, gradient in zip(queries, *means, by_query, strict=True)
    ]


def _unless_nan(values: Tensor, others: Tensor) -> Tensor:
    return torch.where(values.isnan(), others, values)


@torch.no_grad()
def query_logits(
    model: Classifier, x: Tensor, noise: Noise, query_index: int, draws: int
) -> Tensor:
    """Logits (B, draws, K) of `draws` draws of the model's noise per image."""
    copies, images = noise.for_query(query_index, draws), x.repeat_interleave(draws, 0)

    def run_part(rows: slice) -> Tensor:
        logits = model(images[rows], copies.take(range(rows.start, rows.stop)))
        check_logits(logits, len(images[rows]))
        return logits

    joined = torch.cat(in_parts(run_part, len(images), model))
    return joined.view(len(x), draws, joined.shape[1])


def without_noise(model: Classifier, x: Tensor, noise: Noise) -> Tensor:
    """Return which images the model classifies without noise, (B,) of bool: one draw decides them.

    The logits of such an image agree between two draws, and the model drew nothing from its noise.
    Agreement alone is not enough, since votes may agree by luck. If the model did draw noise, it is
    called again with each image whose logits agree, since the noise may have been for other images.
    """
    draws_before = drawn_so_far()
    first, second = query_logits(model, x, noise, 0, 2).unbind(1)
    agrees = torch.isclose(first, second, rtol=1e-4, atol=1e-5).all(1)
    if drawn_so_far() == draws_before:
        return agrees
    for i in agrees.nonzero()[:, 0].tolist():
        draws_before = drawn_so_far()
        query_logits(model, x[i : i + 1], noise.take([i]), 0, 1)
        agrees[i] = drawn_so_far() == draws_before
    return agrees


def runner_up_classes(
    model: Classifier, x: Tensor, y: Tensor, noise: Noise, draws: int, n: int
) -> Tensor:
    """Return the `n` wrong classes (or all) with the highest mean logits, (B, n), highest first."""
    mean = query_logits(model, x, noise, 0, draws).mean(1)
    check_labels(y, len(x), mean.shape[1])
    wrong = mean.masked_fill(F.one_hot(y, mean.shape[1]).bool(), -torch.inf)
    return wrong.topk(min(n, mean.shape[1] - 1), dim=1).indices


def competing_logits(logits: Tensor, y: Tensor, classes_kept: int) -> tuple[Tensor, Tensor]:
    """Return the true logit and the wrong ones from rank `classes_kept` on, and the label 0.

    If `classes_kept` is 1, the logits (B, K) and labels are returned unchanged.
    """
    classes = logits.shape[1]
    if classes_kept == 1:
        return logits, y
    true = F.one_hot(y, classes).bool()
    wrong = logits.masked_fill(true, -torch.inf).sort(1, descending=True).values
    competing = wrong[:, min(classes_kept, classes - 1) - 1 : -1]
    return torch.cat([logits.gather(1, y[:, None]), competing], 1), torch.zeros_like(y)


def _top(logits: Tensor, n: int, loss: str) -> Tensor:
    if logits.shape[1] < n:
        raise ValueError(
            f"the loss {loss} needs at least {n} classes, and the model has {logits.shape[1]}: use "
            "the loss `margin`"
        )
    return logits.topk(n, dim=1).values
