"""Training: objectives, and the one loop that brings them down."""

from typing import TYPE_CHECKING

from unfool.lazy import lazily

if TYPE_CHECKING:
    from unfool.training.addt import ADDT as ADDT
    from unfool.training.adversarial import PGDAT as PGDAT
    from unfool.training.adversarial import TRADES as TRADES
    from unfool.training.adversarial_bridge import AdversarialBridge as AdversarialBridge
    from unfool.training.consistency import ConsistencyDistillation as ConsistencyDistillation
    from unfool.training.logit_pairing import ALP as ALP
    from unfool.training.macer import MACER as MACER
    from unfool.training.objectives import CrossEntropy as CrossEntropy
    from unfool.training.objectives import Denoising as Denoising
    from unfool.training.options import TrainingOptions as TrainingOptions
    from unfool.training.purified_copies import PurifiedCopies as PurifiedCopies
    from unfool.training.truth_maximization import TruthMaximization as TruthMaximization
    from unfool.training.weight_perturbation import AWP as AWP

_HOMES = {
    "ADDT": "unfool.training.addt",
    "AdversarialBridge": "unfool.training.adversarial_bridge",
    "ALP": "unfool.training.logit_pairing",
    "AWP": "unfool.training.weight_perturbation",
    "ConsistencyDistillation": "unfool.training.consistency",
    "CrossEntropy": "unfool.training.objectives",
    "Denoising": "unfool.training.objectives",
    "MACER": "unfool.training.macer",
    "PGDAT": "unfool.training.adversarial",
    "PurifiedCopies": "unfool.training.purified_copies",
    "TRADES": "unfool.training.adversarial",
    "TrainingOptions": "unfool.training.options",
    "TruthMaximization": "unfool.training.truth_maximization",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
if not TYPE_CHECKING:  # lest a name that is not there pass for one
    __getattr__, __dir__ = lazily(__name__, _HOMES)
