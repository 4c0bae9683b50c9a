"""
Three attackers, one defense
============================

The same defense, the same digits and the same budget: only the attacker's knowledge of the
gradient differs. Transfer ignores the purifier, BPDA pretends that it changes nothing, and the
third attacker follows the exact gradient through every step of the diffusion. The accuracy falls
each time. A claim of robustness that rests on one of the first two attackers is a claim about the
attacker.
"""

import matplotlib.pyplot as plt

import unfool

classifier = unfool.load_classifier("digits-classifier")
purifier = unfool.DiffPure(unfool.load_denoiser("digits-denoiser"), t=0.2, steps=5, sampler="ddpm")
model = unfool.Purified(classifier, purifier)

# %%
# ``AttackOnView`` sets which version of the model the attack differentiates. All attacks are PGD
# with 20 steps.
plain = unfool.PGD(steps=20, loss="margin")
averaged = unfool.PGD(steps=20, eot=4, loss="margin")
attacks = {
    "transfer": unfool.AttackOnView(plain, "classifier-only"),
    "BPDA + EOT": unfool.AttackOnView(averaged, "bpda"),
    "exact + EOT": averaged,
}
threat = unfool.Threat("linf", 0.2)
options = {"attacks": attacks, "threat": threat, "images": 32, "draws": 8, "quiet": True}
result = unfool.evaluate(model, unfool.digits("test"), **options)
print(result)

# %%
# Each attack is measured on eight draws of the noise that it has not seen.
conditions = {"clean": result.clean, "random noise": result.random, **result.attacks}
figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
for shift, reading in ((-0.2, "per_draw"), (0.2, "majority")):
    shares = [getattr(condition, reading) for condition in conditions.values()]
    errors = [[s.value - s.low for s in shares], [s.high - s.value for s in shares]]
    places = [i + shift for i in range(len(shares))]
    heights = [share.value for share in shares]
    label = {"per_draw": "per draw", "majority": "majority of 8 draws"}[reading]
    ax.bar(places, heights, width=0.4, yerr=errors, capsize=4, label=label)
ax.set_xticks(range(len(conditions)), list(conditions))
ax.set(ylabel="accuracy (95 % interval)", ylim=(0, 1), title="32 digits, linf 0.2")
ax.legend(loc="upper right")
plt.show()

# %%
# ``docs/results.md`` has the same comparison on CIFAR-10, and ``docs/analyze.md`` explains how each
# gradient is computed.
