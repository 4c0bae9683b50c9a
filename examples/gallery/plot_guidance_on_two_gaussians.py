"""
Guidance on two Gaussians
=========================

This world has two classes of images with a single pixel, dark and bright, and both its denoiser
and its best classifier are known exactly. The left figures show how a bright image close to the
boundary travels back through the diffusion. Without guidance many paths end in the other class.
The guidance of COUP adds the classifier's confidence to the score and keeps more paths in their
class: the larger its weight, the more.
"""

import matplotlib.pyplot as plt
import torch

import unfool
from unfool.statistics import wilson

denoiser, classifier = unfool.toy.mixture(side=1), unfool.toy.bayes(side=1)

# %%
# 400 copies of one image, each with its own noise. 0.5 is the boundary between the classes.
runs = 400
x = torch.full((runs, 1, 1, 1), 0.52)
noise = unfool.Noise.of(0, range(runs))


def paths(weight: float) -> tuple[list[float], torch.Tensor]:
    """Return the times, and the value of the pixel in every run (times, runs)."""
    purifier = unfool.COUP(denoiser, classifier, t=0.1, steps=50, weight=weight)
    with torch.no_grad():
        times, states = zip(*purifier.walk(x, noise), strict=True)
    return list(times), torch.stack(states).flatten(1)


# %%
# All weights use the same noise, so only the guidance makes a difference.
weights = [0, 0.25, 0.5, 1, 2, 4]
ends = {weight: paths(weight)[1][-1] for weight in weights}
flips = [wilson(int((ends[weight] < 0.5).sum()), runs) for weight in weights]

figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for ax, weight in zip(axes, (0, 1), strict=False):
    times, pixels = paths(weight)
    for path in pixels.T[:40]:
        ax.plot(times, path, color="tab:blue" if path[-1] > 0.5 else "tab:red", alpha=0.4)
    ax.axhline(0.5, color="black", linewidth=0.8)
    ax.invert_xaxis()
    ax.set(
        xlabel="time of the diffusion",
        ylabel="value of the pixel",
        title=f"guidance weight {weight}",
    )
    ax.set_ylim(0, 1)
low = [flip.value - flip.low for flip in flips]
high = [flip.high - flip.value for flip in flips]
axes[2].errorbar(weights, [flip.value for flip in flips], yerr=[low, high], marker="o", capsize=3)
axes[2].set(xlabel="guidance weight", ylabel="runs that change class", ylim=(0, None))
axes[2].set_title(f"{runs} runs each, 95 % intervals")
plt.show()

# %%
# Here the classifier is right; ``docs/coup.md`` explains what guidance does when the classifier is
# wrong.
