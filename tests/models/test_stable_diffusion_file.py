"""Stable Diffusion in the authors' single file, against the same weights in a folder."""

import shutil

import published_stable_diffusion as published
import pytest
import torch
from safetensors.torch import load_file, save_file

from unfool import spec as specs
from unfool.cli.main import run
from unfool.models.identify import identify
from unfool.models.latent import stable_diffusion
from unfool.noise import Noise
from unfool.spec import Part

pytest.importorskip("transformers", reason="transformers is not installed")

NAMES = {1: "v1-5-pruned-emaonly", 2: "v2-1_512-ema-pruned"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("published")
    return {v: published.save_folder(home / str(v), v) for v in NAMES}


@pytest.fixture
def place(folders, tmp_path):
    """Return a function that writes the file of a version, with a tokenizer beside it."""

    def write(version, name=None, change=dict):
        state = change(published.single_state(folders[version], version))
        path = tmp_path / (name or f"{NAMES[version]}.safetensors")
        shutil.copytree(folders[version] / "tokenizer", tmp_path / "tokenizer", dirs_exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({n: v.contiguous() for n, v in state.items()}, path)
        else:
            torch.save({"state_dict": state, "global_step": 875000}, path)
        return path

    return write


def agree(one, two):
    """Check that two models give the same latents, images, and predictions, with and without labels."""
    x = Noise.of(0, range(2)).uniform(torch.empty(2, 3, 8, 8))
    with torch.no_grad():
        z = one.encode(x)
        torch.testing.assert_close(z, two.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.decode(z), two.decode(z), rtol=1e-5, atol=1e-5)
        for t in (0.05, 0.5, 0.95):
            for label in (None, torch.tensor([3, 7])):
                time = torch.tensor(t).double()
                pair = (model.predict(z, time, label) for model in (one, two))
                torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


def converted_text(state, folder):
    """Convert a file's text encoder with diffusers. Return it under the names in the folder."""
    from diffusers.loaders import single_file_utils as utils
    from transformers import CLIPTextModel

    if any(name.startswith("cond_stage_model.model.") for name in state):
        model = CLIPTextModel.from_pretrained(folder / "text_encoder")
        found = utils.convert_open_clip_checkpoint(model, dict(state))
    else:
        found = utils.convert_ldm_clip_checkpoint(dict(state))
    expected = load_file(next((folder / "text_encoder").glob("*.safetensors")))
    found = {name.removeprefix("text_model."): value for name, value in found.items()}
    return {name: found[name.removeprefix("text_model.")] for name in expected}


@pytest.mark.parametrize("version", NAMES)
def test_generated_files_have_the_names_that_diffusers_converts(folders, version):
    from diffusers.loaders import single_file_utils
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    state = published.single_state(folders[version], version)
    config = UNet2DConditionModel.load_config(folders[version] / "unet")
    unet = single_file_utils.convert_ldm_unet_checkpoint(dict(state), config)
    vae_config = {f"{way}_block_types": ["block"] * 2 for way in ("down", "up")}
    vae = single_file_utils.convert_ldm_vae_checkpoint(dict(state), vae_config)
    text = converted_text(state, folders[version])
    for part, found in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        expected = load_file(next((folders[version] / part).glob("*.safetensors")))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[n].flatten(), v.flatten()) for n, v in expected.items())


@pytest.mark.parametrize("version", NAMES)
@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_single_file_gives_model_of_the_folder(folders, place, version, ending):
    path = place(version, f"{NAMES[version]}.{ending}")
    part: Part = {"name": "stable-diffusion", "weights": str(path), "size": 8}
    model = specs.build("denoiser", part)
    agree(model, stable_diffusion(folders[version]))
    assert model.predicts == "noise"
    x = Noise.of(1, range(1)).normal(torch.empty(1, 4, 4, 4)).requires_grad_()
    x_hat = model(x, torch.tensor(0.3).double())
    assert bool(torch.autograd.grad(x_hat.sum(), x)[0].isfinite().all())


def test_averaged_weights_are_loaded_with_a_message(folders, place, capsys):
    path = place(1, "v1-5-pruned.ckpt", published.with_averages)
    agree(stable_diffusion(path, size=8), stable_diffusion(folders[1]))
    assert "using the averaged weights ('model_ema')" in capsys.readouterr().err
    assert "averaged weights (EMA), found in 'model_ema'" in identify(path).average

    def without_one(state):
        state = published.with_averages(state)
        del state["model_ema.diffusion_modelout2bias"]
        return state

    with pytest.raises(ValueError, match=r"'model_ema\.'.*out\.2\.bias"):
        stable_diffusion(place(1, "v1-5-pruned.ckpt", without_one), size=8)


def test_prediction_type_is_known_or_requested(place):
    path = place(2, "mine.safetensors")
    with pytest.raises(ValueError, match=r"mine\.safetensors.*: noise.*: velocity"):
        stable_diffusion(path)
    assert stable_diffusion(path, predicts="velocity", size=8).predicts == "velocity"
    model = stable_diffusion(place(2, "v2-1_768-ema-pruned.safetensors"))
    assert (model.predicts, model.shape) == ("velocity", (3, 768, 768))
    assert stable_diffusion(place(1, "mine.ckpt")).shape == (3, 512, 512)


def test_half_precision_file_and_network_stay_close_to_float32(folders, place):
    def halved(state):
        return {n: v.half() if v.is_floating_point() else v for n, v in state.items()}

    path = place(1, change=halved)
    model = stable_diffusion(path, size=8)
    x = Noise.of(1, range(1)).normal(torch.empty(1, 4, 4, 4))
    with torch.no_grad():
        expected = stable_diffusion(folders[1])(x, torch.tensor(0.3).double())
        for found in (model, stable_diffusion(path, size=8, precision="bfloat16")):
            out = found(x, torch.tensor(0.3).double())
            assert (out - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda s: {n: v for n, v in s.items() if not n.startswith("first_stage")},
            r"holds no autoencoder .*'first_stage_model\.'",
        ),
        (
            lambda s: {n: v for n, v in s.items() if not n.startswith("cond_stage")},
            r"holds no text encoder .*'cond_stage_model\.transformer\.'",
        ),
        (
            lambda s: {n: v for n, v in s.items() if "diffusion_model.out." not in n},
            "does not hold a complete U-Net",
        ),
        (
            lambda s: {n: v for n, v in s.items() if ".input_blocks.5.0.in_layers.2" not in n},
            r"lacks 2 \(down_blocks\.1\.resnets\.1\.conv1\.weight",
        ),
    ],
)
def test_incomplete_files_are_refused(place, change, told):
    with pytest.raises(ValueError, match=told):
        stable_diffusion(place(1, change=change), size=8)


def test_missing_tokenizer_or_file_is_refused(folders, place, tmp_path):
    path = place(1)
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"vocab\.json.*tokenizer: FOLDER"):
        stable_diffusion(path, size=8)
    part: Part = {"name": "stable-diffusion", "weights": str(path), "size": 8}
    model = specs.build("denoiser", {**part, "tokenizer": str(folders[1] / "tokenizer")})
    agree(model, stable_diffusion(folders[1]))
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        stable_diffusion(tmp_path / "none.ckpt")


def test_identify_returns_the_part_that_loads_a_file(place):
    path = place(2)
    line = {"name": "stable-diffusion", "weights": str(path)}
    assert (identify(path).kind, identify(path).part) == ("denoiser", line)
    shutil.rmtree(path.parent / "tokenizer")
    assert identify(path).part == {**line, "tokenizer": "tokenizer"}
    assert "tokenizer" in identify(path).advice


def test_doctor_asks_for_prediction_type(place, capsys):
    path = place(2, "mine.ckpt")
    assert run(["doctor", str(path)]) == 1
    assert "--set denoiser.predicts=noise" in capsys.readouterr().out
    run(["doctor", str(path), "--set", "denoiser.predicts=velocity", "--set", "denoiser.size=8"])
    assert "predicts velocity" in capsys.readouterr().out
