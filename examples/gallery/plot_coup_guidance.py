"""
COUP with and without guidance
==============================

COUP runs the diffusion back from the image itself, and adds the classifier's confidence to the
score. The curves show the probability of the right class along the way, as a mean over attacked
digits. Guidance makes the classifier more confident in the class that it predicts already. If the
attack has flipped that class before the purification begins, a large weight helps the attacker;
the paper's weight of 1 changes little here.
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
# The attacker knows only the classifier, not the defense.
noise = unfool.Noise.of(0, range(n))
attack = unfool.PGD(steps=20, loss="margin")
attacked = {
    f"pixels changed by up to {eps}": attack(
        classifier, x, y, unfool.Threat("linf", eps), noise.child("attack")
    )
    for eps in (0.1, 0.2)
}

# %%
# All weights use the same noise, so the curves differ only in the guidance.
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for weight, color in ((0, "tab:gray"), (1, "tab:blue"), (8, "tab:orange")):
    purifier = unfool.COUP(denoiser, classifier, t=0.1, steps=20, weight=weight)
    for ax, (name, images) in zip(axes, attacked.items(), strict=True):
        with torch.no_grad():
            times, states = zip(*purifier.walk(images, noise.child("purify")), strict=True)
            confidences = [classifier(state.clamp(0, 1)).softmax(1) for state in states]
        spread = [mean_interval(p[range(n), y].tolist()) for p in confidences]
        right = wilson(int((confidences[-1].argmax(1) == y).sum()), n)
        low, high = [s.low for s in spread], [s.high for s in spread]
        label = f"weight {weight}: right {right}"
        ax.plot(times, [s.mean for s in spread], color=color, label=label)
        ax.fill_between(times, low, high, color=color, alpha=0.15)
        ax.set(title=name, xlabel="time of the diffusion")
axes[0].set(ylabel="probability of the right class (95 % interval)", ylim=(0, 1))
for ax in axes:
    ax.invert_xaxis()
    ax.legend(loc="lower right", fontsize=8)
plt.show()

# %%
# ``plot_guidance_on_two_gaussians.py`` shows why, in a world where everything is known exactly.
# ``docs/coup.md`` explains the options.
