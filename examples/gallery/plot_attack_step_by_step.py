"""
An attack, step by step
=======================

An attack asks the model the same two questions again and again: how high is the loss, and where does it rise?
The upper curve shows how often the defended model is wrong while PGD climbs its loss, averaged over eight
draws of the noise (EOT). The images below show how little of this an observer sees.
"""

import matplotlib.pyplot as plt

import unfool
from unfool.attacks.losses import query_model

classifier = unfool.load_classifier("digits-classifier")
purifier = unfool.DiffPure(unfool.load_denoiser("digits-denoiser"), t=0.2, steps=5, sampler="ddpm")
model = unfool.Purified(classifier, purifier)
x, y = unfool.data.fetch(unfool.digits("test"), range(16))

# %%
# Attacks are generators. ``search`` yields a query, receives its result, and yields the next one, so that you
# can look at each step. A plain call, ``attack(model, x, y, threat, noise)``, does the same in one go.
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
# The loss is the margin: the best wrong logit less the right one. Above 0 the answer is wrong.
figure = plt.figure(figsize=(9, 7), layout="constrained")
grid = figure.add_gridspec(3, 5, height_ratios=[2, 1, 1])
left, right = figure.add_subplot(grid[0, :2]), figure.add_subplot(grid[0, 2:])
for loss in zip(*losses, strict=True):
    left.plot(loss, color="tab:blue", alpha=0.3)
left.axhline(0, color="black", linewidth=0.8)
left.set(xlabel="step", ylabel="margin (one line per image)")
spread = [unfool.statistics.mean_of(w.tolist(), 8) for w in wrong]
right.plot([s.value for s in spread], color="tab:red")
low, high = [s.low for s in spread], [s.high for s in spread]
right.fill_between(range(20), low, high, color="tab:red", alpha=0.2)
right.set(xlabel="step", ylabel="wrong draws (95 % interval)", ylim=(0, 1))
for column, step in enumerate([0, 4, 9, 14, 19]):
    change = images[step][0, 0] - x[0, 0]
    for row, (image, most) in enumerate([(images[step][0, 0], 1), (change, 0.2)], 1):
        ax = figure.add_subplot(grid[row, column])
        cmap = "gray" if row == 1 else "RdBu"
        ax.imshow(image, cmap=cmap, vmin=0 if row == 1 else -most, vmax=most)
        ax.set(xticks=[], yticks=[], title=f"step {step}" if row == 1 else "change")
plt.show()

# %%
# The attacker's own draws flatter them: ``plot_dw_box.py`` measures on draws that no attack has seen.
