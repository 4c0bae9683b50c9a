"""
Samples from the denoiser
=========================

A purifier can only be as good as its model of clean data. These digits start from pure noise, and
the shipped denoiser turns them into images of the requested class. Below each sample is the nearest
image of the training set: if the two were equal, the model would have memorized its data.
"""

import matplotlib.pyplot as plt
import torch

import unfool

denoiser = unfool.load_denoiser("digits-conditional")
train = unfool.digits("train")
known, _ = unfool.data.fetch(train, range(len(train)))

# %%
# Start from normal noise at time 1 and go back in 50 DDPM steps. The labels ask for each digit
# twice.
labels = torch.arange(20) % 10
noise = unfool.Noise.of(1, range(20))
times, step = unfool.make_sampler(denoiser, 1.0, 50, "ddpm")
start = noise.child("start").normal(torch.zeros(20, 1, 8, 8))
with torch.no_grad():
    back = noise.child("reverse")
    z = unfool.reverse(denoiser, start, times, back, step=step, label=labels)
samples = denoiser.decode(z).clamp(0, 1)

# %%
# The shipped classifier classifies each sample.
answers = unfool.load_classifier("digits-classifier")(samples).argmax(1)
distance = torch.cdist(samples.flatten(1), known.flatten(1))
nearest = known[distance.argmin(1)]

figure, axes = plt.subplots(4, 10, figsize=(10, 6), layout="constrained")
for i in range(20):
    top, bottom = axes[2 * (i // 10), i % 10], axes[2 * (i // 10) + 1, i % 10]
    for ax, image in ((top, samples[i, 0]), (bottom, nearest[i, 0])):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
    top.set_title(f"asked: {labels[i]}\nread: {answers[i]}", fontsize=8)
    bottom.set_xlabel(f"distance {distance[i].min():.2f}", fontsize=8)
for row, name in enumerate(["sample", "nearest in training"] * 2):
    axes[row, 0].set_ylabel(name, fontsize=8)
plt.show()

# %%
# Compare the distance of samples with that of real images by ``unfool analyze samples``
# (``docs/analyze.md``).
