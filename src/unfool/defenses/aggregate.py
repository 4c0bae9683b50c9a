"""Several purifications of an image, combined into one answer by mean logits, softmax, or votes."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfool.defenses.purified_classifier import Purified, majority_vote, predict
from unfool.noise import Noise
from unfool.protocols import Classifier, Purifier
from unfool.ranges import Count, check_arguments
from unfool.runtime.text import html_repr, short_repr

By = Literal["logits", "softmax", "votes"]


class Aggregated(nn.Module):
    """A classifier that purifies each image `paths` times and combines the answers.

    Path 0 draws from the streams of `Purified`, and path i from the same streams below ("path", i).
    The paths run one after the other, so purification takes the memory of one path.

    Args:
        model: A classifier behind a purifier.
        paths: The number of purifications; 10 for GDMP, DensePure, and gradual purification.
        by: How the logits of all paths become one answer: `"logits"` averages logits, `"softmax"`
            averages probabilities, `"votes"` counts votes.

    Raises:
        ValueError: An option is out of range.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(self, model: Purified, *, paths: Count = 10, by: By = "softmax"):
        super().__init__()
        check_arguments(Aggregated, locals())
        self.model, self.paths = model, paths
        self.by: By = by

    @property
    def classifier(self) -> Classifier:
        """The classifier alone."""
        return self.model.classifier

    @property
    def purifier(self) -> Purifier:
        """The purifier alone."""
        return self.model.purifier

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Aggregate (B, K) for images (B, C, H, W) in [0, 1]; without noise, of a fresh draw."""
        if noise is None:
            noise = Noise.fresh(len(x))
        logits = [self.model(x, stream) for stream in self._streams(noise)]
        return aggregate(torch.stack(logits), self.by)

    def decide(self, x: Tensor, noise: Noise) -> Tensor:
        """The class (B,) of the highest aggregate; votes skip paths that cannot change it."""
        if self.by == "votes":
            return majority_vote(self.model, x, self._streams(noise))
        return predict(self, x, noise)

    def _streams(self, noise: Noise) -> list[Noise]:
        return [noise, *(noise.child("path", i) for i in range(1, self.paths))]

    def with_purifier(self, purifier: Purifier) -> "Aggregated":
        """The same aggregation behind another purifier."""
        return Aggregated(self.model.with_purifier(purifier), paths=self.paths, by=self.by)


def aggregate(logits: Tensor, by: By) -> Tensor:
    """Combine the logits (R, B, K) of R paths into one answer (B, K).

    Args:
        logits: The logits of each path.
        by: `"logits"`: their mean; `"softmax"`: the logarithm of the mean probability; `"votes"`:
            the share of the paths that choose a class. The true gradient of that share is 0, so it
            is replaced by that of the mean probability, which gives attacks a direction.
    """
    if by == "logits":
        return logits.mean(0)
    if by == "softmax":
        return logits.log_softmax(2).logsumexp(0) - torch.tensor(len(logits)).log().to(logits)
    mean = logits.softmax(2).mean(0)
    shares = F.one_hot(logits.argmax(2), logits.shape[2]).to(logits).mean(0)
    return shares + (mean - mean.detach())
