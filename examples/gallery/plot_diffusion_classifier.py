"""
The errors of a diffusion classifier
====================================

A denoiser that knows classes is a classifier, too: noise the image, denoise it once as each class,
and take the class under which the error is smallest. Each row is a digit and each column a class;
the color is by how much the error exceeds the smallest of its row. The frame marks the right
class. Where a row has two dark cells, the model hesitates between two classes.
"""

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

import unfool
from unfool.statistics import wilson

# %%
# Each image gets 50 draws of time and noise, the same for all classes. With ``scale=1`` the logits
# are the negative mean errors.
denoiser = unfool.load_denoiser("digits-conditional")
options = {"times": "sigma", "span": (0.1, 3.0), "weight": "edm", "scale": 1.0}
model = unfool.DiffusionClassifier(denoiser, draws=50, **options)
n = 80
x, y = unfool.data.fetch(unfool.digits("test"), range(n))
errors = -model(x, unfool.Noise.of(0, range(n))).detach()
excess = errors - errors.amin(1, keepdim=True)
right = wilson(int((errors.argmin(1) == y).sum()), n)

# %%
# The ten digits shown are those where the second-best class comes closest.
hardest = excess.topk(2, largest=False).values[:, 1].argsort()[:10]
figure, ax = plt.subplots(figsize=(7.5, 6), layout="constrained")
colors = ax.imshow(excess[hardest], cmap="viridis")
for row, i in enumerate(hardest.tolist()):
    extent = (-1.7, -0.7, row + 0.45, row - 0.45)
    ax.imshow(x[i, 0], cmap="gray", extent=extent, interpolation="nearest")
    corner = (int(y[i]) - 0.5, row - 0.5)
    ax.add_patch(Rectangle(corner, 1, 1, fill=False, color="tab:red", linewidth=2))
ax.set(xlim=(-1.8, 9.5), ylim=(9.5, -0.5), xticks=range(10), yticks=[])
ax.set(xlabel="class that the denoiser is told", ylabel="the ten closest calls")
ax.set_title(f"right on {right} of {n} digits")
figure.colorbar(colors, ax=ax, label="error above the smallest of the row")
plt.show()

# %%
# Dropping hopeless classes early makes this much faster: see ``docs/classifier.md``.
