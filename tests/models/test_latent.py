"""Latent models: outputs against diffusers and formulas, exact gradients, folders, and prompts."""

import csv
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from unfool import spec as specs
from unfool.cli.main import run
from unfool.data import cifar
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.diffusion_classifier.classifier import DiffusionClassifier
from unfool.defenses.resized import Resized
from unfool.diffusion.latent_space import square
from unfool.diffusion.schedule import Discrete
from unfool.models.latent import dit, stable_diffusion
from unfool.models.prompts import read_prompts
from unfool.noise import Noise

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("latent")
    return {"sd": tiny.stable_diffusion(home / "sd"), "dit": tiny.dit(home / "dit")}


@pytest.fixture
def table(tmp_path):
    """Return a function that writes a table of prompts."""

    def write(rows, head=("prompt", "classname", "classidx")):
        with (tmp_path / "prompts.csv").open("w", newline="") as file:
            csv.writer(file).writerows([head, *rows])
        return str(tmp_path / "prompts.csv")

    return write


THREE = [("a cat", "cat", 0), ("a dog", "dog", 1), ("some frog", "frog", 2)]


def pictures(size, side=6, seed=0):
    return Noise.of(seed, range(size)).uniform(torch.empty(size, 3, side, side))


def keys(size, seed=1):
    return Noise.of(seed, range(size))


def unet_of(model) -> Any:
    return model.network.unet


def losses_of(logits):
    y = torch.arange(len(logits)) % logits.shape[1]
    return F.cross_entropy(logits, y) + (logits[:, 0] * logits[:, 1]).sum()


# ---- outputs


def test_logits_equal_those_computed_with_diffusers(folders, table):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import CLIPTextModel

    home = folders["sd"]
    model = stable_diffusion(home, table(THREE))
    x, noise = pictures(2, 8), keys(2)
    found = DiffusionClassifier(model, draws=2, loss="l1", scale=1.0)(x, noise)

    unet = UNet2DConditionModel.from_pretrained(home / "unet")
    vae: Any = AutoencoderKL.from_pretrained(home / "vae")
    chain: Any = DDPMScheduler.from_pretrained(home / "scheduler")
    letters = {c: i + 1 for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}
    start, end = 53, 54  # the last letter of a word has its own ID; "!" (ID 0) is the padding
    ids = []
    for text, _, _ in THREE:
        told = [start]
        for word in text.split():
            told += [letters[c] for c in word[:-1]] + [letters[word[-1]] + 26]
        ids.append([*told, end, *[0] * (24 - len(told) - 1)])
    with torch.no_grad():
        texts = CLIPTextModel.from_pretrained(home / "text_encoder")(torch.tensor(ids))[0]
        z = vae.encode(2 * x - 1).latent_dist.mean * 0.18215
        total = torch.zeros(2, 3)
        for k, step in enumerate((250, 750)):
            eps = noise.child("eps", k).normal(z)
            steps = torch.full((2,), step)
            z_t = chain.add_noise(z, eps, steps)
            for c in range(3):
                out = unet(z_t, steps, texts[c].expand(2, -1, -1)).sample
                total[:, c] -= (out - eps).abs().flatten(1).mean(1) / 2
    torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-5)
    assert float(found.std(1).min()) > 1e-3, "the classes differ"


def test_dit_maps_labels_to_class_numbers_and_drops_variance(folders):
    model = dit(folders["dit"], labels=[4, 1])
    assert (model.classes, model.shape) == (2, (3, 8, 8))
    z, t = keys(2).normal(torch.empty(2, 4, 4, 4)), torch.tensor(0.301).double()
    network: Any = model.network
    inner = network.transformer
    for label, number in ((0, 4), (1, 1), (None, 6)):
        found = model.predict(z, t, None if label is None else torch.full((2,), label))
        told = inner(z, torch.full((2,), 300), torch.full((2,), number)).sample
        torch.testing.assert_close(found, told[:, :4])


def test_dit_drops_no_labels_in_training_mode(folders):
    model = dit(folders["dit"]).train()
    z, t = keys(32).normal(torch.empty(32, 4, 4, 4)), torch.tensor(0.5).double()
    label = torch.full((32,), 2)
    torch.testing.assert_close(model(z, t, label), model.eval()(z, t, label))


def test_discrete_schedule_equals_diffusers_scheduler():
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ours = Discrete(1000, "scaled_linear", 0.85, 12.0).abar[1:]
    torch.testing.assert_close(ours, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-6)


def test_velocity_prediction_gives_same_logits_as_noise_prediction(folders, tmp_path):
    class Velocity(nn.Module):
        def __init__(self, inner, schedule):
            super().__init__()
            self.inner, self.schedule = inner, schedule

        def forward(self, x, time, label):
            _, alpha, sigma, _ = self.schedule(((time + 1) / 1000)[:, None, None, None])
            return (self.inner(x, time, label) - sigma * x) / alpha

    other = tmp_path / "v"
    shutil.copytree(folders["sd"], other)
    path = other / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text()) | {"prediction_type": "v_prediction"}
    path.write_text(json.dumps(settings))
    noise, velocity = stable_diffusion(folders["sd"]).double(), stable_diffusion(other).double()
    assert (noise.predicts, velocity.predicts) == ("noise", "velocity")
    velocity.network = Velocity(velocity.network, velocity.schedule)
    x = pictures(2).double()
    one, two = (DiffusionClassifier(m, draws=4, scale=1.0)(x, keys(2)) for m in (noise, velocity))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)
    assert stable_diffusion(other, predicts="noise").predicts == "noise"


def test_images_are_resized_like_pillow_and_center_cropped():
    for size in (5, 20):
        x = pictures(1, 9)[:, :1]
        theirs = Image.fromarray(x[0, 0].numpy()).resize((size, size), Image.Resampling.BICUBIC)
        torch.testing.assert_close(square(x, size)[0, 0], torch.tensor(np.array(theirs)))
    wide = torch.arange(12.0).expand(1, 3, 6, 12)
    assert square(wide, 6)[0, 0, 0].tolist() == [3, 4, 5, 6, 7, 8]
    assert square(wide, 3).shape == (1, 3, 3, 3)


# ---- prompts


def test_class_error_is_the_mean_over_its_prompts(folders, table):
    rows = [*THREE, ("the dog", "dog", 1), ("my dog", "dog", 1), ("one frog", "frog", 2)]
    model = stable_diffusion(folders["sd"], table(rows)).double()
    assert (model.classes, model.wordings) == (3, (1, 3, 2))
    singles = [("a cat", 0, 0), ("a dog", 0, 1), ("the dog", 0, 2), ("my dog", 0, 3)]
    singles += [("some frog", 0, 4), ("one frog", 0, 5)]
    alone = stable_diffusion(folders["sd"], table([(p, p, k) for p, _, k in singles])).double()
    x, found, wanted = pictures(2).double(), [], []
    for rows_ in (4, 1000):  # a small batch splits the prompts of a class
        x_ = x.clone().requires_grad_()
        logits = DiffusionClassifier(model, draws=3, batch_size=rows_, scale=1.0)(x_, keys(2))
        found.append((logits, *torch.autograd.grad(losses_of(logits), x_)))
    x_ = x.clone().requires_grad_()
    six = DiffusionClassifier(alone, draws=3, batch_size=100, scale=1.0)(x_, keys(2))
    logits = torch.stack((six[:, 0], six[:, 1:4].mean(1), six[:, 4:].mean(1)), 1)
    wanted = (logits, *torch.autograd.grad(losses_of(logits), x_))
    for pair in found:
        for one, other in zip(pair, wanted, strict=True):
            torch.testing.assert_close(one, other)
    rows_seen = []
    model.register_forward_hook(lambda module, inputs, out: rows_seen.append(len(out)))
    DiffusionClassifier(model, draws=20, elimination="paired", risk=0.5)(x, keys(2))
    assert sum(rows_seen) >= 2 * 6 * 16


def test_prompts_are_read_and_invalid_tables_are_refused(table):
    assert read_prompts("cifar10") == [[f"a blurry photo of a {name}."] for name in cifar.CLASSES]
    told = read_prompts(table(THREE), ["a blurry photo of a {class}.", "one {class}"])
    assert told[2] == ["a blurry photo of a frog.", "one frog"]
    for rows, said in (
        ([THREE[0], THREE[2]], "none for class 1"),
        ([("a cat", "cat", "x")], "line 2"),
        ([("", "cat", 0)], "line 2"),
        ([], "none for class 0"),
    ):
        with pytest.raises(ValueError, match=said):
            read_prompts(table(rows))
    with pytest.raises(ValueError, match="columns prompt, classname, classidx"):
        read_prompts(table(THREE, ("text", "classname", "classidx")))
    with pytest.raises(ValueError, match="there are: cifar10"):
        read_prompts("cifar")
    with pytest.raises(ValueError, match=r"'a photo'"):
        read_prompts("cifar10", ["a photo"])


def test_size_option_resizes_images_and_enlarges_latents(folders):
    """A larger `size` than the model's own: images are resized to it, and the latents grow with it."""
    model = stable_diffusion(folders["sd"], size=16)
    x, noise = pictures(2).requires_grad_(), keys(2)
    z = model.encode(x)
    assert (model.shape, z.shape) == ((3, 16, 16), (2, 4, 8, 8))
    mean = model.vae.encode(2 * square(x, 16) - 1).latent_dist.mean
    torch.testing.assert_close(z, 0.18215 * mean)
    classifier = DiffusionClassifier(model, draws=2, loss="l1", scale=1.0)
    logits, t = classifier(x, noise), classifier.scales.t
    total = torch.zeros_like(logits)
    for k in range(2):
        _, alpha, sigma, _ = (s.to(z) for s in model.schedule(t[k]))
        eps = noise.child("eps", k).normal(z)
        for c in range(model.classes):
            out = model.predict(alpha * z + sigma * eps, t[k], torch.full((2,), c))
            total[:, c] -= (out - eps).abs().flatten(1).mean(1) / 2
    torch.testing.assert_close(logits, total, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(losses_of(logits), x)
    assert bool((gradient.flatten(1).abs().amax(1) > 0).all())


# ---- gradients and cost


@pytest.mark.parametrize("kind", ["sd", "dit"])
def test_gradient_equals_finite_differences(folders, kind):
    model = {"sd": stable_diffusion, "dit": dit}[kind](folders[kind]).double()
    x, noise = pictures(5).double(), keys(5)  # more than the autoencoder encodes at once
    classifier = DiffusionClassifier(model, draws=4, batch_size=30, scale=1.0)
    x_ = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses_of(classifier(x_, noise)), x_)
    assert bool((gradient.flatten(1).abs().amax(1) > 0).all())
    way = keys(5, 3).normal(x)
    with torch.no_grad():
        above, below = (losses_of(classifier(x + h * way, noise)) for h in (1e-5, -1e-5))
    assert float((gradient * way).sum()) == pytest.approx(float((above - below) / 2e-5), rel=1e-6)


def test_gradient_through_encoder_equals_plain_autograd(folders, table):
    model = stable_diffusion(folders["sd"], table(THREE)).double()
    x, noise = pictures(2).double().requires_grad_(), keys(2)
    classifier = DiffusionClassifier(model, draws=3, batch_size=7, scale=1.0)
    (found,) = torch.autograd.grad(losses_of(classifier(x, noise)), x)
    z = 0.18215 * model.vae.encode(2 * square(x, 8) - 1).latent_dist.mean
    errors = classifier.errors(noise.child("eps"))
    table_ = errors.at(z, torch.ones(3, 2, 3).nonzero()).view(3, 2, 3)  # draws, images, classes
    (plain,) = torch.autograd.grad(losses_of(-table_.mean(0)), x)
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)
    assert bool((plain.flatten(1).abs().amax(1) > 0).all())


def test_image_is_encoded_once_and_text_encoder_is_not_kept(folders, table):
    model = stable_diffusion(folders["sd"], table(THREE))
    encoded, told = [], []
    model.vae.encoder.register_forward_hook(lambda m, i, out: encoded.append(len(out)))
    unet_of(model).register_forward_hook(lambda m, i, out: told.append(len(out[0])))
    assert not any("text" in name for name, _ in model.named_modules())
    classifier = DiffusionClassifier(model, draws=6, batch_size=16)
    classifier(pictures(3), keys(3))
    assert encoded == [3]
    x = pictures(3).requires_grad_()
    logits = classifier(x, keys(3))
    told.clear()
    (logits[:, 2] - logits[:, 0]).sum().backward()
    assert encoded == [3, 3], "one product through the encoder, whatever the draws and classes"
    assert sum(told) == 3 * 2 * 6, "and two classes of three through the network"
    assert max(told) <= 16
    encoded.clear()
    losses_of(classifier(pictures(6).requires_grad_(), keys(6))).backward()
    assert sum(encoded) == 12, "more images are encoded again on the way back, a few at a time"
    assert max(encoded) == 4


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_applies_to_network_only(folders, precision):
    whole = stable_diffusion(folders["sd"])
    half = stable_diffusion(folders["sd"], precision=precision)
    assert {p.dtype for p in half.network.parameters()} == {getattr(torch, precision)}
    assert {p.dtype for p in half.vae.parameters()} == {torch.float32}
    x, found = pictures(2), []
    for model in (whole, half):
        x_ = x.clone().requires_grad_()
        logits = DiffusionClassifier(model, draws=5, scale=1.0)(x_, keys(2))
        assert logits.dtype == torch.float32
        # scaled far below the range of float16, as a mean over many draws and pixels is
        (gradient,) = torch.autograd.grad(1e-9 * losses_of(logits), x_)
        found.append((logits.detach(), 1e9 * gradient.flatten(1)))
    (logits, gradient), (near, close) = found
    torch.testing.assert_close(near, logits, rtol=2e-2, atol=2e-3)
    assert float(F.cosine_similarity(gradient, close).min()) > 0.98
    torch.testing.assert_close(close.norm(dim=1), gradient.norm(dim=1), rtol=0.1, atol=0)


def test_weight_gradients_are_not_scaled_in_bfloat16(folders):
    model = stable_diffusion(folders["sd"], precision="bfloat16")
    unet_of(model).conv_out.requires_grad_(True)
    whole = stable_diffusion(folders["sd"])
    unet_of(whole).conv_out.requires_grad_(True)
    found = []
    for m in (whole, model):
        x = pictures(2).requires_grad_()
        loss = losses_of(DiffusionClassifier(m, draws=3, scale=1.0)(x, keys(2)))
        found.append(torch.autograd.grad(loss, unet_of(m).conv_out.bias)[0].float())
    torch.testing.assert_close(*found, rtol=0.1, atol=0.02)


# ---- as a purifier


def test_purified_images_keep_input_size(folders):
    model = stable_diffusion(folders["sd"])
    purifier = DiffPure(model, t=0.01, steps=2)
    x = pictures(2, 8)
    assert purifier(x, keys(2)).shape == x.shape
    with torch.no_grad():
        round_trip = model.vae.decode(model.vae.encode(2 * x - 1).latent_dist.mean).sample
    torch.testing.assert_close(model.decode(model.encode(x)), (round_trip + 1) / 2)
    small = pictures(2, 6).requires_grad_()
    out = Resized(purifier)(small, keys(2))
    assert out.shape == small.shape
    out.sum().backward()
    assert small.grad is not None
    assert bool((small.grad.flatten(1).abs().amax(1) > 0).all())


# ---- from a spec


@pytest.fixture
def spec(elsewhere, folders):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 6, 6, 3), np.uint8)
    np.savez("data.npz", images=images, labels=np.array([0, 1, 2, 3]))
    denoiser = {"name": "dit", "weights": str(folders["dit"]), "labels": [3, 2, 5, 0]}
    return {
        "data": {"name": "arrays", "path": "data.npz"},
        "classifier": {"name": "diffusion", "denoiser": denoiser, "draws": 4, "policy": "fixed"},
        "threat": {"norm": "linf", "eps": 8 / 255},
        "attacks": [{"name": "pgd", "view": "no-elimination", "loss": "margin", "steps": 2}],
        "evaluation": {"draws": 1, "examples": 0},
    }


@pytest.mark.parametrize("kind", ["dit", "sd"])
def test_spec_of_latent_model_is_examined_and_evaluated(spec, folders, table, kind, capsys):
    if kind == "sd":
        prompts = table([*THREE, ("a ship", "ship", 3)])
        told = {"name": "stable-diffusion", "weights": str(folders["sd"]), "prompts": prompts}
        spec["classifier"] |= {"denoiser": told, "elimination": "paired"}
    Path("spec.yaml").write_text(json.dumps(spec))
    assert run(["doctor", "spec.yaml"]) == 1  # random weights do not denoise
    out = capsys.readouterr().out
    assert "the gradient reaches every image" in out
    assert run(["evaluate", "spec.yaml", "--out", "out"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    assert report["n"] == 4
    assert report["robust"]["per_draw"]["accuracy"] <= report["clean"]["accuracy"]
    assert report["cost"]["nfe_vjp"] > 0


def test_run_identity_depends_on_weights_not_path(spec, folders, tmp_path):
    def identity(home):
        spec["classifier"]["denoiser"] |= {"weights": str(home)}
        return specs.identity(spec)

    other = tmp_path / "copy"
    shutil.copytree(folders["dit"], other)
    assert identity(other) == identity(folders["dit"])
    path = other / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert identity(other) != identity(folders["dit"])


def test_run_identity_depends_on_adapter_content_not_path(elsewhere, folders):
    spec = {"denoiser": {"name": "dit", "weights": str(folders["dit"]), "adapter": "one"}}
    for name, content in (("one", b"1"), ("other", b"1")):
        Path(name).write_bytes(content)
    asked = specs.identity(spec)
    spec["denoiser"]["adapter"] = "other"
    assert specs.identity(spec) == asked
    Path("other").write_bytes(b"2")
    assert specs.identity(spec) != asked


# ---- files


def test_missing_and_truncated_files_are_named(folders, tmp_path, spec, mistake):
    with pytest.raises(ValueError, match=r"lacks unet/config\.json.* vae"):
        stable_diffusion(tmp_path / "none")
    other = tmp_path / "copy"
    shutil.copytree(folders["dit"], other)
    path = other / "vae" / "diffusion_pytorch_model.safetensors"
    content = path.read_bytes()
    path.unlink()
    spec["classifier"]["denoiser"]["weights"] = str(other)
    Path("spec.yaml").write_text(json.dumps(spec))
    said = mistake("evaluate", "spec.yaml", "--out", "out")
    assert "lacks vae/diffusion_pytorch_model.safetensors" in said
    path.write_bytes(content[: len(content) // 2])
    assert "cannot be read as a AutoencoderKL" in mistake("evaluate", "spec.yaml", "--out", "out")
    with pytest.raises(ValueError, match="labels must be numbers from 0 to 5, not 6"):
        dit(folders["dit"], labels=[0, 6])
    with pytest.raises(ValueError, match="multiple of 2 pixels, not 9"):
        dit(folders["dit"], size=9)


def test_missing_package_is_refused_with_install_advice(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'unfool\[latent\]'"):
        stable_diffusion(folders["sd"])


def test_purifying_images_of_another_size_is_refused(folders, spec, mistake):
    classifier = {"name": "small-cnn", "channels": 3, "size": 6, "classes": 4}
    denoiser = spec["classifier"]["denoiser"]
    purifier = {"name": "diffpure", "t": 0.1, "steps": 2}
    spec |= {"classifier": classifier, "denoiser": denoiser, "purifier": purifier, "attacks": []}
    Path("spec.yaml").write_text(json.dumps(spec))
    said = mistake("evaluate", "spec.yaml", "--out", "out")
    assert "the images are 3 x 6 x 6 and the denoiser was made for 3 x 8 x 8" in said


def test_incomplete_weights_are_refused(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "copy"
    shutil.copytree(folders["dit"], other)
    path = other / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    gone = sorted(state)[3]
    save_file({k: v for k, v in state.items() if k != gone}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 weights .{gone}"):
        dit(other)


def test_files_of_early_releases_are_read(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "old"
    shutil.copytree(folders["sd"], other)
    path = other / "vae" / "diffusion_pytorch_model.safetensors"
    state, renamed = load_file(path), 0
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name in list(state):
        for now, then in old.items():
            if f"attentions.0.{now}." in name:
                state[name.replace(now, then)] = state.pop(name)
                renamed += 1
    assert renamed == 16
    save_file(state, path, {"format": "pt"})
    config = json.loads((other / "vae" / "config.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("scaling_factor", "shift_factor")}
    (other / "vae" / "config.json").write_text(json.dumps(config))
    path = other / "text_encoder" / "model.safetensors"
    state = load_file(path) | {"text_model.embeddings.position_ids": torch.arange(24)[None]}
    save_file(state, path.with_suffix(".fp16.safetensors"), {"format": "pt"})
    path.unlink()
    x, model, same = pictures(2), stable_diffusion(other), stable_diffusion(folders["sd"])
    torch.testing.assert_close(model.encode(x), same.encode(x))
    torch.testing.assert_close(model.network.texts, same.network.texts)


def test_torch_weights_are_read_if_only_they_exist_and_run_no_code(folders, tmp_path):
    from safetensors.torch import load_file

    other = tmp_path / "bin"
    shutil.copytree(folders["sd"], other)
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        path = other / part / f"{name}.safetensors"
        theirs = path.with_name(f"{'pytorch_model' if name == 'model' else name}.bin")
        torch.save(load_file(path), theirs)
        path.unlink()
    model, same = stable_diffusion(other), stable_diffusion(folders["sd"])
    torch.testing.assert_close(model.state_dict(), same.state_dict())
    torch.testing.assert_close(model.network.texts, same.network.texts)
    trap, mark = other / "unet" / "diffusion_pytorch_model.bin", tmp_path / "mark"
    trap.write_bytes(pickle.dumps(Trap(mark), protocol=2))
    with pytest.raises(ValueError, match="cannot be read as a UNet2DConditionModel"):
        stable_diffusion(other)
    assert not mark.exists()
    pickle.loads(trap.read_bytes())
    assert mark.exists(), "as a pickle that is trusted it would have run"


class Trap:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_download_repositories_are_tried_in_order(folders, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def fetch(name, *, endpoint, local_dir, allow_patterns):
        asked.append((name, endpoint))
        if endpoint is None:
            raise OSError("gone")
        assert "transformer/*.json" in allow_patterns
        shutil.copytree(folders["dit"], local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    where = tmp_path / "new"
    with pytest.raises(ValueError, match=r"transformer/config.json.*some/one .gone."):
        dit(where, download=["some/one"])
    model = dit(where, download=["some/one", "https://mirror.test/an/other"])
    assert asked[1:] == [("some/one", None), ("an/other", "https://mirror.test")]
    assert model.classes == 6
    dit(where, download=["some/one"])
    assert len(asked) == 3, "what is there is not fetched again"
