"""
Certify a radius
================

Attacks show what one attacker found; a certificate holds against all of them. Randomized smoothing
adds noise to an image many times and takes the class that wins: if it wins by enough, no
perturbation shorter than the radius can change the answer. The curves show for how many digits the
right answer is certified, as the radius grows. A denoiser before the classifier helps, because the
classifier alone was not trained on noise.
"""

import matplotlib.pyplot as plt
import numpy as np

import unfool

classifier = unfool.load_classifier("digits-classifier")
denoiser = unfool.load_denoiser("digits-denoiser")
models = {
    "with a denoiser": unfool.Purified(classifier, unfool.OneStep(denoiser, sigma=0.25)),
    "the classifier alone": classifier,
}

# %%
# 500 noisy copies of each of 30 digits. More copies certify larger radii: the largest possible
# radius grows with ``n``.
options = {"sigma": 0.25, "n0": 50, "n": 500, "images": 30, "quiet": True}
results = {
    name: unfool.certify(model, unfool.digits("test"), **options) for name, model in models.items()
}
for name, result in results.items():
    print(f"{name}: certified at 0.25 {result.certified_at(0.25)}, mean {result.mean_radius:.2f}")

# %%
# The radius is the length of the perturbation (l2), with pixels in [0, 1].
radii = np.linspace(0, 0.6, 61)
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for name, result in results.items():
    shares = [result.certified_at(radius) for radius in radii]
    ax.plot(radii, [share.value for share in shares], label=name)
    low, high = [share.low for share in shares], [share.high for share in shares]
    ax.fill_between(radii, low, high, alpha=0.15)
ax.set(xlabel="l2 radius", ylabel="certified and right (95 % interval)", ylim=(0, 1.02))
ax.set_title("30 digits, noise of 0.25")
ax.legend()
plt.show()

# %%
# The guarantee in detail, and what it does not cover, is in ``docs/certify.md``.
