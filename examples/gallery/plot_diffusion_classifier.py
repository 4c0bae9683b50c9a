"""
The errors of a diffusion classifier
====================================

A denoiser that knows classes is a classifier, too: noise the image, denoise it once as each class, and take the
class under which the error is smallest. Each row is a digit and each column a class; the color is by how much the
error exceeds the smallest of its row. The frame marks the right class. Where a row has two dark cells, the model
hesitates between two classes.
"""

import matplotlib.pyplot as plt

import unfool
from unfool.statistics import wilson

# %%
# 50 draws of time and noise for each image, the same for all classes. With ``scale=1`` the logits are minus
# the mean errors.
denoiser = unfool.load_denoiser("digits-conditional")
options = {"times": "sigma", "span": (0.1, 3.0), "weight": "edm", "scale": 1.0}
model = unfool.DiffusionClassifier(denoiser, draws=50, **options)
n = 40
x, y = unfool.data.fetch(unfool.digits("test"), range(n))
errors = -model(x, unfool.Noise.of(0, range(n))).detach()
excess = errors - errors.amin(1, keepdim=True)
right = wilson(int((errors.argmin(1) == y).sum()), n)

# %%
# The ten digits shown are those where the second-best class comes closest.
hardest = excess.topk(2, largest=False).values[:, 1].argsort()[:10]
figure, axes = plt.subplots(1, 2, figsize=(8, 5.5), width_ratios=[1, 9], layout="constrained")
strip = x[hardest, 0].flatten(0, 1)
axes[0].imshow(strip, cmap="gray", interpolation="nearest")
axes[0].set(xticks=[], yticks=[])
colors = axes[1].imshow(excess[hardest], cmap="viridis", aspect="auto")
for row, label in enumerate(y[hardest].tolist()):
    frame = plt.Rectangle((label - 0.5, row - 0.5), 1, 1, fill=False, color="tab:red", linewidth=2)
    axes[1].add_patch(frame)
axes[1].set_xticks(range(10))
axes[1].set(xlabel="class that the denoiser is told", yticks=[])
axes[1].set_title(f"right on {right} of {n} digits; the 10 closest calls")
figure.colorbar(colors, ax=axes[1], label="error above the smallest of the row")
plt.show()

# %%
# Dropping hopeless classes early makes this much faster: see ``docs/classifier.md``.
