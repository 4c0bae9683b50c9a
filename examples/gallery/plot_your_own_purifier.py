"""
Your own purifier
=================

A purifier is any function from images and noise to images. This one adds a little noise and blurs,
in a few lines. The bars compare it with DiffPure. The blur costs few clean digits, but even an
attacker who does not know about it succeeds on most. DiffPure holds up better against that attacker,
but loses much against one who knows it: judge every purifier by the attacker who knows it.
"""

import matplotlib.pyplot as plt
from torch import Tensor
from torch.nn import functional as F

import unfool


# %%
# All randomness comes from ``noise``, so that attacks can replay it and results can be repeated.
class Blur:
    """Adds noise, then averages each pixel with the mean over its 3 x 3 neighborhood."""

    def __call__(self, x: Tensor, noise: unfool.Noise) -> Tensor:
        """Return purified images, shaped like `x`."""
        noisy = x + 0.2 * noise.normal(x)
        return noisy.lerp(F.avg_pool2d(noisy, 3, 1, 1), 0.5).clamp(0, 1)


# %%
# ``evaluate`` takes it like any other purifier: nothing has to be registered.
classifier = unfool.load_classifier("digits-classifier")
denoiser = unfool.load_denoiser("digits-denoiser")
purifiers = {
    "Blur": Blur(),
    "DiffPure": unfool.DiffPure(denoiser, t=0.2, steps=5, sampler="ddpm"),
}
attacks = {
    "unaware": unfool.AttackOnView(unfool.PGD(steps=10, loss="margin"), "classifier-only"),
    "adaptive": unfool.PGD(steps=10, eot=4, loss="margin"),
}
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for index, (name, purifier) in enumerate(purifiers.items()):
    model = unfool.Purified(classifier, purifier)
    options = {"threat": unfool.Threat("linf", 0.2), "images": 32, "draws": 4, "quiet": True}
    result = unfool.evaluate(model, unfool.digits("test"), attacks=attacks, **options)
    bars = {"clean": result.clean, **result.attacks}
    shares = [condition.per_draw for condition in bars.values()]
    errors = [[s.value - s.low for s in shares], [s.high - s.value for s in shares]]
    positions = [i + 0.4 * index for i in range(len(bars))]
    ax.bar(positions, [s.value for s in shares], width=0.4, yerr=errors, capsize=4, label=name)
ax.set_xticks([0.2, 1.2, 2.2], ["clean", *attacks])
ax.set(ylabel="accuracy per draw (95 % interval)", ylim=(0, 1))
ax.legend()
plt.show()

# %%
# Your own guides, corrections, steps, attacks and data sets are just as short: see
# ``docs/extend.md``.
