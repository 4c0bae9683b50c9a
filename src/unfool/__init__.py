"""Defend image classifiers with diffusion models, and measure honestly how robust they are.

The public names are loaded when first used, so that importing the package costs nothing.
"""

from typing import TYPE_CHECKING

from unfool.lazy import lazy_exports

__version__ = "0.1.0"

if TYPE_CHECKING:
    from unfool import attacks as attacks
    from unfool import data as data
    from unfool import defenses as defenses
    from unfool import diffusion as diffusion
    from unfool import models as models
    from unfool import toy as toy
    from unfool import training as training
    from unfool.api.certify import CertifyResult as CertifyResult
    from unfool.api.certify import certify as certify
    from unfool.api.compare import Comparison as Comparison
    from unfool.api.compare import compare as compare
    from unfool.api.evaluate import evaluate as evaluate
    from unfool.api.load import load as load
    from unfool.api.load import load_classifier as load_classifier
    from unfool.api.load import load_denoiser as load_denoiser
    from unfool.api.load import load_spec as load_spec
    from unfool.api.result import Result as Result
    from unfool.api.result import load_run as load_run
    from unfool.api.sweep import SweepResult as SweepResult
    from unfool.api.sweep import sweep as sweep
    from unfool.attacks.apgd import APGD as APGD
    from unfool.attacks.autoattack import AutoAttack as AutoAttack
    from unfool.attacks.corruptions import Corruption as Corruption
    from unfool.attacks.fab import FAB as FAB
    from unfool.attacks.interop import ExternalAttack as ExternalAttack
    from unfool.attacks.interop import as_module as as_module
    from unfool.attacks.pgd import PGD as PGD
    from unfool.attacks.pgd import fgsm as fgsm
    from unfool.attacks.precomputed import PrecomputedAttack as PrecomputedAttack
    from unfool.attacks.random_search import RandomSearch as RandomSearch
    from unfool.attacks.salt_and_pepper import SaltAndPepper as SaltAndPepper
    from unfool.attacks.square import Square as Square
    from unfool.attacks.stadv import StAdv as StAdv
    from unfool.attacks.transfer import Transfer as Transfer
    from unfool.attacks.views import Batched as Batched
    from unfool.attacks.views import adjoint as adjoint
    from unfool.attacks.views import bfloat16 as bfloat16
    from unfool.attacks.views import bpda as bpda
    from unfool.attacks.views import classifier_only as classifier_only
    from unfool.attacks.views import exact as exact
    from unfool.attacks.views import first_stage as first_stage
    from unfool.attacks.views import no_elimination as no_elimination
    from unfool.attacks.views import surrogate as surrogate
    from unfool.attacks.views import surrogate_same_noise as surrogate_same_noise
    from unfool.data.cifar import cifar10 as cifar10
    from unfool.data.cifar import cifar100 as cifar100
    from unfool.data.cifar_c import cifar10_c as cifar10_c
    from unfool.data.digits import digits as digits
    from unfool.data.folder import Folder as Folder
    from unfool.data.mnist import mnist as mnist
    from unfool.data.sample import cifar10_sample as cifar10_sample
    from unfool.defenses.aggregate import Aggregated as Aggregated
    from unfool.defenses.coup import COUP as COUP
    from unfool.defenses.denoised_smoothing import DensePure as DensePure
    from unfool.defenses.denoised_smoothing import OneStep as OneStep
    from unfool.defenses.diffpure import DiffPure as DiffPure
    from unfool.defenses.diffusion_classifier.classifier import (
        DiffusionClassifier as DiffusionClassifier,
    )
    from unfool.defenses.diffusion_classifier.classifier import calibrate as calibrate
    from unfool.defenses.diffusion_classifier.noised import (
        NoisedDiffusionClassifier as NoisedDiffusionClassifier,
    )
    from unfool.defenses.distribution_transfer import DistributionTransfer as DistributionTransfer
    from unfool.defenses.gdmp import GDMP as GDMP
    from unfool.defenses.gradual import Gradual as Gradual
    from unfool.defenses.langevin import Langevin as Langevin
    from unfool.defenses.likelihood import LikelihoodMaximization as LikelihoodMaximization
    from unfool.defenses.purified_classifier import Purified as Purified
    from unfool.defenses.purified_classifier import majority_vote as majority_vote
    from unfool.defenses.purified_classifier import predict_draws as predict_draws
    from unfool.defenses.resized import Resized as Resized
    from unfool.defenses.sampling import make_sampler as make_sampler
    from unfool.diffusion.denoiser import Denoiser as Denoiser
    from unfool.diffusion.denoiser import NetworkDenoiser as NetworkDenoiser
    from unfool.diffusion.reverse import ascent as ascent
    from unfool.diffusion.reverse import reverse as reverse
    from unfool.diffusion.schedule import VP as VP
    from unfool.diffusion.schedule import Discrete as Discrete
    from unfool.errors import SpecError as SpecError
    from unfool.evaluation.prepare import AttackOnView as AttackOnView
    from unfool.models.classifiers import NormalizedClassifier as NormalizedClassifier
    from unfool.noise import Noise as Noise
    from unfool.protocols import Attack as Attack
    from unfool.protocols import Classifier as Classifier
    from unfool.protocols import Dataset as Dataset
    from unfool.protocols import Objective as Objective
    from unfool.protocols import Purifier as Purifier
    from unfool.threat import Knowledge as Knowledge
    from unfool.threat import Threat as Threat
    from unfool.training.objectives.addt import ADDT as ADDT
    from unfool.training.objectives.adversarial import PGDAT as PGDAT
    from unfool.training.objectives.adversarial import TRADES as TRADES
    from unfool.training.objectives.cross_entropy import CrossEntropy as CrossEntropy
    from unfool.training.objectives.denoising import Denoising as Denoising
    from unfool.training.objectives.purified_copies import PurifiedCopies as PurifiedCopies
    from unfool.training.objectives.truth_maximization import TruthMaximization as TruthMaximization
    from unfool.training.options import TrainingOptions as TrainingOptions
    from unfool.training.train import train as train
else:  # at run time only, so that a type checker rejects names that do not exist
    __getattr__, __dir__, __all__ = lazy_exports(__name__, "__version__")
