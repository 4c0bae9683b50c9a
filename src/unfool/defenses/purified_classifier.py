"""Purify, then classify: a defense is itself a classifier, so attacks need no special case."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unfool.argument_checks import (
    check_evaluating,
    check_finite,
    check_images,
    check_logits,
    check_noise,
)
from unfool.noise import Noise
from unfool.protocols import Classifier, Purifier
from unfool.runtime.text import html_repr, short_repr


class Purified(nn.Module):
    """A classifier that sees purified images only.

    The purifier draws from the stream `purify`, the classifier from `classify`. Images are (B, C,
    H, W) in [0, 1].
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(self, classifier: Classifier, purifier: Purifier):
        super().__init__()
        self.classifier, self.purifier = classifier, purifier

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]; without `noise`, of a fresh draw."""
        if noise is None:
            noise = Noise.fresh(len(x))
        pure = self.purifier(x, noise.child("purify"))
        if pure.shape != x.shape:
            raise ValueError(
                f"the purifier must return images of the shape {tuple(x.shape)} that it was given, "
                f"and returned {tuple(pure.shape)}"
            )
        return self.classifier(pure, noise.child("classify"))

    def with_purifier(self, purifier: Purifier) -> "Purified":
        """The same classifier behind another purifier."""
        return Purified(self.classifier, purifier)

    def with_classifier(self, classifier: Classifier) -> "Purified":
        """The same purifier before another classifier."""
        return Purified(classifier, self.purifier)


def image_shape(purifier: object) -> tuple[int, int, int] | None:
    """The image shape (C, H, W) of a purifier's denoiser; None if it accepts any shape."""
    return getattr(getattr(purifier, "denoiser", None), "shape", None)


@torch.no_grad()
def predict_draws(model: Classifier, x: Tensor, noise: Noise, draws: int, first: int = 0) -> Tensor:
    """The class that each of `draws` independent passes chooses, (B, draws).

    Draw i uses the stream ("vote", `first` + i), which no attack uses, even one that gets the same
    noise. All passes go into one call; `unfool.Batched(model, 256)` limits a call to 256 images. If
    the model has a method `decide`, that method chooses the class.

    Raises:
        TypeError: The images or the noise have the wrong type.
        ValueError: The images do not lie in [0, 1], the noise is for more or fewer images or is an
            attacker's, or the model is in training mode or has fewer than 2 classes.
        RuntimeError: Logits are not finite.
    """
    check_images(x)
    check_evaluating(model)
    check_noise(noise, len(x))
    if noise.known_noise is not None:
        raise ValueError(
            "this noise is known to an attacker, so accuracy on it is not robust accuracy: "
            "evaluate with independent noise, such as Noise.of(seed, indices)"
        )
    if not len(x):
        return torch.zeros(0, draws, dtype=torch.long, device=x.device)
    copies, streams = x.repeat(draws, 1, 1, 1), vote_streams(noise, draws, first)
    decide = getattr(model, "decide", None)
    chosen = decide(copies, streams) if decide else predict(model, copies, streams)
    return chosen.view(draws, len(x)).T


def vote_streams(noise: Noise, draws: int, first: int = 0) -> Noise:
    """The noise of `draws` passes over the images of `noise`, one whole pass after the other."""
    votes = range(first, first + draws)
    return Noise(tuple(key for i in votes for key in noise.child("vote", i).keys))


def predict(model: Classifier, x: Tensor, noise: Noise) -> Tensor:
    """The class of the highest logit, (B,).

    Raises:
        ValueError: The model does not return logits of 2 classes or more.
        RuntimeError: Logits are not finite.
    """
    return _checked_logits(model, x, noise).argmax(1)


def majority_class(chosen: Tensor, classes: int) -> Tensor:
    """The class that most of the draws (B, draws) chose, (B,); the lowest on ties."""
    return nn.functional.one_hot(chosen, classes).sum(1).argmax(1)


@torch.no_grad()
def majority_vote(model: Classifier, x: Tensor, streams: Sequence[Noise]) -> Tensor:
    """The class (B,) that most streams of noise choose, in as few passes as possible.

    The streams are used one after the other, each only for the images whose majority the remaining
    streams can still change.

    Args:
        model: A classifier.
        x: Images (B, C, H, W).
        streams: At least one; each is the noise of one pass over all images.

    Raises:
        TypeError: The images or the noise have the wrong type.
        ValueError: The images do not lie in [0, 1], the noise is for more or fewer images, or the
            model is in training mode or has fewer than 2 classes.
        RuntimeError: Logits are not finite.
    """
    check_images(x)
    check_evaluating(model)
    for stream in streams:
        check_noise(stream, len(x))
    winners = torch.zeros(len(x), dtype=torch.long, device=x.device)
    undecided = torch.arange(len(x), device=x.device)
    counts: Tensor | None = None
    for votes_cast, stream in enumerate(streams, 1):
        if not len(undecided):
            break
        logits = _checked_logits(model, x[undecided], stream.take(undecided))
        choice = nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        counts = choice if counts is None else counts + choice
        winners[undecided] = counts.argmax(1)
        is_undecided = ~_is_settled(counts, len(streams) - votes_cast)
        undecided, counts = undecided[is_undecided], counts[is_undecided]
    return winners


def _checked_logits(model: Classifier, x: Tensor, noise: Noise) -> Tensor:
    logits = model(x, noise)
    check_logits(logits, len(x))
    check_finite(logits)
    return logits


def _is_settled(counts: Tensor, votes_left: int) -> Tensor:
    """Whether `votes_left` more votes cannot change the class with most of `counts` (B, K), (B,)."""
    first = counts.argmax(1, keepdim=True)
    most = counts.gather(1, first)
    others = (counts + votes_left).scatter(1, first, -1)
    lower = torch.arange(counts.shape[1], device=counts.device) < first  # wins ties
    return ~((others > most) | ((others == most) & lower)).any(1)
