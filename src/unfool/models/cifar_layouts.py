"""Recognition of networks for 32x32 images by the names and shapes in a state dict.

The known layouts are those of the common collections of CIFAR classifiers: the residual networks,
MobileNetV2 and ShuffleNetV2 of "pytorch-cifar" (Liu, 2017) and of collections with torchvision's
names (Chen, 2020, "pytorch-cifar-models"; Phan, 2021, "PyTorch_CIFAR10"), the ResNets of He et al.
(2016) with parameter-free shortcuts (Idelbayev, 2018), the wide residual networks of TRADES and
most of RobustBench, and those of DeepMind.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unfool.models.checkpoints import load_state
from unfool.networks.cifar_resnet import CifarResNet
from unfool.networks.deepmind_resnet import Activation, DeepMindPreActResNet, DeepMindWideResNet
from unfool.networks.mobilenet import REPEATS, MobileNetV2
from unfool.networks.resnet import ResNet
from unfool.networks.shufflenet import ShuffleNetV2
from unfool.networks.wide_resnet import WideResNet

Numbers = tuple[float, ...]
State = dict[str, Tensor]

IDENTITY: tuple[Numbers, Numbers] = ((0.0,), (1.0,))
IMAGENET: tuple[Numbers, Numbers] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10: tuple[Numbers, Numbers] = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
PYTORCH_CIFAR: tuple[Numbers, Numbers] = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100: tuple[Numbers, Numbers] = ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))

# Depth by the number of blocks of each stage, and whether the blocks are bottlenecks.
DEPTHS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


@dataclass(frozen=True)
class Choices:
    """Properties of a network that its weights do not show; None takes the usual value.

    Attributes:
        activation: The activation of DeepMind's networks, usually SiLU.
        max_pool: Whether max pooling follows the first convolution of a ResNet, as usual with
            torchvision's names and four stages.
        shortcut_of_input: The option of pre-activation ResNets (see `ResNet`), usually false.
    """

    activation: Activation | None = None
    max_pool: bool | None = None
    shortcut_of_input: bool | None = None


@dataclass(frozen=True)
class Layout:
    """A recognized network and its weights.

    Attributes:
        name: The name, such as `"resnet18"` or `"wrn-28-10"`.
        network: The network without weights, on the device meta.
        state: The weights by the network's own names.
        classes: Number of classes.
        mean: The value subtracted from images: the file's, or the usual one for such files.
        std: The value by which the difference is divided: the file's, or the usual one.
        normalization_in_file: Whether `mean` and `std` are the file's.
    """

    name: str
    network: nn.Module
    state: State
    classes: int
    mean: Numbers
    std: Numbers
    normalization_in_file: bool


def recognize(state: Mapping[str, Tensor], source: str, choices: Choices | None = None) -> Layout:
    """Recognize the network that a state dict belongs to.

    Args:
        state: The weights by name, as in a file. Prefixes that all names share are ignored, and a
            normalization layer (`mu` and `sigma`, `normalizer.mean` ...) is split off.
        source: The source of the weights, for error messages.
        choices: Properties that the weights do not show.

    Raises:
        ValueError: The weights have none of the known layouts.
    """
    bare, normalization = _without_normalization(state)
    bare = _without_prefixes(bare)
    for required, read in _KNOWN:
        if required <= bare.keys():
            try:
                with torch.device("meta"):  # because `network_with_weights` assigns the weights
                    name, network, own, classes, default = read(bare, choices or Choices())
            except (KeyError, ValueError, IndexError) as error:
                raise ValueError(
                    f"{source} has the weight {min(required)} of a known network, but differs from it "
                    f"({error}): {_ADVICE}"
                ) from error
            mean, std = normalization or (
                CIFAR100 if classes == 100 and default != IDENTITY else default
            )
            return Layout(name, network, own, classes, mean, std, normalization is not None)
    first_names = ", ".join(list(bare)[:3])
    raise ValueError(
        f"{source} belongs to no known network for 32x32 images (its first weights are {first_names}): "
        f"{_ADVICE}"
    )


def network_with_weights(layout: Layout, source: str) -> nn.Module:
    """Assign the weights of a layout to its network, in float32, and return the network.

    Raises:
        ValueError: The weights do not fit (see `load_state`).
    """
    state = {n: v.float() if v.is_floating_point() else v for n, v in layout.state.items()}
    load_state(layout.network, state, source, assign=True)
    return layout.network


_ADVICE = (
    "use `timm`, `torchvision` or `transformers` for their models, or your own network by "
    "{name: network, network: {name: 'mine:Net'}, weights: FILE}"
)
_TRAINING_COPIES = re.compile(r"\b(attacker|model_preact_hl1)\.")
_MEAN = re.compile(r"(?:\w+\.)?(?:new_)?(?:mu|mean)")
_STD = re.compile(r"(?:\w+\.)?(?:new_)?(?:sigma|std)")


def _without_normalization(
    state: Mapping[str, Tensor],
) -> tuple[State, tuple[Numbers, Numbers] | None]:
    """Split off a normalization layer: return the other weights, and its mean and std (or None).

    Copies of the network saved only for training are dropped.
    """
    rest = {k: v for k, v in state.items() if not _TRAINING_COPIES.search(k)}
    rest = _without_prefixes(rest)
    numbers: dict[bool, Numbers] = {}
    for is_std, pattern in ((False, _MEAN), (True, _STD)):
        for key in [key for key, value in rest.items() if pattern.fullmatch(key)]:
            if rest[key].numel() in (1, 3):
                numbers[is_std] = tuple(rest.pop(key).flatten().tolist())
    return rest, (numbers[False], numbers[True]) if len(numbers) == 2 else None


def _without_prefixes(state: State) -> State:
    """Remove the first component of all names for as long as all names share it."""
    while len({name.partition(".")[0] for name in state}) == 1:
        shorter = {name.partition(".")[2]: value for name, value in state.items()}
        if "" in shorter:
            break
        state = shorter
    return state


def _count(state: Iterable[str], pattern: str) -> int:
    """Count the different values of the first group of `pattern` in the names that match."""
    return len({match[1] for name in state if (match := re.match(pattern, name))})


_Read = tuple[str, nn.Module, State, int, tuple[Numbers, Numbers]]


def _residual(state: State, choices: Choices) -> _Read:
    own = {_residual_name(name): value for name, value in state.items()}
    if own["conv1.weight"].shape[2] != 3:
        raise ValueError("its first convolution is that of a network for ImageNet images")
    stages = _count(own, r"layer(\d+)\.")
    blocks = tuple(_count(own, rf"layer{i + 1}\.(\d+)\.") for i in range(stages))
    width, classes = len(own["conv1.weight"]), len(own["linear.bias"])
    bottleneck = "layer1.0.conv3.weight" in own
    if not any("shortcut" in name for name in own):
        if stages != 3 or len(set(blocks)) != 1 or width != 16:
            raise ValueError("it has no shortcut convolutions")
        name = f"cifar-resnet{6 * blocks[0] + 2}"
        return name, CifarResNet(blocks[0], classes), own, classes, IMAGENET
    torchvision, pre = "fc.weight" in state, "bn1.weight" not in own
    pool = choices.max_pool if choices.max_pool is not None else torchvision and stages == 4
    network = ResNet(
        blocks,
        width,
        classes,
        bottleneck=bottleneck,
        pre_activation=pre,
        last_norm="bn.weight" in own,
        shortcut_of_input=bool(choices.shortcut_of_input),
        max_pool=pool,
    )
    kind = "preact-resnet" if pre else "resnet"
    if stages == 3:
        depth: object = (9 if bottleneck else 6) * blocks[0] + 2
        return f"{kind}{depth}", network, own, classes, PYTORCH_CIFAR
    depth = DEPTHS.get((blocks, bottleneck), "-" + "-".join(map(str, blocks)))
    return f"{kind}{depth}", network, own, classes, CIFAR10 if torchvision else PYTORCH_CIFAR


def _residual_name(name: str) -> str:
    return re.sub(r"^fc\.", "linear.", name.replace(".downsample.", ".shortcut."))


def _wide(state: State, _: Choices) -> _Read:
    blocks = _count(state, r"block1\.layer\.(\d+)\.")
    width, classes = len(state["block1.layer.0.conv1.weight"]) // 16, len(state["fc.bias"])
    network = WideResNet(blocks, width, classes, 0.0)
    return f"wrn-{6 * blocks + 4}-{width}", network, state, classes, IDENTITY


def _deepmind_wide(state: State, choices: Choices) -> _Read:
    depth = 6 * _count(state, r"layer\.0\.block\.(\d+)\.") + 4
    width = len(state["layer.0.block.0.conv_0.weight"]) // 16
    classes = len(state["logits.bias"])
    network = DeepMindWideResNet(depth, width, classes, choices.activation or "silu")
    return f"wrn-{depth}-{width}", network, state, classes, CIFAR10


def _deepmind_preact(state: State, choices: Choices) -> _Read:
    stages = _count(state, r"layer_(\d+)\.")
    blocks = tuple(_count(state, rf"layer_{i}\.(\d+)\.") for i in range(stages))
    classes, depth = len(state["logits.bias"]), DEPTHS[blocks, False]
    network = DeepMindPreActResNet(blocks, classes, choices.activation or "silu")
    return f"preact-resnet{depth}", network, state, classes, CIFAR10


def _mobile(state: State, _: Choices) -> _Read:
    own = {_mobile_name(name): value for name, value in state.items()}
    firsts = [sum(REPEATS[:i]) for i in range(len(REPEATS))]
    channels = [len(own[f"layers.{i}.conv3.weight"]) for i in firsts]
    sizes = len(own["conv1.weight"]), channels, len(own["conv2.weight"])
    classes = len(own["linear.bias"])
    network = MobileNetV2(classes, *sizes, all_shortcuts="layers.0.conv1.weight" in own)
    return "mobilenetv2", network, own, classes, PYTORCH_CIFAR


def _mobile_name(name: str) -> str:
    """Translate the name of a weight in torchvision to its name in "pytorch-cifar"."""
    if not name.startswith("features."):
        return name.replace("classifier.1.", "linear.")
    _, block, rest = name.split(".", 2)
    if block == "0":
        return {"0": "conv1", "1": "bn1"}[rest[0]] + rest[1:]
    if not rest.startswith("conv."):  # the last convolution
        return {"0": "conv2", "1": "bn2"}[rest[0]] + rest[1:]
    first = {"0.0": "conv2", "0.1": "bn2", "1": "conv3", "2": "bn3"}  # this block does not expand
    other = {"0.0": "conv1", "0.1": "bn1", "1.0": "conv2", "1.1": "bn2", "2": "conv3", "3": "bn3"}
    module, _, weight = rest.removeprefix("conv.").rpartition(".")
    return f"layers.{int(block) - 1}.{(first if block == '1' else other)[module]}.{weight}"


def _shuffle(state: State, _: Choices) -> _Read:
    own = {_shuffle_name(name): value for name, value in state.items()}
    channels = [2 * len(own[f"layer{i}.0.conv5.weight"]) for i in (1, 2, 3)]
    blocks = [_count(own, rf"layer{i}\.(\d+)\.") for i in (1, 2, 3)]
    last, first, classes = (len(own[f"{n}.weight"]) for n in ("conv2", "conv1", "linear"))
    network = ShuffleNetV2(classes, [*channels, last], blocks, first)
    return "shufflenetv2", network, own, classes, PYTORCH_CIFAR


def _shuffle_name(name: str) -> str:
    """Translate the name of a weight in torchvision to its name in "pytorch-cifar"."""
    module, _, weight = name.rpartition(".")
    tops = {
        "conv1.0": "conv1",
        "conv1.1": "bn1",
        "conv5.0": "conv2",
        "conv5.1": "bn2",
        "fc": "linear",
    }
    if not (match := re.fullmatch(r"stage(\d)\.(\d+)\.branch(\d)\.(\d)", module)):
        return f"{tops.get(module, module)}.{weight}"
    stage, block, branch, i = (int(number) for number in match.groups())
    left = ("conv1", "bn1", "conv2", "bn2")
    right = ("conv3", "bn3", "", "conv4", "bn4", "conv5", "bn5")
    plain = ("conv1", "bn1", "", "conv2", "bn2", "conv3", "bn3")
    part = (left if branch == 1 else plain if block else right)[i]
    return f"layer{stage - 1}.{block}.{part}.{weight}"


# The weights that identify a layout; the most specific layouts come first.
_KNOWN: tuple[tuple[set[str], Callable[[State, Choices], _Read]], ...] = (
    ({"init_conv.weight"}, _deepmind_wide),
    ({"conv_2d.weight"}, _deepmind_preact),
    ({"block1.layer.0.conv1.weight"}, _wide),
    ({"features.0.0.weight", "classifier.1.weight"}, _mobile),
    ({"layers.0.conv3.weight", "linear.weight"}, _mobile),
    ({"stage2.0.branch1.0.weight"}, _shuffle),
    ({"layer1.0.conv5.weight"}, _shuffle),
    ({"conv1.weight", "layer1.0.conv1.weight", "fc.weight"}, _residual),
    ({"conv1.weight", "layer1.0.conv1.weight", "linear.weight"}, _residual),
)
