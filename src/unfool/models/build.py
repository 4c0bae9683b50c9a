"""Classifiers and denoisers that a spec can name, with their weights and normalization."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from unfool.diffusion.denoiser import NetworkDenoiser, Prediction, Time
from unfool.diffusion.schedule import Schedule
from unfool.models.checkpoints import load_state, read_state
from unfool.models.cifar_layouts import Choices, network_with_weights, recognize
from unfool.models.classifiers import (
    NormalizedClassifier,
    ReportedAccuracy,
    warn_if_unusual_normalization,
)
from unfool.models.jem import JEM
from unfool.networks import cifar_resnet as resnet
from unfool.networks import cnn, quick_resnet
from unfool.networks import wide_resnet as wide
from unfool.networks.deepmind_resnet import Activation, DeepMindWideResNet
from unfool.networks.mobilenet import MobileNetV2
from unfool.networks.resnet import ResNet
from unfool.networks.shufflenet import ShuffleNetV2
from unfool.ranges import (
    AtLeastTwo,
    Count,
    CountFromZero,
    Depth,
    NotNegative,
    Positive,
    ShareBelowOne,
    check_arguments,
)
from unfool.runtime.published_files import find_file

CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


_IDELBAYEV = "https://github.com/akamaster/pytorch_resnet_cifar10"
_CHEN = "https://github.com/chenyaofo/pytorch-cifar-models"
REPORTED_ACCURACY = {  # by file name, which ends with the beginning of the file's hash
    "resnet20-12fca82f": ReportedAccuracy(0.9173, "cifar10", _IDELBAYEV),
    "resnet56-4bfd9763": ReportedAccuracy(0.9339, "cifar10", _IDELBAYEV),
    **{
        name: ReportedAccuracy(accuracy, name.partition("_")[0], _CHEN)
        for name, accuracy in (
            ("cifar10_resnet20-4118986f", 0.9260),
            ("cifar10_resnet32-ef93fc4d", 0.9353),
            ("cifar10_resnet44-2a3cabcb", 0.9401),
            ("cifar10_resnet56-187c023a", 0.9437),
            ("cifar10_mobilenetv2_x1_0-fe6a5b48", 0.9379),
            ("cifar10_shufflenetv2_x1_0-98807be3", 0.9298),
            ("cifar100_resnet20-23dac2f1", 0.6883),
            ("cifar100_resnet32-84213ce6", 0.7016),
            ("cifar100_resnet44-ffe32858", 0.7163),
            ("cifar100_resnet56-f2eff4c8", 0.7263),
            ("cifar100_mobilenetv2_x1_0-1311f9ff", 0.7420),
            ("cifar100_shufflenetv2_x1_0-9ae22beb", 0.7239),
        )
    },
}

CifarModel = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "preact-resnet18",
    "mobilenetv2",
    "shufflenetv2",
    "wrn-28-10",
    "wrn-34-10",
    "wrn-70-16",
]


def cifar_network(
    model: CifarModel | None = None,
    weights: Path | None = None,
    classes: Count | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[Positive] | None = None,
    activation: Activation | None = None,
    max_pool: bool | None = None,
    shortcut_of_input: bool | None = None,
    download: bool = False,
) -> NormalizedClassifier:
    """A classifier for 32x32 images from a file of a common collection, or a random one to train.

    Args:
        model: The name of the network. With `weights`, it is read from the file, and any other name
            is an error.
        weights: The file of the weights, from which the network, its depth, width, and number of
            classes are read; the file may have prefixes before all names and a normalization layer.
        classes: Number of classes of a random network; 10 by default.
        mean: The value per channel that is subtracted from images in [0, 1]; None takes that of the
            file, or the usual one for such files.
        std: The value per channel by which the difference is divided; None as for `mean`.
        activation: The activation of DeepMind's networks, whose files do not state it; SiLU by
            default.
        max_pool: Whether max pooling follows the first convolution in ResNets with torchvision's
            names, whose files do not state it; by default it does, as in PyTorch_CIFAR10.
        shortcut_of_input: Whether shortcut convolutions of pre-activation ResNets get the input of
            their block before normalization and ReLU, which files do not state; by default they do
            not.
        download: Download a published file that is missing (see docs/checkpoints.md).

    Raises:
        ValueError: The file belongs to an unknown network or not to `model`, or neither `model` nor
            `weights` is given.
    """
    check_arguments(cifar_network, locals())
    if weights is None:
        if model is None:
            raise ValueError("give a `model`, or a file of `weights` from which it can be read")
        return NormalizedClassifier(_random_network(model, classes or 10, activation), mean, std)
    choices = Choices(activation, max_pool, shortcut_of_input)
    layout = recognize(read_state(find_file(Path(weights), download)), str(weights), choices)
    if model not in (None, layout.name):
        raise ValueError(f"{weights} is a {layout.name}, not a {model}: leave `model` out")
    if classes not in (None, layout.classes):
        raise ValueError(
            f"{weights} has {layout.classes} classes, not {classes}: leave `classes` out"
        )
    network = network_with_weights(layout, str(weights))
    warn_if_unusual_normalization(str(weights), (mean, std), (layout.mean, layout.std))
    classifier = NormalizedClassifier(network, mean or layout.mean, std or layout.std)
    classifier.reported = REPORTED_ACCURACY.get(Path(weights).stem)
    return classifier


def cifar_resnet(
    depth: Literal[20, 32, 44, 56] = 20,
    classes: Count = 10,
    weights: Path | None = None,
    mean: Sequence[float] = CIFAR_MEAN,
    std: Sequence[Positive] = CIFAR_STD,
) -> NormalizedClassifier:
    """A CIFAR ResNet (He et al., 2016) with parameter-free shortcuts, random or from a file.

    Args:
        depth: Layers with weights.
        classes: The number of classes.
        weights: The file of the weights; None for random ones, to train.
        mean: The value that is subtracted from images in [0, 1], one per channel or one for all.
        std: The value by which the difference is divided, one per channel or one for all.

    Raises:
        ValueError: An option is out of range, or the file does not fit.
    """
    check_arguments(cifar_resnet, locals())
    return _with_normalization(resnet.cifar_resnet(depth, classes), weights, mean, std, _ANY_LAYOUT)


def wide_resnet(
    depth: Depth = 28,
    width: Count = 10,
    classes: Count = 10,
    dropout: ShareBelowOne = 0.0,
    weights: Path | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[Positive] = (1.0,),
) -> NormalizedClassifier:
    """A WideResNet (Zagoruyko and Komodakis, 2016), random or from a file in the layout of TRADES.

    Args:
        depth: Layers with weights, 6n + 4.
        width: The width factor, relative to a plain ResNet.
        classes: The number of classes.
        dropout: The share of features that the residual blocks drop in training.
        weights: The file of the weights; None for random ones, to train.
        mean: The value that is subtracted from images in [0, 1], one per channel or one for all.
        std: The value by which the difference is divided, one per channel or one for all.

    Raises:
        ValueError: An option is out of range, or the file does not fit.
    """
    check_arguments(wide_resnet, locals())
    network = wide.wide_resnet(depth, width, classes, dropout)
    return _with_normalization(network, weights, mean, std, _ANY_LAYOUT)


def jem(
    depth: Depth = 28,
    width: Count = 10,
    classes: AtLeastTwo = 10,
    chains: Count = 1,
    sigma: NotNegative = 0.0,
    refine: CountFromZero = 0,
    weights: Path | None = None,
) -> JEM:
    """A joint energy-based model (Grathwohl et al., 2020), random or with published weights.

    Args:
        depth: Layers with weights, 6n + 4; 28 in the paper.
        width: The width factor, relative to a plain ResNet; 10 in the paper.
        classes: The number of classes.
        chains: Noisy copies of the image whose logits are averaged; 5 in the paper's attacks.
        sigma: The standard deviation of a copy's noise, for pixels in [0, 1]; 0.015 in the paper.
        refine: Steps of Langevin dynamics that refine each copy before it is classified.
        weights: The file of the weights; None for random ones, to train.

    Raises:
        ValueError: An option is out of range, or the file does not fit.
    """
    check_arguments(jem, locals())
    model = JEM(depth, width, classes, chains=chains, sigma=sigma, refine=refine)
    if weights is not None:
        load_state(model, read_state(weights), str(weights))
    return model


def quick(
    widths: Sequence[Count] = (64, 128, 256),
    classes: Count = 10,
    channels: Count = 3,
    weights: Path | None = None,
    mean: Sequence[float] = CIFAR_MEAN,
    std: Sequence[Positive] = CIFAR_STD,
) -> NormalizedClassifier:
    """A small residual network that learns CIFAR-10 within two hours on one CPU core.

    Args:
        widths: Channels of each stage; each stage halves the height and width.
        classes: The number of classes.
        channels: Channels of an image.
        weights: The file of the weights; None for random ones, to train.
        mean: The value that is subtracted from images in [0, 1], one per channel or one for all.
        std: The value by which the difference is divided, one per channel or one for all.

    Raises:
        ValueError: An option is out of range, or the file does not fit.
    """
    check_arguments(quick, locals())
    return _with_normalization(
        quick_resnet.QuickResNet(widths, classes, channels), weights, mean, std
    )


def small_cnn(
    channels: Count = 1,
    size: Annotated[int, Field(ge=4)] = 8,
    classes: Count = 10,
    width: Count = 32,
    weights: Path | None = None,
    mean: Sequence[float] = (0.5,),
    std: Sequence[Positive] = (0.5,),
) -> NormalizedClassifier:
    """A small convolutional network for digits and MNIST.

    Args:
        channels: Channels of an image.
        size: Height and width of an image in pixels.
        classes: The number of classes.
        width: Channels of the first two convolutions; the other two have twice as many.
        weights: The file of the weights; None for random ones, to train.
        mean: The value that is subtracted from images in [0, 1], one per channel or one for all.
        std: The value by which the difference is divided, one per channel or one for all.

    Raises:
        ValueError: An option is out of range, or the file does not fit.
    """
    check_arguments(small_cnn, locals())
    return _with_normalization(cnn.small_cnn(channels, size, classes, width), weights, mean, std)


def network(
    network: nn.Module,
    weights: Path | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[Positive] = (1.0,),
) -> NormalizedClassifier:
    """Your own network as a classifier: it is called with normalized images and returns logits.

    Args:
        network: The torch module.
        weights: The file of its weights; None keeps the weights that the module has.
        mean: The value that is subtracted from images in [0, 1], one per channel or one for all.
        std: The value by which the difference is divided, one per channel or one for all.

    Raises:
        ValueError: An option is out of range, or the file does not fit.
    """
    check_arguments(network, locals())
    return _with_normalization(network, weights, mean, std)


def denoising_network(
    network: nn.Module,
    schedule: Schedule | None = None,
    predicts: Prediction = "noise",
    classes: CountFromZero = 0,
    time: Time = "scaled",
    clip_x0: bool = False,
    weights: Path | None = None,
) -> NetworkDenoiser:
    """Your own network as a denoiser: it is called with (x_t, time), and labels if it has classes.

    Args:
        network: The torch module.
        schedule: The noise schedule; continuous VP if None.
        predicts: What the network predicts (see `NetworkDenoiser`).
        classes: Labels to condition on, besides the null class; 0 for none.
        time: The time input of the network (see `NetworkDenoiser`).
        clip_x0: Whether the estimate of the clean image is clipped to [-1, 1].
        weights: The file of its weights; None keeps the weights that the module has.

    Raises:
        ValueError: An option is out of range, or the file does not fit.
    """
    check_arguments(denoising_network, locals())
    if weights is not None:
        load_state(network, read_state(weights), str(weights))
    return NetworkDenoiser(
        network, schedule=schedule, predicts=predicts, classes=classes, time=time, clip_x0=clip_x0
    )


_ANY_LAYOUT = (
    "; or use {name: cifar-network, weights: FILE}, which reads the architecture from the file"
)


def _with_normalization(
    network: nn.Module,
    weights: Path | None,
    mean: Sequence[float],
    std: Sequence[float],
    advice: str = "",
) -> NormalizedClassifier:
    if weights is not None:
        state = read_state(Path(weights))
        try:
            load_state(network, state, str(weights))
        except ValueError as error:
            raise ValueError(f"{error}{advice}") from error
    return NormalizedClassifier(network, tuple(mean), tuple(std))


def _random_network(model: CifarModel, classes: int, activation: Activation | None) -> nn.Module:
    match model.split("-"):
        case ["mobilenetv2"]:
            return MobileNetV2(classes)
        case ["shufflenetv2"]:
            return ShuffleNetV2(classes)
        case ["wrn", depth, width] if activation is not None:
            return DeepMindWideResNet(int(depth), int(width), classes, activation)
        case ["wrn", depth, width]:
            return wide.wide_resnet(int(depth), int(width), classes)
        case ["preact", "resnet18"]:
            return ResNet(classes=classes, pre_activation=True)
        case ["resnet18"]:
            return ResNet(classes=classes)
        case _:
            return ResNet((3, 4, 6, 3), classes=classes, bottleneck=model == "resnet50")
