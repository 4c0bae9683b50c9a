"""
The loss landscape
==================

The plane passes through one digit (the lower left corner) and the ends of two attacks on a defended model.
To the right goes DW-box, an attacker who knows the random numbers that the defense will draw; upward goes an
attacker who averages over draws (EOT). On the left the loss is that of the known draw, on the right the mean
over fresh draws. Where the loss is above 0 the model is wrong: what rises for one draw need not rise for others.
"""

import matplotlib.pyplot as plt

import unfool
from unfool.analysis.landscape import landscape

classifier = unfool.load_classifier("digits-classifier")
purifier = unfool.DiffPure(unfool.load_denoiser("digits-denoiser"), t=0.2, steps=5, sampler="ddpm")
model = unfool.Purified(classifier, purifier)

# %%
# Both attacks start at the image. The grid has 13 times 13 points, each with the mean over 8 fresh draws.
x, y = unfool.data.fetch(unfool.digits("test"), [1])
noise, threat = unfool.Noise.of(0, [1]), unfool.Threat("linf", 0.2)
options = {"steps": 10, "eot": 8, "draws": 8, "grid": 13}
found = landscape(model, x, y, threat, noise, quiet=True, **options)

# %%
# The iterates of both attacks lie in this plane only in part: each path is its projection.
surfaces = {"on the draw that DW-box knows": found.known, "mean over 8 fresh draws": found.fresh}
top = max(abs(surface).max() for surface in surfaces.values())
figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True)
for ax, (title, surface) in zip(axes, surfaces.items(), strict=True):
    colors = ax.contourf(found.along, found.along, surface, 20, cmap="RdBu_r", vmin=-top, vmax=top)
    ax.contour(found.along, found.along, surface, [0], colors="black", linewidths=1.5)
    for (name, path), marker in zip(found.paths.items(), "os", strict=True):
        ax.plot(*path.T, marker=marker, markersize=4, color="black", label=name)
    ax.set(title=title, xlabel="along the perturbation of DW-box")
    figure.colorbar(colors, ax=ax, label="margin of the best wrong class")
axes[0].set_ylabel("along the rest of that with EOT")
axes[0].legend(loc="upper right")
plt.show()

# %%
# One image says nothing about others: ``plot_dw_box.py`` counts over many.
