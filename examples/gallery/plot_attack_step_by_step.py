"""
An attack, step by step
=======================

An attack asks the model the same two questions again and again: how high is the loss, and in which
direction does it rise? The curves show what PGD sees of a defended model while it climbs the loss,
averaged over eight draws of the noise (EOT): the model is wrong more and more often. The images
below show one digit during the attack, and its perturbation (red: brighter, blue: darker). A person
can still read the digit.
"""

import matplotlib.pyplot as plt

import unfool
from unfool.attacks.losses import query_model
from unfool.statistics import mean_rate_interval

classifier = unfool.load_classifier("digits-classifier")
purifier = unfool.DiffPure(unfool.load_denoiser("digits-denoiser"), t=0.2, steps=5, sampler="ddpm")
model = unfool.Purified(classifier, purifier)
x, y = unfool.data.fetch(unfool.digits("test"), range(16))

# %%
# Attacks are generators. ``search`` yields a query, receives its result, and yields the next one,
# so that you can look at each step. A plain call, ``attack(model, x, y, threat, noise)``, does the
# same in one go.
attack = unfool.PGD(steps=20, eot=8, loss="margin")
search = attack.search(x, y, unfool.Threat("linf", 0.2), unfool.Noise.of(0, range(16)))
images, losses, wrong = [], [], []
query = next(search)
while query.gradient:  # the queries after the last step only compare the candidates
    result = query_model(model, *query)
    images.append(query.x)
    losses.append(result.loss)
    wrong.append(result.error_rate)
    query = search.send(result)

# %%
# The loss is the margin: the largest wrong logit minus the right one. Above 0 the answer is wrong.
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for loss in zip(*losses, strict=True):
    left.plot(loss, color="tab:blue", alpha=0.3)
left.axhline(0, color="black", linewidth=0.8)
left.set(xlabel="step", ylabel="margin (one line per image)", xticks=range(0, 20, 5))
spread = [mean_rate_interval(w.tolist(), 8) for w in wrong]
right.plot([s.value for s in spread], color="tab:red")
low, high = [s.low for s in spread], [s.high for s in spread]
right.fill_between(range(20), low, high, color="tab:red", alpha=0.2)
right.set(xlabel="step", ylabel="wrong draws (95 % interval)", ylim=(0, 1), xticks=range(0, 20, 5))
plt.show()

# %%
# The first digit during the attack, and below it the perturbation.
figure, panels = plt.subplots(2, 5, figsize=(9, 3.7), layout="constrained")
for step, (top, bottom) in zip([0, 4, 9, 14, 19], panels.T, strict=True):
    top.imshow(images[step][0, 0], cmap="gray", vmin=0, vmax=1)
    bottom.imshow(images[step][0, 0] - x[0, 0], cmap="RdBu_r", vmin=-0.2, vmax=0.2)
    top.set(xticks=[], yticks=[], title=f"step {step}")
    bottom.set(xticks=[], yticks=[])
figure.colorbar(panels[1, 0].images[0], ax=panels, label="change of a pixel")
plt.show()

# %%
# The attacker's own draws flatter them: ``plot_dw_box.py`` measures on draws that no attack has
# seen.
