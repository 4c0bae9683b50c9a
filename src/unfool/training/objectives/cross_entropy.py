"""The cross-entropy of a classifier."""

from torch import Tensor
from torch.nn import functional as F

from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import ShareBelowOne, checked_dataclass


@checked_dataclass
class CrossEntropy:
    """The standard objective of a classifier.

    Attributes:
        smoothing: The share of the label that is spread over all classes (label smoothing; Szegedy
            et al., 2016, section 7), from 0 to below 1.
    """

    smoothing: ShareBelowOne = 0.0

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,)."""
        logits = model(x, noise).float()
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing)
