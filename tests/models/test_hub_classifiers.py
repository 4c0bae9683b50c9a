"""Classifiers from timm, transformers, and torchvision, if these libraries are installed."""

import json
from pathlib import Path

import pytest
import torch

import unfool
from unfool import spec as specs
from unfool.compatibility import check_fit
from unfool.models.hub_classifiers import (
    timm_classifier,
    torchvision_classifier,
    transformers_classifier,
)
from unfool.noise import Noise, seed_torch
from unfool.spec.identity import identity

X = Noise.of(0, range(2)).normal(torch.empty(2, 3, 32, 32)).sigmoid()
PREPROCESSOR = {
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
    "size": {"height": 16, "width": 16},
}


@pytest.fixture
def vit(tmp_path):
    """Save a small vision transformer. Return its folder and its network."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    seed_torch(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        id2label={0: "cat", 1: "dog", 2: "frog"},
        label2id={"cat": 0, "dog": 1, "frog": 2},
    )
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return tmp_path / "vit", network


def test_transformers_folder_is_loaded_with_its_own_normalization(vit):
    folder, network = vit
    model = unfool.load_classifier(folder, name="transformers", device="cpu")
    x = X[:, :, :16, :16]
    mean, std = (torch.tensor(PREPROCESSOR[f"image_{k}"]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(model(x), network((x - mean) / std).logits, atol=1e-6)
        assert model(X).shape == (2, 3)
    assert getattr(model, "class_names", None) == ["cat", "dog", "frog"]
    x = X.clone().requires_grad_()
    assert torch.autograd.grad(model(x).sum(), x)[0].abs().sum() > 0


def test_identity_of_folder_depends_on_contents_not_path(vit):
    folder, _ = vit
    spec = {"classifier": {"name": "transformers", "weights": str(folder)}}
    before = identity(spec)
    moved = folder.rename(folder.with_name("moved"))
    spec["classifier"]["weights"] = str(moved)
    assert identity(spec) == before
    (moved / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | {"size": 8}))
    assert identity(spec) != before


def test_reordered_classes_are_refused_and_labels_correct_them(vit):
    folder, _ = vit
    data = unfool.data.Arrays(X, torch.tensor([0, 1]), ("dog", "Frog", "cat"))
    model = transformers_classifier(folder).eval()
    with pytest.raises(specs.SpecError, match=r"'cat'.*'dog'.*labels: \[1, 2, 0\]"):
        check_fit(model, data, [0], "cpu")
    mended = transformers_classifier(folder, labels=[1, 2, 0]).eval()
    check_fit(mended, data, [0], "cpu")
    with torch.no_grad():
        assert torch.equal(mended(X), model(X)[:, [1, 2, 0]])


def test_incomplete_transformers_folder_is_refused(vit, tmp_path):
    folder, network = vit
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        transformers_classifier(folder)
    assert transformers_classifier(folder, mean=[0.5], std=[0.5], size=16)(X).shape == (2, 3)
    with pytest.raises(FileNotFoundError, match=r"config\.json in .*nowhere"):
        transformers_classifier(tmp_path / "nowhere")
    network.vit.save_pretrained(folder)  # a backbone without a classifier
    with pytest.raises(ValueError, match=r"2 are missing \(classifier\.bias"):
        transformers_classifier(folder, mean=[0.5], std=[0.5])


def test_timm_model_takes_input_from_timm_and_classes_from_file(tmp_path):
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet18", num_classes=7).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "f.pt")
    model = timm_classifier("resnet18", str(tmp_path / "f.pt")).eval()
    told = network.pretrained_cfg
    assert model.size == told["input_size"][1:]
    x = torch.nn.functional.interpolate(X, (224, 224))
    mean, std = (torch.tensor(told[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(model(x), network((x - mean) / std), atol=1e-5)
    with pytest.raises(ValueError, match=r"no model 'resnet180'.*resnet18"):
        timm_classifier("resnet180")


def test_torchvision_model_takes_size_from_torchvision(tmp_path):
    models = pytest.importorskip("torchvision.models")
    network = models.resnet18(num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / "f.pt")
    model = torchvision_classifier("resnet18", str(tmp_path / "f.pt")).eval()
    assert model.size == (224, 224)
    assert model(X).shape == (2, 7)
    with pytest.raises(ValueError, match="no model 'resnet180'"):
        torchvision_classifier("resnet180")


@pytest.mark.parametrize(
    ("make", "library", "advice"),
    [
        (timm_classifier, "timm", r"pip install 'unfool\[hub\]'"),
        (torchvision_classifier, "torchvision", "built for your torch"),
    ],
)
def test_missing_library_is_refused_with_install_advice(make, library, advice, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ValueError, match=f"{library}.*{advice}"):
        make("resnet18", str(Path("anything.pt")))
