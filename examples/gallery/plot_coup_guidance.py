"""
COUP with and without guidance
==============================

COUP runs the diffusion back from the image itself, and adds the classifier's confidence to the score. The curves
show the probability of the right class along the way, as a mean over attacked digits. Guidance makes the
classifier surer of the class that it already believes in. Where the attack has flipped that class before the
purification begins, guidance works for the attacker.
"""

import matplotlib.pyplot as plt
import torch

import unfool
from unfool.statistics import mean_interval, wilson

classifier = unfool.load_classifier("digits-classifier")
denoiser = unfool.load_denoiser("digits-denoiser")
n = 48
x, y = unfool.data.fetch(unfool.digits("test"), range(n))

# %%
# The attacker knows the classifier alone.
noise = unfool.Noise.of(0, range(n))
attack = unfool.PGD(steps=20, loss="margin")
x_adv = attack(classifier, x, y, unfool.Threat("linf", 0.2), noise.child("attack"))

# %%
# The same noise for each weight, so that the curves differ by the guidance alone.
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for weight, color in ((0, "tab:gray"), (1, "tab:blue"), (8, "tab:orange")):
    purifier = unfool.COUP(denoiser, classifier, t=0.1, steps=20, weight=weight)
    for ax, (name, images) in zip(axes, {"clean": x, "attacked": x_adv}.items(), strict=True):
        times, spread = [], []
        with torch.no_grad():
            for t, state in purifier.walk(images, noise.child("purify")):
                sure = classifier(state.clamp(0, 1)).softmax(1)
                spread.append(mean_interval(sure[range(n), y].tolist()))
                times.append(t)
        right = wilson(int((sure.argmax(1) == y).sum()), n)
        low, high = [s.low for s in spread], [s.high for s in spread]
        label = f"weight {weight}: right {right}"
        ax.plot(times, [s.mean for s in spread], color=color, label=label)
        ax.fill_between(times, low, high, color=color, alpha=0.15)
        ax.set(title=name, xlabel="time of the diffusion")
axes[0].set_ylabel("probability of the right class")
for ax in axes:
    ax.invert_xaxis()
    ax.legend(loc="lower left", fontsize=8)
plt.show()

# %%
# ``plot_guidance_on_two_gaussians.py`` shows why, where everything is known exactly; options: ``docs/coup.md``.
