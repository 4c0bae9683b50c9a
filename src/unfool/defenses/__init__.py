"""Defenses: purifiers, and classifiers behind them."""

from typing import TYPE_CHECKING

from unfool.lazy import lazy_exports

if TYPE_CHECKING:
    from unfool.defenses.aggregate import Aggregated as Aggregated
    from unfool.defenses.coup import COUP as COUP
    from unfool.defenses.coup import Confidence as Confidence
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
    from unfool.defenses.energy_denoiser import Energy as Energy
    from unfool.defenses.flowpure import FlowPure as FlowPure
    from unfool.defenses.freqpure import FreqPure as FreqPure
    from unfool.defenses.gdmp import GDMP as GDMP
    from unfool.defenses.gradual import Gradual as Gradual
    from unfool.defenses.langevin import Langevin as Langevin
    from unfool.defenses.likelihood import LikelihoodMaximization as LikelihoodMaximization
    from unfool.defenses.local_smoothing import LocalSmoothing as LocalSmoothing
    from unfool.defenses.mani import Spectrum as Spectrum
    from unfool.defenses.mimic import Mimic as Mimic
    from unfool.defenses.purified_classifier import Purified as Purified
    from unfool.defenses.purified_classifier import majority_vote as majority_vote
    from unfool.defenses.purified_classifier import predict_draws as predict_draws
    from unfool.defenses.resized import Resized as Resized
    from unfool.defenses.sampling import make_sampler as make_sampler
    from unfool.defenses.ssni import ScoreNorm as ScoreNorm
    from unfool.defenses.ssni import score_norms as score_norms
else:  # only at run time, so that type checkers do not accept unknown names
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
