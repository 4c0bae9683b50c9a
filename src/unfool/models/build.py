"""What a spec's `classifier` and `denoiser` may name: networks with their weights and input range."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from unfool.diffusion.denoiser import NetworkDenoiser, Prediction, Time
from unfool.diffusion.schedule import Schedule
from unfool.models.checkpoints import load_state, read_state
from unfool.models.classifiers import NormalizedClassifier
from unfool.models.jem import JEM
from unfool.networks import cifar_resnet as resnet
from unfool.networks import cnn, quick_resnet
from unfool.networks import wide_resnet as wide
from unfool.ranges import Count, CountFromZero, NotNegative, ShareBelowOne

CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cifar_resnet(
    depth: Literal[20, 32, 44, 56] = 20,
    classes: Count = 10,
    weights: Path | None = None,
    mean: Sequence[float] = CIFAR_MEAN,
    std: Sequence[float] = CIFAR_STD,
) -> NormalizedClassifier:
    """A CIFAR ResNet of He et al. (2016), random or with the public weights."""
    return _plain(resnet.cifar_resnet(depth, classes), weights, mean, std)


def wide_resnet(
    depth: int = 28,
    width: Count = 10,
    classes: Count = 10,
    dropout: ShareBelowOne = 0.0,
    weights: Path | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> NormalizedClassifier:
    """A WideResNet-depth-width of Zagoruyko and Komodakis (2016)."""
    return _plain(wide.wide_resnet(depth, width, classes, dropout), weights, mean, std)


def jem(
    depth: int = 28,
    width: Count = 10,
    classes: Annotated[int, Field(ge=2)] = 10,
    chains: Count = 1,
    sigma: NotNegative = 0.0,
    refine: CountFromZero = 0,
    weights: Path | None = None,
) -> JEM:
    """A joint energy-based model of Grathwohl et al. (2020), random or with weights as published."""
    model = JEM(depth, width, classes, chains=chains, sigma=sigma, refine=refine)
    if weights is not None:
        load_state(model, read_state(weights), str(weights))
    return model


def quick(
    widths: Sequence[int] = (64, 128, 256),
    classes: Count = 10,
    channels: Count = 3,
    weights: Path | None = None,
    mean: Sequence[float] = CIFAR_MEAN,
    std: Sequence[float] = CIFAR_STD,
) -> NormalizedClassifier:
    """A small residual network that learns CIFAR-10 within two hours of one CPU core."""
    return _plain(quick_resnet.QuickResNet(widths, classes, channels), weights, mean, std)


def small_cnn(
    channels: Count = 1,
    size: Count = 8,
    classes: Count = 10,
    width: Count = 32,
    weights: Path | None = None,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
) -> NormalizedClassifier:
    """A small convolutional network, for digits and MNIST."""
    return _plain(cnn.small_cnn(channels, size, classes, width), weights, mean, std)


def network(
    network: nn.Module,
    weights: Path | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> NormalizedClassifier:
    """Your own network as a classifier: called with normalized images, it returns logits."""
    return _plain(network, weights, mean, std)


def denoising_network(
    network: nn.Module,
    schedule: Schedule | None = None,
    predicts: Prediction = "noise",
    classes: CountFromZero = 0,
    time: Time = "scaled",
    clip_x0: bool = False,
    weights: Path | None = None,
) -> NetworkDenoiser:
    """Your own network as a denoiser: called with (x_t, time), and the labels if it has classes."""
    if weights is not None:
        load_state(network, read_state(weights), str(weights))
    return NetworkDenoiser(
        network, schedule=schedule, predicts=predicts, classes=classes, time=time, clip_x0=clip_x0
    )


def _plain(
    network: nn.Module, weights: Path | None, mean: Sequence[float], std: Sequence[float]
) -> NormalizedClassifier:
    if weights is not None:
        load_state(network, read_state(Path(weights)), str(weights))
    return NormalizedClassifier(network, tuple(mean), tuple(std))
