"""
Results in pandas
=================

An evaluation keeps every single answer: one row for each image, condition and draw. The left
figure shows which digits the attack turns into which others. The right figure counts how many of
the eight draws of an image are right: a defense that draws noise often gives an image both right
and wrong answers.
"""

import matplotlib.pyplot as plt

import unfool

classifier = unfool.load_classifier("digits-classifier")
purifier = unfool.DiffPure(unfool.load_denoiser("digits-denoiser"), t=0.2, steps=5, sampler="ddpm")
result = unfool.evaluate(
    unfool.Purified(classifier, purifier),
    unfool.digits("test"),
    attacks={"adaptive": unfool.PGD(steps=10, eot=4, loss="margin")},
    threat=unfool.Threat("linf", 0.2),
    images=48,
    draws=8,
    quiet=True,
)

# %%
# ``to_dataframe`` gives the rows to pandas.
table = result.to_dataframe()
print(table.head())

# %%
# Group and pivot as in any other table. Draws of one image are not independent: take intervals
# from the result, such as ``result.robust.per_draw``, rather than from the rows.
print(table.groupby("condition")["correct"].mean().round(3))
print("robust, per draw:", result.robust.per_draw)

attacked = table[table["condition"] == "adaptive"]
confusion = attacked.pivot_table("draw", "label", "answer", "count", fill_value=0)
confusion = confusion.reindex(index=range(10), columns=range(10), fill_value=0)
shares = confusion.div(confusion.sum(axis=1), axis=0)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
colors = left.imshow(shares, cmap="Blues", vmin=0, vmax=1)
left.set(xticks=range(10), yticks=range(10), xlabel="answer under attack", ylabel="true digit")
figure.colorbar(colors, ax=left, label="share of the draws")
for shift, name in ((-0.2, "clean"), (0.2, "adaptive")):
    rows = table[table["condition"] == name]
    counts = rows.groupby("index")["correct"].sum().value_counts()
    counts = counts.reindex(range(9), fill_value=0)
    right.bar(counts.index + shift, counts, width=0.4, label=name)
right.set(xlabel="right draws of 8", ylabel="images", xticks=range(9))
right.legend()
plt.show()

# %%
# The same rows can be written to CSV, Parquet and other formats: see ``docs/export.md``.
