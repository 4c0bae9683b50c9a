"""Training: objectives, and the loop that minimizes them."""

from typing import TYPE_CHECKING

from unfool.lazy import lazy_exports

if TYPE_CHECKING:
    from unfool.training.objectives.addt import ADDT as ADDT
    from unfool.training.objectives.adversarial import PGDAT as PGDAT
    from unfool.training.objectives.adversarial import TRADES as TRADES
    from unfool.training.objectives.adversarial_bridge import AdversarialBridge as AdversarialBridge
    from unfool.training.objectives.consistency import (
        ConsistencyDistillation as ConsistencyDistillation,
    )
    from unfool.training.objectives.cross_entropy import CrossEntropy as CrossEntropy
    from unfool.training.objectives.denoising import Denoising as Denoising
    from unfool.training.objectives.logit_pairing import ALP as ALP
    from unfool.training.objectives.macer import MACER as MACER
    from unfool.training.objectives.purified_copies import PurifiedCopies as PurifiedCopies
    from unfool.training.objectives.truth_maximization import TruthMaximization as TruthMaximization
    from unfool.training.objectives.weight_perturbation import AWP as AWP
    from unfool.training.options import TrainingOptions as TrainingOptions
else:  # only at run time, so that a type checker still rejects names that do not exist
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
