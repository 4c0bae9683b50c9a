"""Published checkpoints, named by a spec: they load, and give the numbers of the original code."""

from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import fixture, numbers, state_of
from torch import Tensor

from unfool import spec as specs
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.schedule import VP, time_of_noise

SMALL = {"size": 16}  # of the images of the fixtures


def load(name: str, weights: Path, **options: Any) -> Denoiser:
    return specs.build(
        "denoiser", specs.check("denoiser", {"name": name, "weights": str(weights), **options})
    )


def saved(folder: Path, content: object, name: str = "a.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def answer(model: Denoiser, case: dict[str, Any], at_noise: bool = False) -> tuple[Tensor, Tensor]:
    """What a denoiser says of a case, and what the original said."""
    shape = tuple(case["x_shape"])
    x_t = torch.from_numpy(1.5 * numbers("x_t", shape)).float()
    t, alpha = torch.tensor(case["t"], dtype=torch.float64), 1.0
    if at_noise:  # x_t is x_0 + sigma noise, for images of [-1, 1]
        t = torch.tensor(time_of_noise(VP(), case["t"] / 2), dtype=torch.float64)
        alpha = float(VP()(t).alpha)
    label = None if case["labels"] is None else torch.tensor(case["labels"])
    with torch.no_grad():
        return model(alpha * x_t, t, label), torch.tensor(case["output"]).view(shape)


def check(
    model: Denoiser, known: dict[str, Any], at_noise: bool = False, within: float = 1e-5
) -> None:
    """Compare with the original in all cases, and the input gradient with finite differences."""
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())
    for case in known["cases"]:
        found, told = answer(model, case, at_noise)
        assert (found - told).abs().max() < within * told.abs().max()
    model.double()
    case = known["cases"][-1]
    label = None if case["labels"] is None else torch.tensor(case["labels"])
    shape = tuple(case["x_shape"])
    x = torch.from_numpy(numbers("x_t", shape)).requires_grad_()
    direction, seen = (torch.from_numpy(numbers(name, shape)) for name in ("direction", "seen"))
    t = torch.tensor(0.3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((model(x, t, label) * seen).sum(), x)
    with torch.no_grad():
        ends = [(model(x + step * direction, t, label) * seen).sum() for step in (1e-5, -1e-5)]
    assert float((gradient * direction).sum()) == pytest.approx(
        float(ends[0] - ends[1]) / 2e-5, rel=1e-5
    )


# ---- score_sde


def score_sde_file(folder: Path, known: dict[str, Any]) -> Path:
    """As score_sde writes it: the raw weights of DataParallel, and a list of averaged parameters."""
    average, raw = state_of(known), state_of(known, "raw.")
    trained = [v for n, v in average.items() if n != "all_modules.0.W"]
    raw = {n: v if n != "all_modules.0.W" else average[n] for n, v in raw.items()}
    model = {f"module.{n}": v for n, v in raw.items()} | {
        "module.sigmas": torch.linspace(50, 0.01, 1000, dtype=torch.float64)
    }
    ema = {"decay": 0.9999, "num_updates": 7, "shadow_params": trained}
    return saved(folder, {"optimizer": {"state": {}}, "model": model, "ema": ema, "step": 7})


def test_score_sde_vp(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    known = fixture("score_sde_vp_ddpmpp")
    assert list(known["weights"]) == known["order"]
    model = load("score-sde", score_sde_file(tmp_path, known), **SMALL)
    assert "averaged weights" in capsys.readouterr().err
    check(model, known)


def test_score_sde_ve(tmp_path: Path):
    known = fixture("score_sde_ve_ncsnpp")
    model = load("score-sde", score_sde_file(tmp_path, known), **SMALL)
    for case in known["cases"]:  # of images of [0, 1], at noise for them
        u = torch.from_numpy(1.5 * numbers("x_t", tuple(case["x_shape"]))).float() / 3 + 0.5
        t = torch.tensor(time_of_noise(VP(), case["t"]), dtype=torch.float64)
        with torch.no_grad():
            found = model.decode(model(VP()(t).alpha * model.encode(u), t))
        told = torch.tensor(case["output"]).view_as(u)
        assert (found - told).abs().max() < 1e-5 * told.abs().max()


def test_score_sde_of_another_sde_is_told(tmp_path: Path):
    file = score_sde_file(tmp_path, fixture("score_sde_ve_ncsnpp"))
    with pytest.raises(specs.SpecError, match="take sde: ve, not vp"):
        load("score-sde", file, sde="vp")
    file = score_sde_file(tmp_path, fixture("score_sde_vp_ddpmpp"))
    with pytest.raises(specs.SpecError, match="take sde: vp or subvp, not ve"):
        load("score-sde", file, sde="ve")
    assert load("score-sde", file, sde="subvp").predicts == "subvp"
    assert load("score-sde", file, continuous=False).time == "index"
