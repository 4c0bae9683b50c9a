"""CIFAR classifiers in published layouts: with weights from a rule, logits equal the original code's."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unfool
from published_rule import numbers, weight
from unfool.cli.main import run
from unfool.data import fetch
from unfool.data.cifar import cifar10
from unfool.models.build import cifar_network, cifar_resnet, wide_resnet
from unfool.models.robustbench_zoo import ACCURACY, robustbench
from unfool.networks.wide_resnet import WideResNet

DATA = os.environ.get("UNFOOL_DATA")  # read before the fixture `elsewhere` unsets it

FIXTURES = Path(__file__).parents[1] / "fixtures" / "classifiers"
NAMES = {
    "chenyaofo_mobilenetv2": "mobilenetv2",
    "chenyaofo_resnet20": "resnet20",
    "chenyaofo_shufflenetv2": "shufflenetv2",
    "deepmind_preact_resnet18": "preact-resnet18",
    "huyvnphan_resnet18": "resnet18",
    "kuangliu_mobilenetv2": "mobilenetv2",
    "kuangliu_preact_resnet18": "preact-resnet18",
    "kuangliu_resnet18": "resnet18",
    "kuangliu_resnet50": "resnet50",
    "kuangliu_shufflenetv2": "shufflenetv2",
    "robustbench_preact_resnet18": "preact-resnet18",
    "robustbench_preact_resnet18_v2": "preact-resnet18",
    "wrn_deepmind_swish": "wrn-16-2",
    "wrn_trades": "wrn-16-2",
}
UNNORMALIZED = {"mean": [0.0], "std": [1.0]}
X = ((torch.from_numpy(numbers("x", (2, 3, 32, 32))) + 1) / 2).float()


def published(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    told = json.loads((FIXTURES / f"{name}.json").read_text())
    prefix = told.get("seed_prefix", "")
    return told, {key: weight(prefix + key, shape) for key, shape in told["weights"].items()}


def answers_as_published(model, told) -> bool:
    expected = torch.tensor(told["cases"][0]["output"]).view(2, -1)
    with torch.no_grad():
        found = model.eval()(X)
    return bool((found - expected).abs().max() < 1e-5 * expected.abs().max())


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "weights.pt")
    return folder / "weights.pt"


@pytest.mark.parametrize("name", NAMES)
def test_architecture_is_inferred_from_the_file(tmp_path, name):
    told, state = published(name)
    file = saved(tmp_path, state)
    given: dict[str, Any] = UNNORMALIZED if name.startswith("robustbench") else {}
    assert answers_as_published(cifar_network(weights=file, **told.get("flags", {}), **given), told)
    with pytest.raises(ValueError, match=rf"weights\.pt .*{NAMES[name]}.* resnet34"):
        cifar_network(model="resnet34", weights=file)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"net": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        lambda state: {f"model.{k}": v for k, v in state.items()},
        lambda state: {"model_state_dict": {f"module.0.{k}": v for k, v in state.items()}},
        lambda state: {"state_dict": {f"net.model.{k}": v for k, v in state.items()}},
        lambda state: {"last": state | {"model_preact_hl1.1.weight": torch.zeros(3)}, "best": {}},
        lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
    ],
)  # fmt: skip
def test_wrappers_and_prefixes_do_not_change_logits(tmp_path, wrap):
    told, state = published("chenyaofo_resnet20")
    assert answers_as_published(cifar_network(weights=saved(tmp_path, wrap(state))), told)


@pytest.mark.parametrize(
    ("mean", "std", "prefix"),
    [
        ("mu", "sigma", ""),
        ("mean", "std", "model."),
        ("normalizer.mean", "normalizer.std", "model."),
        ("module.normalizer.new_mean", "module.normalizer.new_std", "module.model."),
        ("0.mean", "0.std", "1."),
    ],
)
def test_normalization_in_the_file_is_used_unless_overridden(tmp_path, mean, std, prefix):
    told, state = published("chenyaofo_resnet20")
    inside = {mean: torch.tensor(told["mean"]), std: torch.tensor(told["std"]).view(1, 3, 1, 1)}
    table = {prefix + key: value for key, value in state.items()} | inside
    if prefix.startswith("module."):
        table |= {"module.attacker.model.conv1.weight": state["conv1.weight"]}
    assert answers_as_published(cifar_network(weights=saved(tmp_path, table)), told)
    wrong = {mean: torch.zeros(3), std: torch.ones(3)}
    assert not answers_as_published(cifar_network(weights=saved(tmp_path, table | wrong)), told)
    forced = cifar_network(
        weights=saved(tmp_path, table | wrong), mean=told["mean"], std=told["std"]
    )
    assert answers_as_published(forced, told)


def test_activation_and_max_pool_can_be_overridden(tmp_path):
    told, state = published("wrn_deepmind_swish")
    file = saved(tmp_path, state)
    assert not answers_as_published(cifar_network(weights=file, activation="relu"), told)
    told, state = published("huyvnphan_resnet18")
    file = saved(tmp_path, state)
    assert not answers_as_published(cifar_network(weights=file, max_pool=False), told)


def test_network_with_100_classes_uses_mean_of_cifar_100(tmp_path):
    _, state = published("chenyaofo_resnet20")
    state |= {"fc.weight": torch.zeros(100, 64), "fc.bias": torch.zeros(100)}
    model = cifar_network(weights=saved(tmp_path, state))
    assert model(X).shape == (2, 100)
    assert model.mean.flatten().tolist() == pytest.approx([0.5070, 0.4865, 0.4409])


def test_resnet_without_shortcut_weights_equals_cifar_resnet(tmp_path):
    plain = cifar_resnet(32).eval()
    file = saved(tmp_path, {f"module.{k}": v for k, v in plain.network.state_dict().items()})
    assert torch.equal(cifar_network(weights=file).eval()(X), plain(X))


def test_unrecognized_files_are_refused_with_advice(tmp_path):
    file = saved(tmp_path, {"conv.weight": torch.zeros(4, 3, 3, 3), "head.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"weights\.pt .*conv\.weight.*`timm`"):
        cifar_network(weights=file)
    _, state = published("kuangliu_resnet18")
    state["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    with pytest.raises(ValueError, match=r"weights\.pt .*ImageNet.*`timm`"):
        cifar_network(weights=saved(tmp_path, state))
    del state["layer4.1.bn2.bias"]
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(ValueError, match=r"lacks 1 \(layer4\.1\.bn2\.bias\)"):
        cifar_network(weights=saved(tmp_path, state))
    with pytest.raises(ValueError, match="`model`"):
        cifar_network()
    _, state = published("chenyaofo_resnet20")
    with pytest.raises(ValueError, match="cifar-network"):
        cifar_resnet(20, weights=saved(tmp_path, state))
    with pytest.raises(ValueError, match="cifar-network"):
        wide_resnet(16, 2, weights=saved(tmp_path, published("wrn_deepmind_swish")[1]))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet18", 11.17),
        ("resnet50", 23.52),
        ("preact-resnet18", 11.17),
        ("mobilenetv2", 2.30),
        ("shufflenetv2", 1.26),
        ("wrn-28-10", 36.48),
    ],
)
def test_network_without_weights_has_published_size(name, millions):
    with torch.device("meta"):
        network = cifar_network(model=name).network
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)


@pytest.mark.parametrize(
    ("name", "fixture"),
    [
        ("Standard", "wrn_trades"),
        ("Wang2023Better_WRN-28-10", "wrn_deepmind_swish"),
        ("Rebuffi2021Fixing_R18_ddpm", "deepmind_preact_resnet18"),
        ("Andriushchenko2020Understanding", "robustbench_preact_resnet18"),
    ],
)
def test_robustbench_name_sets_input_activation_and_shortcuts(tmp_path, name, fixture):
    told, state = published(fixture)
    model = robustbench(name, saved(tmp_path, state))
    assert answers_as_published(model, told)
    assert model.reported is not None
    assert model.reported.accuracy == ACCURACY["cifar10", "Linf"][name] / 100
    assert model.reported.data == "cifar10"


def test_robustbench_refuses_unknown_name_and_threat(tmp_path):
    with pytest.raises(ValueError, match=r"'Standrad' of cifar10, L2.*'Standard'"):
        robustbench("Standrad", tmp_path / "f.pt", threat="L2")
    with pytest.raises(ValueError, match=r"threat .*Linf, L2.* 'l2'"):
        robustbench("Standard", tmp_path / "f.pt", threat="l2")  # pyright: ignore[reportArgumentType]


def test_load_classifier_accepts_names_of_specs(tmp_path):
    told, state = published("kuangliu_resnet18")
    file = saved(tmp_path, state)
    model = unfool.load_classifier(file, name="cifar-network", device="cpu")
    assert answers_as_published(model, told)
    assert isinstance(model, nn.Module)
    assert not any(p.requires_grad for p in model.parameters())
    assert unfool.load_classifier("digits-classifier", device="cpu")(X[:, :1, :8, :8]).shape == (
        2,
        10,
    )
    with pytest.raises(ValueError, match="'modelname'"):
        unfool.load_classifier(file, name="cifar-network", modelname="resnet18")
    with pytest.raises(ValueError, match="weights"):
        unfool.load_classifier()


@pytest.mark.skipif(
    not (os.environ.get("UNFOOL_DATA") and os.environ.get("UNFOOL_WEIGHTS")),
    reason="needs CIFAR-10 in UNFOOL_DATA and resnet20*, resnet56* in UNFOOL_WEIGHTS",
)
@pytest.mark.parametrize(("name", "accuracy"), [("resnet20", 0.917), ("resnet56", 0.934)])
def test_real_weights_reach_published_accuracy(name, accuracy):
    file = next(Path(os.environ["UNFOOL_WEIGHTS"]).rglob(f"{name}*"))
    model, data = cifar_network(weights=file).eval(), cifar10(Path(os.environ["UNFOOL_DATA"]))
    x, y = fetch(data, range(1000))
    with torch.no_grad():
        right = (model(x).argmax(1) == y).float().mean()
    assert float(right) == pytest.approx(accuracy, abs=0.02)


@pytest.mark.skipif(
    not (os.environ.get("UNFOOL_DATA") and os.environ.get("UNFOOL_WEIGHTS")),
    reason="needs CIFAR-10 in UNFOOL_DATA and resnet20-12fca82f.th in UNFOOL_WEIGHTS",
)
@pytest.mark.parametrize(("mean", "std"), [([0.0], [1.0]), ([0.5], [0.5])])
def test_real_weights_with_wrong_mean_and_std_raise_a_doubt(elsewhere, capsys, mean, std):
    home = Path(os.environ["UNFOOL_WEIGHTS"])
    file = next(home.rglob("resnet20-12fca82f.th"))
    (elsewhere / "a.yaml").write_text(
        "data: cifar10\nthreat: {norm: linf, eps: 8/255}\nattacks: []\n"
        f"classifier: {{name: cifar-network, weights: {file}, mean: {mean}, std: {std}}}\n"
        "evaluation: {images: 1000, draws: 1}\n"
    )
    assert run(["evaluate", "a.yaml", "--out", "run", "--data", str(DATA)]) == 0
    told = capsys.readouterr()
    assert "red doubt less-than-stated" in " ".join(told.out.split())
    assert "states 91.7 %" in told.out
    assert "far from those of such weights (mean 0.485 0.456 0.406" in told.err


def test_mean_and_std_far_from_usual_values_print_a_warning(tmp_path, capsys):
    torch.save(WideResNet(1, 1, 10, 0.0).state_dict(), tmp_path / "a.pt")
    cifar_network(weights=tmp_path / "a.pt")
    cifar_network(weights=tmp_path / "a.pt", mean=[0.1], std=[0.9])
    assert not capsys.readouterr().err
    cifar_network(weights=tmp_path / "a.pt", std=[0.25])
    told = capsys.readouterr().err
    assert "a.pt: the given mean 0 and std 0.25 are far from" in told


def test_large_file_is_not_held_in_memory_twice(tmp_path):
    network = WideResNet(blocks=1, width=24, classes=10, dropout=0.0)
    path = tmp_path / "a.pt"
    torch.save(network.state_dict(), path)
    code = (
        "import resource, sys, torch, unfool\n"
        "from unfool.models.build import cifar_network\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "model = cifar_network(weights=sys.argv[1]).requires_grad_(False)\n"
        "for value in model.parameters(): value.sum()\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    told = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True)
    assert path.stat().st_size > 40 << 20
    assert int(told.stdout) < 1.5 * path.stat().st_size
