"""Classifiers and diffusion models, and the weights that they load."""

from typing import TYPE_CHECKING

from unfool.lazy import lazy_exports

if TYPE_CHECKING:
    from unfool.models.build import cifar_network as cifar_network
    from unfool.models.build import cifar_resnet as cifar_resnet
    from unfool.models.build import denoising_network as denoising_network
    from unfool.models.build import network as network
    from unfool.models.build import quick as quick
    from unfool.models.build import small_cnn as small_cnn
    from unfool.models.build import wide_resnet as wide_resnet
    from unfool.models.card import trained_classifier as trained_classifier
    from unfool.models.card import trained_denoiser as trained_denoiser
    from unfool.models.classifiers import NormalizedClassifier as NormalizedClassifier
    from unfool.models.hub_classifiers import timm_classifier as timm_classifier
    from unfool.models.hub_classifiers import torchvision_classifier as torchvision_classifier
    from unfool.models.hub_classifiers import transformers_classifier as transformers_classifier
    from unfool.models.latent import dit as dit
    from unfool.models.latent import stable_diffusion as stable_diffusion
    from unfool.models.published.ddpm import ddpm as ddpm
    from unfool.models.published.ddpm import diffusers as diffusers
    from unfool.models.published.edm import edm as edm
    from unfool.models.published.openai import consistency as consistency
    from unfool.models.published.openai import guided_diffusion as guided_diffusion
    from unfool.models.published.openai import improved_diffusion as improved_diffusion
    from unfool.models.published.score_sde import score_sde as score_sde
    from unfool.models.robustbench_zoo import robustbench as robustbench
else:  # only at run time, so that type checkers see just the names imported above
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
