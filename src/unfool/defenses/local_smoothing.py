"""Local smoothing (Zhang et al., 2023): a classifier that votes over noisy copies of an image."""

import torch
from torch import Tensor, nn

from unfool.argument_checks import images_of_any_range
from unfool.defenses.aggregate import By, aggregate
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, InPixels, check_arguments
from unfool.runtime.text import html_repr, short_repr


class LocalSmoothing(nn.Module):
    """A classifier that combines its answers to noisy copies of an image.

    Behind `one-step` and under `unfool certify`, it is DiffSmooth (Zhang et al., 2023, arXiv
    2308.14333): an image with the noise of the certification is denoised once, noise of `sigma` is
    added to copies of the result, and the class that most copies get counts as one draw. The
    certificate is for the outer noise, whatever happens after it. The classifier should be trained
    on noise of `sigma`; the release takes 0.01 or 0.02 more, because denoised images are smooth.

    Copy i draws from the stream ("local", i); all copies of all images go into one call.

    Args:
        classifier: The classifier, trained on noise of `sigma`.
        sigma: The noise of a copy, in units of [0, 1] pixels; 0.25 is the release's.
        draws: The number of copies; 5 is the release's.
        by: How the answers are combined: `"votes"` (the paper's), `"softmax"`, or `"logits"`. The
            gradient of votes is that of the mean probability.

    Raises:
        ValueError: An option is out of range.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(
        self,
        classifier: Classifier,
        *,
        sigma: InPixels = 0.25,
        draws: Count = 5,
        by: By = "votes",
    ):
        super().__init__()
        check_arguments(LocalSmoothing, locals())
        self.classifier, self.sigma, self.draws = classifier, sigma, draws
        self.by: By = by

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Combined answers (B, K) for images (B, C, H, W) in [0, 1]."""
        streams = [noise.child("local", i) for i in range(self.draws)]
        copies = torch.cat([x + self.sigma * stream.normal(x) for stream in streams])
        with images_of_any_range():  # nothing is clipped
            logits = self.classifier(copies, Noise.join([s.child("classify") for s in streams]))
        return aggregate(logits.view(self.draws, len(x), -1), self.by)
