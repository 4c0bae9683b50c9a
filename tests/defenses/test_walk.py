"""Every purifier that shows its way: it ends where `forward` does, and time only falls."""

import pytest
import torch

from unfool.defenses.coup import COUP
from unfool.defenses.denoised_smoothing import DensePure
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.distribution_transfer import DistributionTransfer
from unfool.defenses.flowpure import FlowPure
from unfool.defenses.gdmp import GDMP
from unfool.defenses.gradual import Gradual
from unfool.defenses.langevin import Langevin
from unfool.defenses.likelihood import LikelihoodMaximization
from unfool.defenses.resized import Resized
from unfool.noise import Noise
from unfool.toy.blobs import Blobs, bayes, mixture

NOISE = Noise.of(0, range(2))
X = torch.stack([Blobs(2)[i][0] for i in range(2)])
DENOISER = mixture()
PURIFIERS = {  # and how many states its way has
    "diffpure": (DiffPure(DENOISER, t=0.1, steps=5), 6),
    "coup": (COUP(DENOISER, bayes(), t=0.1, steps=5), 6),
    "transfer": (DistributionTransfer(DENOISER, bayes(), t=0.1, steps=5), 6),
    "gdmp": (GDMP(DENOISER, t=0.036, steps=3, passes=2, scale=60), 8),
    "gdmp, unguided": (GDMP(DENOISER, t=0.036, steps=3, passes=2, distance="none"), 8),
    "gradual": (Gradual(DENOISER, passes=[(0.03, 3), (0.05, 2)]), 7),
    "likelihood": (LikelihoodMaximization(DENOISER, steps=3), 4),
    "flowpure": (FlowPure(DENOISER, t=0.1, steps=3), 4),
    "langevin": (Langevin(DENOISER, steps=3), 4),
    "densepure": (DensePure(DENOISER, t=0.1, steps=5), 6),
    "resized": (Resized(Gradual(DENOISER, passes=[(0.03, 3)]), size=4), 4),
}


@pytest.mark.parametrize("name", PURIFIERS)
def test_it_ends_where_forward_ends_and_time_only_falls(name: str):
    purifier, length = PURIFIERS[name]
    with torch.no_grad():
        states = list(purifier.walk(X, NOISE))
        assert torch.equal(states[-1][1], purifier(X, NOISE))
    times = [t for t, _ in states]
    assert len(states) == length
    assert times == sorted(times, reverse=True)
    assert times[-1] == pytest.approx(0, abs=1e-4)
    assert all(state.shape == X.shape for _, state in states)
    if name in ("coup", "flowpure", "langevin", "likelihood"):  # nothing is put on the image first
        assert torch.allclose(states[0][1], X, atol=1e-6)


def test_several_passes_tell_the_time_that_is_left_of_all():
    gradual, _ = PURIFIERS["gradual"]
    with torch.no_grad():
        times = [t for t, _ in gradual.walk(X, NOISE)]
    assert times == pytest.approx([0.08, 0.07, 0.06, 0.05, 0.05, 0.025, 0.0])
