"""Classifiers of RobustBench (Croce et al., 2021) by their names in its zoo, from their files.

Some facts are only in the zoo's code and not in a file: the normalization of the input and, for a
few networks, the form of the shortcuts. This module has these facts and the stated accuracies; all
others are read from the file.
"""

from pathlib import Path
from typing import Literal

from unfool.models.checkpoints import read_state
from unfool.models.cifar_layouts import (
    CIFAR10,
    IDENTITY,
    PYTORCH_CIFAR,
    Choices,
    network_with_weights,
    recognize,
)
from unfool.models.classifiers import NormalizedClassifier, ReportedAccuracy
from unfool.networks.deepmind_resnet import DeepMindPreActResNet, DeepMindWideResNet
from unfool.ranges import check_arguments
from unfool.spec.menu import hint

ACCURACY: dict[tuple[str, str], dict[str, float]] = {  # clean, in percent, as the zoo states it
    ("cifar10", "Linf"): {
        "Addepalli2021Towards_RN18": 80.24,
        "Addepalli2021Towards_WRN34": 85.32,
        "Addepalli2022Efficient_RN18": 85.71,
        "Addepalli2022Efficient_WRN_34_10": 88.71,
        "Andriushchenko2020Understanding": 79.84,
        "Bartoldson2024Adversarial_WRN-82-8": 93.11,
        "Bartoldson2024Adversarial_WRN-94-16": 93.68,
        "Carmon2019Unlabeled": 89.69,
        "Chen2020Efficient": 85.32,
        "Chen2021LTD_WRN34_10": 85.21,
        "Chen2021LTD_WRN34_20": 86.03,
        "Chen2024Data_WRN_34_10": 86.54,
        "Chen2024Data_WRN_34_20": 86.1,
        "Cui2020Learnable_34_10": 88.22,
        "Cui2020Learnable_34_20": 88.7,
        "Cui2023Decoupled_WRN-28-10": 92.16,
        "Cui2023Decoupled_WRN-34-10": 85.31,
        "Engstrom2019Robustness": 87.03,
        "Gowal2020Uncovering_28_10_extra": 89.48,
        "Gowal2020Uncovering_34_20": 85.64,
        "Gowal2020Uncovering_70_16": 85.29,
        "Gowal2020Uncovering_70_16_extra": 91.1,
        "Gowal2021Improving_28_10_ddpm_100m": 87.5,
        "Gowal2021Improving_70_16_ddpm_100m": 88.74,
        "Gowal2021Improving_R18_ddpm_100m": 87.35,
        "Hendrycks2019Using": 87.11,
        "Huang2020Self": 83.48,
        "Jia2022LAS-AT_34_10": 84.98,
        "Jia2022LAS-AT_70_16": 85.66,
        "Pang2022Robustness_WRN28_10": 88.61,
        "Pang2022Robustness_WRN70_16": 89.01,
        "Rade2021Helper_R18_ddpm": 86.86,
        "Rade2021Helper_R18_extra": 89.02,
        "Rade2021Helper_ddpm": 88.16,
        "Rade2021Helper_extra": 91.47,
        "Rebuffi2021Fixing_106_16_cutmix_ddpm": 88.5,
        "Rebuffi2021Fixing_28_10_cutmix_ddpm": 87.33,
        "Rebuffi2021Fixing_70_16_cutmix_ddpm": 88.54,
        "Rebuffi2021Fixing_70_16_cutmix_extra": 92.23,
        "Rebuffi2021Fixing_R18_ddpm": 83.53,
        "Rice2020Overfitting": 85.34,
        "Sehwag2020Hydra": 88.98,
        "Sehwag2021Proxy": 86.68,
        "Sehwag2021Proxy_R18": 84.59,
        "Sitawarin2020Improving": 86.84,
        "Sridhar2021Robust": 89.46,
        "Sridhar2021Robust_34_15": 86.53,
        "Standard": 94.78,
        "Wang2020Improving": 87.5,
        "Wang2023Better_WRN-28-10": 92.44,
        "Wang2023Better_WRN-70-16": 93.25,
        "Wong2020Fast": 83.34,
        "Wu2020Adversarial": 85.36,
        "Wu2020Adversarial_extra": 88.25,
        "Xu2023Exploring_WRN-28-10": 93.69,
        "Zhang2019Theoretically": 84.92,
        "Zhang2019You": 87.2,
        "Zhang2020Attacks": 84.52,
        "Zhang2020Geometry": 89.36,
    },
    ("cifar10", "L2"): {
        "Augustin2020Adversarial": 91.08,
        "Augustin2020Adversarial_34_10": 92.23,
        "Augustin2020Adversarial_34_10_extra": 93.96,
        "Engstrom2019Robustness": 90.83,
        "Gowal2020Uncovering": 90.9,
        "Gowal2020Uncovering_extra": 94.74,
        "Rade2021Helper_R18_ddpm": 90.57,
        "Rebuffi2021Fixing_28_10_cutmix_ddpm": 91.79,
        "Rebuffi2021Fixing_70_16_cutmix_ddpm": 92.41,
        "Rebuffi2021Fixing_70_16_cutmix_extra": 95.74,
        "Rebuffi2021Fixing_R18_cutmix_ddpm": 90.33,
        "Rice2020Overfitting": 88.67,
        "Rony2019Decoupling": 89.05,
        "Sehwag2021Proxy": 90.93,
        "Sehwag2021Proxy_R18": 89.76,
        "Standard": 94.78,
        "Wang2023Better_WRN-28-10": 95.16,
        "Wang2023Better_WRN-70-16": 95.54,
        "Wu2020Adversarial": 88.51,
    },
    ("cifar100", "Linf"): {
        "Addepalli2021Towards_PARN18": 62.02,
        "Addepalli2021Towards_WRN34": 65.73,
        "Addepalli2022Efficient_RN18": 65.45,
        "Addepalli2022Efficient_WRN_34_10": 68.75,
        "Chen2020Efficient": 62.15,
        "Chen2021LTD_WRN34_10": 64.07,
        "Chen2024Data_WRN_34_10": 64.32,
        "Cui2020Learnable_34_10_LBGAT0": 70.25,
        "Cui2020Learnable_34_10_LBGAT6": 60.64,
        "Cui2020Learnable_34_10_LBGAT9_eps_8_255": 62.99,
        "Cui2020Learnable_34_20_LBGAT6": 62.55,
        "Cui2023Decoupled_WRN-28-10": 73.85,
        "Cui2023Decoupled_WRN-34-10": 65.76,
        "Cui2023Decoupled_WRN-34-10_autoaug": 65.93,
        "Gowal2020Uncovering": 60.86,
        "Gowal2020Uncovering_extra": 69.15,
        "Hendrycks2019Using": 59.23,
        "Jia2022LAS-AT_34_10": 64.89,
        "Jia2022LAS-AT_34_20": 67.31,
        "Pang2022Robustness_WRN28_10": 63.66,
        "Pang2022Robustness_WRN70_16": 65.56,
        "Rade2021Helper_R18_ddpm": 61.5,
        "Rebuffi2021Fixing_28_10_cutmix_ddpm": 62.41,
        "Rebuffi2021Fixing_70_16_cutmix_ddpm": 63.56,
        "Rebuffi2021Fixing_R18_ddpm": 56.87,
        "Rice2020Overfitting": 53.83,
        "Sehwag2021Proxy": 65.93,
        "Sitawarin2020Improving": 62.82,
        "Wang2023Better_WRN-28-10": 72.58,
        "Wang2023Better_WRN-70-16": 75.22,
        "Wu2020Adversarial": 60.38,
    },
}

_HALF = (0.5,), (0.5,)
_CIFAR100_DEEPMIND = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
_CIFAR100_EXACT = (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)
# The mean and std of models with neither images in [0, 1] nor the input of DeepMind's networks.
_INPUT = {
    ("cifar10", "Hendrycks2019Using"): _HALF,
    ("cifar100", "Hendrycks2019Using"): _HALF,
    ("cifar10", "Rice2020Overfitting"): CIFAR10,
    ("cifar100", "Rice2020Overfitting"): _CIFAR100_EXACT,
    ("cifar10", "Engstrom2019Robustness"): PYTORCH_CIFAR,
    ("cifar10", "Wong2020Fast"): CIFAR10,
    ("cifar10", "Chen2020Efficient"): CIFAR10,
    ("cifar100", "Chen2020Efficient"): ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    ("cifar100", "Wu2020Adversarial"): _CIFAR100_EXACT,
    ("cifar10", "Augustin2020Adversarial"): CIFAR10,
    ("cifar10", "Augustin2020Adversarial_34_10"): CIFAR10,
    ("cifar10", "Augustin2020Adversarial_34_10_extra"): CIFAR10,
    ("cifar10", "Rony2019Decoupling"): ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
}
_SHORTCUT_OF_INPUT = ("Andriushchenko2020Understanding", "Wong2020Fast")


def robustbench(
    model: str,
    weights: Path,
    threat: Literal["Linf", "L2"] = "Linf",
    dataset: Literal["cifar10", "cifar100"] = "cifar10",
) -> NormalizedClassifier:
    """A classifier of RobustBench, from its file and its name in the zoo.

    Args:
        model: The name in the zoo, such as `"Standard"` or `"Wang2023Better_WRN-28-10"`.
        weights: The file; nothing is downloaded.
        threat: The threat of the leaderboard that lists the model.
        dataset: The data set of the leaderboard that lists the model.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The zoo has no such model, its network is not supported, or the file belongs to
            an unknown network.
    """
    check_arguments(robustbench, locals())
    accuracies = ACCURACY.get((dataset, threat), {})
    if model not in accuracies:
        raise ValueError(
            f"there is no model {model!r} of {dataset}, {threat}, whose network is supported; "
            f"{hint(model, accuracies)}"
        )
    choices = Choices(shortcut_of_input=model in _SHORTCUT_OF_INPUT)
    layout = recognize(read_state(Path(weights)), str(weights), choices)
    network = network_with_weights(layout, str(weights))
    mean, std = layout.mean, layout.std
    if not layout.normalization_in_file:
        if isinstance(network, DeepMindWideResNet | DeepMindPreActResNet):
            default = CIFAR10 if dataset == "cifar10" else _CIFAR100_DEEPMIND
        else:
            default = IDENTITY
        mean, std = _INPUT.get((dataset, model), default)
    classifier = NormalizedClassifier(network, mean, std)
    classifier.reported = ReportedAccuracy(
        accuracies[model] / 100, dataset, f"RobustBench ({model})"
    )
    return classifier
