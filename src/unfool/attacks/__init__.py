"""Attacks: pure functions from a model and images to adversarial images."""

from typing import TYPE_CHECKING

from unfool.lazy import lazy_exports

if TYPE_CHECKING:
    from unfool.attacks.apgd import APGD as APGD
    from unfool.attacks.autoattack import AutoAttack as AutoAttack
    from unfool.attacks.carlini_wagner import CarliniWagner as CarliniWagner
    from unfool.attacks.corruptions import Corruption as Corruption
    from unfool.attacks.corruptions import corrupt as corrupt
    from unfool.attacks.deepfool import DeepFool as DeepFool
    from unfool.attacks.fab import FAB as FAB
    from unfool.attacks.interop import ExternalAttack as ExternalAttack
    from unfool.attacks.interop import as_module as as_module
    from unfool.attacks.low_frequency import LowFrequency as LowFrequency
    from unfool.attacks.perceptual import PerceptualPGD as PerceptualPGD
    from unfool.attacks.pgd import PGD as PGD
    from unfool.attacks.pgd import fgsm as fgsm
    from unfool.attacks.precomputed import PrecomputedAttack as PrecomputedAttack
    from unfool.attacks.random_search import RandomSearch as RandomSearch
    from unfool.attacks.salt_and_pepper import SaltAndPepper as SaltAndPepper
    from unfool.attacks.square import Square as Square
    from unfool.attacks.stadv import StAdv as StAdv
    from unfool.attacks.transfer import Transfer as Transfer
    from unfool.attacks.views import adjoint as adjoint
    from unfool.attacks.views import bfloat16 as bfloat16
    from unfool.attacks.views import bpda as bpda
    from unfool.attacks.views import classifier_only as classifier_only
    from unfool.attacks.views import exact as exact
    from unfool.attacks.views import first_stage as first_stage
    from unfool.attacks.views import no_elimination as no_elimination
    from unfool.attacks.views import per_step as per_step
    from unfool.attacks.views import surrogate as surrogate
    from unfool.attacks.views import surrogate_same_noise as surrogate_same_noise
else:  # at run time only, so that a type checker rejects names that do not exist
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
