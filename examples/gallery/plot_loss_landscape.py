"""
The loss landscape
==================

The plane passes through one digit (at 0, 0) and the ends of two attacks on a defended model. To
the right goes DW-box, an attacker who knows the random numbers that the defense will draw; upward
goes an attacker who averages over draws (EOT). The left plot shows the loss on the known draw, the
right plot the mean loss over fresh draws. Where the loss is above 0, the model is wrong: a loss that
rises on one draw need not rise on others.
"""

import matplotlib.pyplot as plt
import numpy as np

import unfool
from unfool.analysis.landscape import landscape

classifier = unfool.load_classifier("digits-classifier")
purifier = unfool.DiffPure(unfool.load_denoiser("digits-denoiser"), t=0.2, steps=5, sampler="ddpm")
model = unfool.Purified(classifier, purifier)

# %%
# Both attacks start at the image. The grid has 13 times 13 points, each with the mean over 8 fresh
# draws.
x, y = unfool.data.fetch(unfool.digits("test"), [9])
noise, threat = unfool.Noise.of(0, [9]), unfool.Threat("linf", 0.2)
result = landscape(model, x, y, threat, noise, steps=20, eot=8, draws=8, grid=13, quiet=True)

# %%
# The iterates of both attacks do not lie exactly in this plane, so each path is a projection.
surfaces = {"on the draw that DW-box knows": result.known, "mean over 8 fresh draws": result.fresh}
top = max(abs(surface).max() for surface in surfaces.values())
levels = np.linspace(-top, top, 21)
figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True)
for ax, (title, surface) in zip(axes, surfaces.items(), strict=True):
    ax.contourf(result.along, result.along, surface, levels, cmap="RdBu_r")
    ax.contour(result.along, result.along, surface, [0], colors="black", linewidths=1.5)
    for (name, path), marker in zip(result.paths.items(), "os", strict=True):
        ax.plot(*path.T, marker=marker, markersize=4, color="black", label=name)
    ax.set(title=title, xlabel="along the perturbation of DW-box")
figure.colorbar(
    axes[0].collections[0], ax=axes, label="margin: best wrong logit less the right one"
)
axes[0].set_ylabel("along what is left of that of EOT")
axes[0].legend(loc="upper right")
plt.show()

# %%
# One image says nothing about others: ``plot_dw_box.py`` measures many.
