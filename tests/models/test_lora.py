"""LoRA adapters: they start at zero, train beside frozen weights, and use the layout of diffusers."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import dit, stable_diffusion
from torch import nn

from stopped_training import stopped
from unfool import spec as specs
from unfool.defenses.diffusion_classifier.classifier import DiffusionClassifier
from unfool.errors import SpecError
from unfool.evaluation import run as evaluation
from unfool.evaluation.prepare import prepare
from unfool.models import card, lora
from unfool.models.unet import unet
from unfool.noise import Noise
from unfool.runtime.files import ADAPTER
from unfool.spec import Part
from unfool.training import run as training
from unfool.training.spec import check

NOISE = Noise.of(0, range(3))
X = NOISE.uniform(torch.empty(3, 1, 4, 4))
RGB = NOISE.uniform(torch.empty(3, 3, 8, 8))
BASE = {
    "name": "unet", "channels": 1, "size": 4, "widths": [8, 8], "groups": 4, "attention": [1],
    "classes": 2,
}  # fmt: skip
SPEC = {
    "data": {"name": "blobs", "size": 32},
    "denoiser": {"name": "trained", "weights": "base"},
    "objective": {"name": "denoising", "t_max": 0.5},
    "training": {
        "steps": 8, "batch_size": 8, "warmup": 2,
        "learning_rate": 3e-2, "ema_decay": 0, "lora": {"rank": 2}
    },
    "machine": {"save_every": 3},
}  # fmt: skip


def made(attention=(1,), seed=0):
    options = {key: value for key, value in BASE.items() if key != "name"}
    model = unet(**options | {"attention": attention})
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2, generator=generator)
    return model.eval().requires_grad_(False)


def learned(model, seed=1):
    """Set all weights of the adapter to random nonzero values, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.3, generator=generator)
    return model


@torch.no_grad()
def logits(denoiser, x=X):
    return DiffusionClassifier(denoiser, draws=4)(x, NOISE)


@pytest.fixture
def base(elsewhere):
    """Save a denoiser with its card in the folder `base`."""
    card.save(Path("base"), "denoiser", specs.check("denoiser", BASE), made())
    return Path("base")


@pytest.mark.parametrize("layers", [None, "convolutions"])
def test_new_adapter_does_not_change_logits(layers):
    plain, model = made(), made()
    lora.add(model, layers=layers)
    assert torch.equal(logits(model), logits(plain))
    assert torch.equal(logits(lora.merged(model)), logits(plain))
    assert {n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }


def test_new_adapter_does_not_change_logits_of_stable_diffusion(elsewhere):
    stable_diffusion(Path("sd"))
    plain, model = (
        specs.build("denoiser", {"name": "stable-diffusion", "weights": "sd"}) for _ in "ab"
    )
    lora.add(model)
    assert torch.equal(logits(model, RGB), logits(plain, RGB))
    assert not torch.equal(logits(learned(model), RGB), logits(plain, RGB))


def test_adapter_is_added_to_requested_layers():
    names = lora.add(made())
    assert {name.rsplit(".", 1)[1] for name in names} == {"to_q", "to_k", "to_v", "to_out"}
    assert len(names) == 16, "a way down, the middle, two on the way up"
    without = made(attention=())
    found = [
        n for n, m in lora.adapted_network(without).named_modules() if isinstance(m, nn.Conv2d)
    ]
    assert lora.add(without) == found
    assert lora.add(made(), layers=["conv_in", "attention.to_q"])[0] == "conv_in"
    with pytest.raises(ValueError, match=r"'to_z'.* conv_in"):
        lora.add(made(), layers=["to_q", "to_z"])
    with pytest.raises(ValueError, match="no attention layers"):
        lora.add(made(attention=()), layers="attention")
    with pytest.raises(ValueError, match="rank must be 1 or more, not"):
        lora.add(made(), rank=0)
    model = made()
    lora.add(model)
    with pytest.raises(ValueError, match="already has an adapter"):
        lora.add(model)


def test_dropout_applies_only_to_adapter_in_training_mode(base):
    model = made()
    lora.add(model, dropout=0.5)
    learned(model)
    plain = made()
    lora.add(plain)
    assert torch.equal(logits(model), logits(learned(plain))), "none in use"
    torch.manual_seed(0)  # noqa: TID251
    assert not torch.equal(logits(model.train()), logits(plain))
    assert torch.equal(logits(lora.merged(model).eval()), logits(lora.merged(plain)))
    for share in (0, 0.5):
        asked = started(steps=1, lora=f"{{rank: 2, dropout: {share}}}")
        training.run(asked, Path(f"run{share}"), quiet=True)
    first, second = ((Path(f"run{share}") / ADAPTER).read_bytes() for share in (0, 0.5))
    assert first != second
    with pytest.raises(ValueError, match=r"from 0 to below 1, not -0\.1"):
        lora.add(made(), dropout=-0.1)


def test_dropout_is_zero_by_default(base):
    asked, none = (
        started(lora=said)["training"]["lora"] for said in ("{rank: 2}", "{rank: 2, dropout: 0}")
    )
    assert asked == none == {"rank": 2, "alpha": None, "layers": None, "dropout": 0}


def test_layer_names_are_matched_in_full():
    """The name `block.proj` does not select `proj` at the root, although both end alike."""
    inner = nn.Sequential()
    inner.add_module("proj", nn.Linear(2, 2))
    model = nn.Sequential()
    model.add_module("proj", nn.Linear(2, 2))
    model.add_module("block", inner)
    assert lora.add(model, layers=["block.proj"]) == ["block.proj"]
    assert isinstance(model.proj, nn.Linear)
    assert not isinstance(inner.proj, nn.Linear)


def test_adapter_of_stable_diffusion_2_has_published_size():
    """The release has 829,952 weights at rank 4, on queries, keys, values, and outputs."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),  # pyright: ignore[reportArgumentType]
            use_linear_projection=True,
        )
        lora.add(network, rank=4)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 829_952


@pytest.mark.parametrize("layers", [None, "convolutions"])
def test_loaded_adapter_gives_logits_of_saved_adapter(elsewhere, layers):
    model = made()
    lora.add(model, rank=2, alpha=3.0, layers=layers)
    before = logits(learned(model))
    Path(ADAPTER).write_bytes(lora.save(model))
    assert not torch.allclose(before, logits(made()), rtol=1e-3)
    loaded = made()
    lora.load(loaded, Path(ADAPTER))
    assert torch.allclose(logits(loaded), before, rtol=1e-4)
    assert loaded.state_dict().keys() == made().state_dict().keys(), "a plain network again"
    assert torch.equal(logits(lora.merged(model)), logits(loaded))


def test_adapter_files_are_exchanged_with_diffusers(elsewhere):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    def network():
        torch.manual_seed(0)  # noqa: TID251
        return UNet2DConditionModel(
            sample_size=4, in_channels=1, out_channels=1, layers_per_block=1, cross_attention_dim=8,
            block_out_channels=(8, 8), norm_num_groups=4, attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ).eval()  # fmt: skip

    def said(network):
        with torch.no_grad():
            return network(X, 500, torch.ones(3, 2, 8)).sample

    ours = network()
    lora.add(ours, rank=2, alpha=3.0)
    learned(ours)
    Path(ADAPTER).write_bytes(lora.save(ours))
    state = load_file(ADAPTER)
    assert all(name.startswith("unet.") for name in state)
    theirs = network()
    theirs.load_lora_adapter(str(Path.cwd()), weight_name=ADAPTER, prefix="unet")
    assert torch.allclose(said(theirs), said(ours), atol=1e-6)
    assert not torch.allclose(said(theirs), said(network()), atol=1e-3)
    old = {
        n.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for n, v in state.items()
    }
    with_alpha = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 3.0})}
    save_file(old, "old.safetensors", with_alpha)
    read = network()
    lora.load(read, Path("old.safetensors"))
    assert torch.allclose(said(read), said(ours), atol=1e-6)


def test_transformer_adapter_is_saved_with_its_prefix_and_alpha(elsewhere):
    """The prefix is that of diffusers for this part of a pipeline; loading restores `alpha`."""

    def model():
        return specs.build("denoiser", {"name": "dit", "weights": "dit"})

    dit(Path("dit"))
    ours = model()
    lora.add(ours, rank=2, alpha=3.0)
    learned(ours)
    Path(ADAPTER).write_bytes(lora.save(ours))
    assert all(name.startswith("transformer.") for name in load_file(ADAPTER))
    read, x = model(), NOISE.uniform(torch.empty(3, 3, 8, 8))
    begun = DiffusionClassifier(model(), draws=1)(x, NOISE)
    lora.load(read, Path(ADAPTER))
    found, wanted = (DiffusionClassifier(m, draws=1)(x, NOISE) for m in (read, ours))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, begun, rtol=1e-2)


def test_adapter_for_another_model_is_refused(elsewhere):
    model = made()
    names = lora.add(model)
    told = lora.base_weights_hash(model)
    assert told == lora.base_weights_hash(made(), names)
    Path(ADAPTER).write_bytes(lora.save(learned(model)))
    lora.load(made(), Path(ADAPTER), told)
    with pytest.raises(ValueError, match="another model: the base weights"):
        lora.load(made(seed=5), Path(ADAPTER), told)
    with pytest.raises(ValueError, match="another model: this one has no layer"):
        lora.load(made(attention=()), Path(ADAPTER))
    options: dict[str, Any] = {k: v for k, v in BASE.items() if k != "name"}
    options["widths"] = [8, 16]
    wide = unet(**options)
    with pytest.raises(ValueError, match="another model: a layer has another size"):
        lora.load(wide, Path(ADAPTER))
    save_file({"weight": torch.ones(1)}, "other.safetensors")
    with pytest.raises(ValueError, match=r"adapter .*holds weight"):
        lora.load(made(), Path("other.safetensors"))
    state = load_file(ADAPTER)
    gone = next(name for name in state if ".lora_B." in name)
    save_file({k: v for k, v in state.items() if k != gone}, "other.safetensors")
    with pytest.raises(ValueError, match=f"it lacks {gone[5:]}"):
        lora.load(made(), Path("other.safetensors"))
    with pytest.raises(FileNotFoundError, match="no file none"):
        lora.load(made(), Path("none.safetensors"))


def started(**changes):
    return check(specs.load(SPEC, [f"training.{k}={v}" for k, v in changes.items()]))


@pytest.mark.parametrize("merged", [True, False])
def test_training_changes_only_adapted_layers(base, monkeypatch, merged):
    if not merged:
        monkeypatch.setattr(card, "MERGED", 0)
    folder = training.run(started(save_steps=[4]), Path("run"), quiet=True)
    begun, ended = card.trained_denoiser("base"), card.trained_denoiser("run")
    names = lora.add(card.trained_denoiser("base"))
    for name, value in ended.state_dict().items():
        layer = name.removeprefix("network.").removesuffix(".weight")
        assert torch.equal(value, begun.state_dict()[name]) is not (layer in names), name
    assert (folder / ADAPTER).is_file()
    assert (folder / "model.safetensors").is_file() is merged
    checkpoint = torch.load(folder / "latest.pt", weights_only=True)
    assert all(".lora_" in name for name in checkpoint["now"])
    alone = card.trained_denoiser("base")
    lora.load(alone, folder / ADAPTER)
    assert torch.equal(logits(alone), logits(ended))
    assert not torch.equal(logits(card.trained_denoiser("run/steps/4")), logits(ended))
    assert not any(weight.requires_grad for weight in ended.parameters())
    told = card.read_card("run")[1]
    assert ("base" in told) is not merged
    asked = specs.identity({"weights": "run"})
    (folder / "card.json").write_text(json.dumps(told | {"step": 7}))
    assert specs.identity({"weights": "run"}) != asked


def test_adapter_is_refused_when_its_base_has_changed(base, monkeypatch):
    monkeypatch.setattr(card, "MERGED", 0)
    training.run(started(steps=1), Path("run"), quiet=True)
    card.save(base, "denoiser", specs.check("denoiser", BASE), made(seed=9))
    with pytest.raises(ValueError, match="base weights have changed"):
        card.trained_denoiser("run")
    (base / "card.json").unlink()
    with pytest.raises(ValueError, match="no folder 'base'"):
        card.trained_denoiser("run")


def test_training_can_start_from_an_adapted_model(base):
    training.run(started(steps=1), Path("one"), quiet=True)
    again = specs.load(SPEC, ["denoiser.weights=one", "training.steps=1"])
    training.run(check(again), Path("two"), quiet=True)
    told = card.read_card("two")[1]
    assert told["part"]["name"] == "unet"
    assert told["began_as"] == "one"
    assert torch.isfinite(logits(card.trained_denoiser("two"))).all()


def test_latent_model_is_fine_tuned_against_its_own_classifier(elsewhere, monkeypatch):
    """A tiny Stable Diffusion is attacked, adapted, saved as an adapter, and loaded with its base."""
    stable_diffusion(Path("sd"))
    np.savez("rgb.npz", images=np.full((4, 8, 8, 3), 99, np.uint8), labels=np.array([0, 1, 2, 9]))
    spec = {
        "data": {"name": "arrays", "path": "rgb.npz"},
        "denoiser": {"name": "stable-diffusion", "weights": "sd", "prompts": "cifar10"},
        "objective": {
            "name": "truth-maximization",
            "source": {"name": "diffusion", "draws": 1},
            "attack": {"name": "pgd", "steps": 1},
            "t_max": 0.5,
        },
        "training": {
            "steps": 2,
            "batch_size": 2,
            "learning_rate": 0.05,
            "warmup": 1,
            "ema_decay": 0,
        },
    }
    spec["training"]["lora"] = {"rank": 2}
    monkeypatch.setattr(card, "MERGED", 0)
    kept, save = [], card.save_adapter

    def watched(folder, part, model, **facts):
        kept.append(model)
        return save(folder, part, model, **facts)

    monkeypatch.setattr(card, "save_adapter", watched)
    training.run(check(specs.load(spec)), Path("run"), quiet=True)
    names = load_file(Path("run") / ADAPTER)
    assert any(name.endswith("attn2.to_k.lora_A.weight") for name in names)
    assert all(name.startswith(("unet.down", "unet.mid", "unet.up")) for name in names)
    begun, ended = specs.build("denoiser", spec["denoiser"]), card.trained_denoiser("run")
    changed = [
        name
        for name, value in ended.state_dict().items()
        if not torch.equal(value, begun.state_dict()[name])
    ]
    in_memory = logits(kept[-1], RGB)
    torch.testing.assert_close(logits(ended, RGB), in_memory, rtol=1e-4, atol=1e-3)
    assert torch.equal(logits(ended, RGB), logits(lora.merged(kept[-1]), RGB))
    assert float((logits(begun, RGB) - in_memory).abs().max()) > 1
    assert changed
    assert all(".to_" in name for name in changed), "neither the autoencoder nor anything else"


def test_adapter_is_merged_before_rounding_to_bfloat16(elsewhere):
    """The change is far below the resolution of bfloat16, but it is kept on average over weights."""
    stable_diffusion(Path("sd"))
    asked = {"name": "stable-diffusion", "weights": "sd", "precision": "bfloat16"}
    part = specs.check("denoiser", asked)
    model = specs.build("denoiser", part)
    layers = lora.add(model, rank=1, layers=["conv1"])
    host = lora.adapted_network(model)
    for name in layers:
        layer: Any = host.get_submodule(name)
        ways = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        assert {way.dtype for way in ways} == {torch.float32}
        for way in ways:
            nn.init.constant_(way, 2e-4**0.5)
    card.save_adapter(Path("run"), part, model)
    assert not (Path("run") / "model.safetensors").exists()
    loaded = card.trained_denoiser("run")
    network: Any = loaded.network
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert network.texts.dtype == torch.bfloat16
    whole = lora.adapted_network(specs.build("denoiser", {**part, "precision": "float32"}))

    def weight(host: nn.Module, name: str) -> torch.Tensor:
        return host.get_parameter(f"{name}.weight").float().flatten()

    gained = torch.cat([weight(lora.adapted_network(loaded), n) - weight(whole, n) for n in layers])
    assert len(gained) > 1000
    assert float(gained.mean()) == pytest.approx(2e-4, rel=0.3)
    other = card.read_card("run")[1] | {"base": "0"}
    (Path("run") / "card.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="base weights have changed"):
        card.trained_denoiser("run")


@pytest.mark.parametrize("kind", [stable_diffusion, dit])
def test_latent_model_accepts_adapter_file_without_card(elsewhere, kind):
    part = {"name": kind.__name__.replace("_", "-"), "weights": str(kind(Path("model")))}

    def model(**options):
        return specs.build("denoiser", specs.check("denoiser", part | options))

    ours = model()
    lora.add(ours, rank=2, alpha=3.0)
    learned(ours)
    Path("published.safetensors").write_bytes(lora.save(ours))
    read = model(adapter="published.safetensors")
    assert torch.equal(logits(read, RGB), logits(lora.merged(ours), RGB))
    assert not torch.allclose(logits(read, RGB), logits(model(), RGB), rtol=1e-2)
    assert not any(weight.requires_grad for weight in read.parameters())
    half = model(adapter="published.safetensors", precision="bfloat16")
    rounded = {n: p.bfloat16() for n, p in read.network.state_dict().items()}
    torch.testing.assert_close(half.network.state_dict(), rounded, rtol=0, atol=0)


def test_invalid_adapter_file_is_refused(elsewhere, monkeypatch):
    stable_diffusion(Path("sd"))
    other = made()
    lora.add(other)
    Path("other.safetensors").write_bytes(lora.save(learned(other)))
    save_file({"weight": torch.ones(1)}, "weights.safetensors")
    Path("text.safetensors").write_text("not found")
    for name, said in (
        ("none", "stable-diffusion: there is no file none.safetensors"),
        ("weights", "weights.safetensors .*LoRA adapter.* holds weight"),
        ("text", "text.safetensors is text .* 'not found'"),
        ("other", "other.safetensors is an adapter for another model: "),
    ):
        wrong: Part = {
            "name": "stable-diffusion",
            "weights": "sd",
            "adapter": f"{name}.safetensors",
        }
        with pytest.raises(SpecError, match=said):
            specs.build("denoiser", specs.check("denoiser", wrong))
    right = specs.build("denoiser", {"name": "stable-diffusion", "weights": "sd"})
    lora.add(right)
    Path("right.safetensors").write_bytes(lora.save(right))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SpecError, match=r"peft.* 'unfool\[lora\]'"):
        specs.build("denoiser", {**wrong, "adapter": "right.safetensors"})


def test_training_half_precision_weights_is_refused(elsewhere):
    stable_diffusion(Path("sd"))
    half = {"name": "stable-diffusion", "weights": "sd", "precision": "float16"}
    changes = [f"denoiser={json.dumps(half)}", "training.lora=null"]
    with pytest.raises(SpecError, match=r"weights .*float16"):
        check(specs.load(SPEC, changes))
    check(specs.load(SPEC, changes[:1]))
    part = specs.check("denoiser", half)
    model = specs.build("denoiser", part)
    lora.add(model)
    card.save_adapter(Path("base"), part, model)
    with pytest.raises(SpecError, match="weights are in float16"):
        check(specs.load(SPEC))


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_class_without_prompt_is_refused(elsewhere, lora):
    stable_diffusion(Path("sd"))
    rows = [f"a {name},{name},{k}" for k, name in enumerate("abcdefghi")]
    Path("nine.csv").write_text("\n".join(["prompt,classname,classidx", *rows]))
    np.savez("ten.npz", images=np.full((4, 8, 8, 3), 99, np.uint8), labels=np.array([0, 1, 2, 9]))
    denoiser = {"name": "stable-diffusion", "weights": "sd", "prompts": "nine.csv"}
    spec = {
        "data": {"name": "arrays", "path": "ten.npz"},
        "denoiser": denoiser,
        "objective": {"name": "denoising", "t_max": 0.5},
        "training": {"steps": 1, "batch_size": 2, "lora": lora},
    }
    with pytest.raises(SpecError, match=r"10 classes.* 9.*nine\.csv"):
        training.run(check(specs.load(spec)), Path("run"), quiet=True)
    judged = {
        "data": spec["data"],
        "classifier": {"name": "diffusion", "denoiser": denoiser, "draws": 1},
        "threat": {"norm": "linf", "eps": 0.1},
        "attacks": [],
    }
    with pytest.raises(SpecError, match=r"\(1, 9\), .* 10 classes.* prompts"):
        prepare(evaluation.check(specs.load(judged)))


def test_pixel_denoiser_with_too_few_classes_is_refused(base):
    small = [f"denoiser={json.dumps(BASE | {'classes': 1})}"]
    spec = specs.load(SPEC, [*small, "training.lora=null", "training.steps=1"])
    with pytest.raises(SpecError, match=r"2 classes.*'bright'.* 1"):
        training.run(check(spec), Path("run"), quiet=True)


def test_resumed_training_ends_with_the_same_bits(base):
    whole = training.run(started(), Path("whole"), quiet=True)
    folder = stopped(started(), Path("killed"), 6)  # after the checkpoint of step 3
    resumed = training.run(started(), folder, quiet=True)
    assert (resumed / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["denoiser={name: unet, classes: 2}"], "lora fine-tunes a trained denoiser"),
        (["training.save_half=true"], "round away"),
        (["training.lora.ranks=3"], "did you mean 'rank'"),
        (["training.lora.rank=many"], "rank"),
        (["training.lora.dropout=1"], "lora.dropout must be from 0 to below 1, not 1"),
    ],
)
def test_invalid_lora_specs_are_refused(base, changes, said):
    with pytest.raises(SpecError, match=said):
        check(specs.load(SPEC, changes))
