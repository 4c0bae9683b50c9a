"""The common corruptions match their definitions, and depend on one image alone."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from unfool.attacks.corruptions import Corruption, corrupt
from unfool.data.cifar_c import KINDS
from unfool.noise import Noise
from unfool.threat import Threat

GRAIN = Noise.of(9, range(4)).uniform(torch.empty(4, 3, 32, 32))
SMOOTH = torch.nn.functional.avg_pool2d(GRAIN, 9, 1, 4, count_include_pad=False)
X = ((SMOOTH - 0.5) * 3 + 0.5).clamp(0, 1)  # something between a photograph and noise
NOISE = Noise.of(0, range(4))
FLAT = torch.full((1, 3, 64, 64), 0.4)


def on_flat(kind: str, severity: int) -> torch.Tensor:
    return corrupt(FLAT, kind, severity, Noise.of(0, [0]))  # pyright: ignore


@pytest.mark.parametrize("kind", KINDS)
def test_corruption_does_not_depend_on_other_images(kind):
    whole = corrupt(X, kind, None, NOISE)
    assert whole.shape == X.shape
    assert whole.dtype == X.dtype
    assert ((whole >= 0) & (whole <= 1)).all()
    assert torch.equal((whole * 255).round() / 255, whole), "the values of a file"
    order = [2, 0]
    assert torch.equal(corrupt(X[order], kind, None, NOISE.take(order)), whole[order])
    assert ((whole - X).flatten(1).norm(dim=1) > 0.05).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 12)])
def test_other_sizes_and_gray_images_work(kind, shape):
    x = Noise.of(3, [0]).uniform(torch.empty(1, *shape))
    for severity in (1, 5):
        assert corrupt(x, kind, severity, Noise.of(0, [0])).shape == x.shape


@pytest.mark.parametrize(
    "kind",
    [
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "defocus_blur",
        "motion_blur",
        "zoom_blur",
        "snow",
        "fog",
        "brightness",
        "contrast",
        "pixelate",
        "jpeg_compression",
    ],
)
def test_highest_severity_changes_images_more_than_the_lowest(kind):
    mild, worst = ((corrupt(X, kind, s, NOISE) - X).norm() for s in (1, 5))
    assert worst > 1.15 * mild


def test_noise_corruptions_have_their_published_strength():
    assert float(on_flat("gaussian_noise", 3).std()) == pytest.approx(0.08, rel=0.03)
    shot = on_flat("shot_noise", 5)  # Poisson: the variance is the mean over 50 photons
    assert float(shot.mean()) == pytest.approx(0.4, rel=0.01)
    assert float(shot.std()) == pytest.approx((0.4 / 50) ** 0.5, rel=0.03)
    impulse = on_flat("impulse_noise", 5)
    for value in (0, 1):
        assert float((impulse == value).float().mean()) == pytest.approx(0.035, abs=0.006)
    assert set(impulse.unique().tolist()) == {0.0, np.float32(102 / 255), 1.0}


@pytest.mark.parametrize("kind", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"])
def test_blurs_leave_a_flat_image_flat(kind):
    assert torch.equal(on_flat(kind, 4), FLAT)


def test_defocus_blur_spreads_a_point_over_nine_pixels():
    x = torch.zeros(1, 1, 15, 15)
    x[0, 0, 7, 7] = 1
    seen = corrupt(x, "defocus_blur", 5, Noise.of(0, [0]))[0, 0]
    assert torch.allclose(seen[6:9, 6:9], torch.tensor(1 / 9), atol=1 / 255)
    assert float(seen.sum()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("severity", "factors"), [(1, 7), (2, 12), (3, 16), (4, 21), (5, 26)])
def test_zoom_blur_is_the_mean_over_the_released_factors(severity, factors):
    """np.arange(1, 1.06, 0.01), as released, has 7 numbers and not 6."""
    picture = X[0].permute(1, 2, 0).double().numpy()
    zooms = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1], 0.01)
    assert len(zooms) == factors
    total = picture.copy()
    for zoom in zooms:
        side = int(np.ceil(32 / zoom))
        start = (32 - side) // 2
        middle = picture[start : start + side, start : start + side]
        large = np.asarray(ndimage.zoom(middle, (zoom, zoom, 1), order=1))
        edge = (large.shape[0] - 32) // 2
        total += large[edge : edge + 32, edge : edge + 32]
    wanted = (np.clip(total / (factors + 1), 0, 1) * 255).round() / 255
    found = corrupt(X[:1], "zoom_blur", severity, NOISE.take([0]))[0].permute(1, 2, 0)
    assert np.allclose(found.numpy(), wanted, atol=1e-6)


def test_motion_blur_streaks_to_one_side():
    x = torch.zeros(1, 1, 31, 31)
    x[0, 0, 15, 15] = 1
    rows, columns = torch.nonzero(corrupt(x, "motion_blur", 5, Noise.of(0, [0]))[0, 0]).T
    assert len(columns) >= 5
    assert (columns <= 15).all(), "an angle within 45 degrees: each pixel looks to its right"
    assert (rows <= 15).all() or (rows >= 15).all()


def test_glass_blur_moves_pixels_by_at_most_one_up_and_left():
    x = (torch.arange(100).view(1, 1, 10, 10) / 255).float()
    seen = (corrupt(x, "glass_blur", 1, Noise.of(0, [0])) * 255).round().long()[0, 0]
    moved = torch.arange(100).view(10, 10) - seen
    assert set(moved[2:, 2:].flatten().tolist()) == {0, 1, 10, 11}
    assert (moved[:2] == 0).all()
    assert (moved[:, :2] == 0).all()


def test_contrast_and_brightness_match_their_formulas():
    by_hand = X.mean((2, 3), keepdim=True) + 0.3 * (X - X.mean((2, 3), keepdim=True))
    assert torch.allclose(corrupt(X, "contrast", 4, NOISE), by_hand, atol=0.51 / 255)
    x = torch.tensor([0.6, 0.3, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    brighter = corrupt(x, "brightness", 5, Noise.of(0, [0]))[0, :, 0, 0]
    assert brighter.tolist() == pytest.approx([0.9, 0.45, 0.0], abs=0.51 / 255)  # hue is kept
    black = corrupt(torch.zeros(1, 3, 2, 2), "brightness", 2, Noise.of(0, [0]))
    assert torch.allclose(black, torch.tensor(0.1), atol=0.51 / 255)


def test_fog_clouds_cover_the_whole_range():
    foggy = on_flat("fog", 5)  # (0.4 + 1.5 cloud) 0.4 / (0.4 + 1.5), for clouds from 0 to 1
    assert float(foggy.min()) == pytest.approx(0.16 / 1.9, abs=1 / 255)
    assert float(foggy.max()) == pytest.approx(0.4, abs=1 / 255)


def test_pixelate_makes_blocks():
    x = Noise.of(3, [0]).uniform(torch.empty(1, 1, 32, 32))
    assert len(corrupt(x, "pixelate", 5, Noise.of(0, [0]))[0, 0, :, 0].unique()) <= 21


def test_elastic_transform_of_lowest_severity_is_affine():
    """A plane stays a plane away from the borders, where it is mirrored."""
    row, column = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    x = ((row + 2 * column) / 192)[None, None]
    seen = corrupt(x, "elastic_transform", 1, Noise.of(0, [0]))[0, 0, 16:48, 16:48]
    bend = seen[2:] - 2 * seen[1:-1] + seen[:-2]
    assert bend.abs().max() <= 2.1 / 255
    assert (seen - x[0, 0, 16:48, 16:48]).abs().max() > 3 / 255


def test_each_severity_is_drawn_if_none_is_given():
    x = X[:1].expand(60, -1, -1, -1)
    seen = corrupt(x, "contrast", None, Noise.of(0, range(60)))
    whole = [corrupt(X[:1], "contrast", s, NOISE.take([0]))[0] for s in range(1, 6)]
    drawn = [[torch.equal(image, each) for each in whole].index(True) for image in seen]
    assert set(drawn) == set(range(5))


def test_corruption_attack_ignores_model_and_threat():
    fog = Corruption("fog", 5)
    assert not fog.bounded
    y, threat = torch.zeros(4).long(), Threat("linf", 0.01)
    seen = fog(None, X, y, threat, NOISE)  # pyright: ignore
    assert torch.equal(seen, corrupt(X, "fog", 5, NOISE))


def test_invalid_severity_and_channels_are_refused():
    with pytest.raises(ValueError, match=r"severity .* 1 to 5"):
        corrupt(X, "fog", 6, NOISE)
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        corrupt(torch.zeros(1, 4, 8, 8), "fog", 1, Noise.of(0, [0]))
