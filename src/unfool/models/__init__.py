"""Networks that classify images, and the weights they load."""

from typing import TYPE_CHECKING

from unfool.lazy import lazily

if TYPE_CHECKING:
    from unfool.models.build import cifar_resnet as cifar_resnet
    from unfool.models.build import denoising_network as denoising_network
    from unfool.models.build import network as network
    from unfool.models.build import quick as quick
    from unfool.models.build import small_cnn as small_cnn
    from unfool.models.build import wide_resnet as wide_resnet
    from unfool.models.card import load_classifier as load_classifier
    from unfool.models.card import load_denoiser as load_denoiser
    from unfool.models.classifiers import NormalizedClassifier as NormalizedClassifier
    from unfool.models.latent import dit as dit
    from unfool.models.latent import stable_diffusion as stable_diffusion

_HOMES = {
    "cifar_resnet": "unfool.models.build",
    "denoising_network": "unfool.models.build",
    "dit": "unfool.models.latent",
    "load_classifier": "unfool.models.card",
    "load_denoiser": "unfool.models.card",
    "network": "unfool.models.build",
    "NormalizedClassifier": "unfool.models.classifiers",
    "quick": "unfool.models.build",
    "small_cnn": "unfool.models.build",
    "stable_diffusion": "unfool.models.latent",
    "wide_resnet": "unfool.models.build",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
if not TYPE_CHECKING:  # lest a name that is not there pass for one
    __getattr__, __dir__ = lazily(__name__, _HOMES)
