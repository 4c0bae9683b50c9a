"""
Purify one image and watch it
=============================

The upper row is a photo, the lower row the same photo after an attack on the classifier. Both are
noised, and a diffusion model removes the noise in five steps. The class above each image is the
classifier's answer: red if it is wrong. The attack fools the classifier, and so does the noise,
which drowns the attack. Once the noise is gone, both photos have their right class again.
"""

import matplotlib.pyplot as plt

import unfool

# %%
# A defended model is a classifier behind a purifier. All of these parts come with the package.
classifier = unfool.load_classifier("cifar10-classifier")
denoiser = unfool.load_denoiser("cifar10-denoiser-small")
purifier = unfool.DiffPure(denoiser, t=0.1, steps=5, sampler="ddpm")

data = unfool.cifar10_sample()
x, y = unfool.data.fetch(data, [7])

# %%
# The attacker changes each pixel by up to 8/255 and knows the classifier, but not the purifier.
noise = unfool.Noise.of(0, [7])
attack = unfool.PGD(steps=20, loss="margin")
x_adv = attack(classifier, x, y, unfool.Threat("linf", 8 / 255), noise.child("attack"))

# %%
# ``walk`` yields the states of the reverse process: the noised image first, the purified image
# last.
rows = {}
for name, image in {"clean": x, "attacked": x_adv}.items():
    states = list(purifier.walk(image, noise.child("purify")))
    rows[name] = [("input", image)] + [(f"t = {t:.2f}", state) for t, state in states]

figure, axes = plt.subplots(2, len(rows["clean"]), figsize=(11, 4.4), layout="constrained")
for line, (name, states) in zip(axes, rows.items(), strict=True):
    for ax, (time, image) in zip(line, states, strict=True):
        answer = int(classifier(image.clamp(0, 1)).argmax())
        ax.imshow(image[0].clamp(0, 1).permute(1, 2, 0), interpolation="nearest")
        ax.set_title(data.classes[answer], color="tab:green" if answer == int(y) else "tab:red")
        ax.set_xlabel(time)
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(name)
figure.suptitle(f"The classifier's answer above each image (the right one: {data.classes[int(y)]})")
plt.show()

# %%
# This attacker did not know about the purifier; ``plot_three_attackers.py`` shows what happens
# when they do.
