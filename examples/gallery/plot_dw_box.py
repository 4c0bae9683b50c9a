"""
DW-box versus white box
=======================

A defense that draws random numbers looks robust to an attacker who has to guess them. The DW-box
attacker knows the numbers that the defense will draw: on that draw the model is right less often
than under a white-box attacker who averages over draws, and on fresh draws more often. So
randomness protects, but only as long as the numbers stay secret. (With 32 digits the intervals
still overlap.)
"""

import matplotlib.pyplot as plt

import unfool
from unfool.statistics import mean_rate_interval, wilson

classifier = unfool.load_classifier("digits-classifier")
purifier = unfool.DiffPure(unfool.load_denoiser("digits-denoiser"), t=0.2, steps=5, sampler="ddpm")
model = unfool.Purified(classifier, purifier)
n = 32
x, y = unfool.data.fetch(unfool.digits("test"), range(n))

# %%
# Noise is a value in this library: the same noise gives the same draw. ``reveal`` passes the
# defense's noise to the attacker. Both attackers get 80 gradients for each image.
noise = unfool.Noise.of(0, range(n))
secret, search = noise.child("defense"), noise.child("search")
revealed = unfool.Knowledge("both").reveal(search, secret)
threat = unfool.Threat("linf", 0.2)
attacked = {
    "DW-box": unfool.PGD(steps=20, restarts=4, loss="margin")(model, x, y, threat, revealed),
    "white box, EOT 4": unfool.PGD(steps=20, eot=4, loss="margin")(model, x, y, threat, search),
}

# %%
# Judge each attack on the known draw, and on 16 fresh draws that no attack has seen.
known, fresh = [], []
for x_adv in attacked.values():
    known.append(wilson(int((model(x_adv, secret).argmax(1) == y).sum()), n))
    draws = unfool.predict_draws(model, x_adv, noise.child("verdict"), 16)
    fresh.append(mean_rate_interval((draws == y[:, None]).double().mean(1).tolist(), 16))

figure, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
for shift, name, shares in ((-0.2, "the known draw", known), (0.2, "fresh draws", fresh)):
    places = [i + shift for i in range(len(attacked))]
    below = [share.value - share.low for share in shares]
    above = [share.high - share.value for share in shares]
    heights = [share.value for share in shares]
    ax.bar(places, heights, width=0.4, yerr=[below, above], capsize=4, label=name)
ax.set_xticks(range(len(attacked)), list(attacked))
ax.set(ylabel="accuracy (95 % interval)", ylim=(0, 1), title=f"{n} digits, linf 0.2")
ax.legend()
plt.show()

# %%
# What else an attacker may know, such as the forward noise alone, is in ``docs/attacks.md``.
