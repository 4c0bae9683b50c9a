"""The threat model of a checked spec, in plain words."""

from typing import cast

from unfool import spec as specs
from unfool.results.attack_roles import GRADIENT_FREE, PRECOMPUTED, TRANSFER, roles
from unfool.results.outcome import first_half
from unfool.results.spec import AttackEntry, EvaluationSpec
from unfool.spec import Part
from unfool.threat import Threat


def card(spec: EvaluationSpec) -> dict[str, str]:
    """Describe the threat model in plain words."""
    threat, options = Threat(**spec["threat"]), spec["evaluation"]
    purifier = spec.get("purifier")
    change = {
        "linf": f"every pixel by up to {eps_words(threat.eps)} of the range [0, 1] (linf)",
        "l2": f"the image by up to {threat.eps:.4g} in Euclidean length, pixels in [0, 1] (l2)",
        "l1": f"the values of the image by up to {threat.eps:.4g} in sum, pixels in [0, 1] (l1)",
        "l0": f"up to {100 * threat.eps:.4g} % of the pixels of an image, at will (l0)",
    }[threat.norm]
    attacks, unbounded, corruption_rows, known_noise = roles(spec["attacks"])
    attacker = "; ".join(f"{row['label']}: {sees(row)}" for row in attacks)
    corruptions = [_options(row) for row in corruption_rows]
    if attacks and not attacks[0].get("bounded", True):
        change = "; ".join(_options(row) for row in attacks) + "; no threat bounds this"
    defense = "none" if purifier is None else _options(purifier)
    if paths := spec.get("paths"):
        defense += f", {paths['count']} purifications of each image, aggregated by {paths['by']}"
    entries = {}
    if attacks or not corruptions:
        entries = {
            "the attacker may change": change,
            "the attacker's view": attacker or "none was tried",
            "the attacker's randomness": (
                "their own draws, fresh at every step, never those of the evaluation"
                if not all(row["name"] in PRECOMPUTED for row in attacks) or not attacks
                else "unknown, because the images were made elsewhere"
            ),
        }
    if known_noise:
        entries["with the noise known"] = "; ".join(
            f"{row['label']}: {known_words(row.get('knows', ''))}, seeing {sees(row)}"
            for row in known_noise
        )
    if unbounded:
        entries["beyond the threat"] = "; ".join(
            f"{row['label']}: {_options(row)}, seeing {sees(row)}" for row in unbounded
        )
    if corruptions:
        entries["not by an attacker"] = "; ".join(corruptions) + " (no threat bounds these)"
    return entries | {
        "the defense": defense,
        "the verdict": f"{options['draws']} held-out draws per image, the same for the "
        "clean image and its attacked versions"
        + ("; the attack that counts is chosen per image on other draws" if attacks else "")
        + (
            "; no attack was tried on what was already wrong on all of these"
            if options.get("skip_broken")
            else ""
        )
        + (
            "; stopped once no further draw could change it, so that the accuracy per draw is of the "
            f"first {first_half(options['draws'])}"
            if options.get("curtail") and options["draws"] > 1
            else ""
        ),
        "images": f"{options['images'] or 'all'} of the data set {spec['data']['name']}, chosen with "
        f"seed {options['subset_seed']}; noise of seed {options['seed']}",
    }


def eps_words(eps: float) -> str:
    """Write a budget as usual: 8/255 rather than 0.0314."""
    n = eps * 255
    return f"{round(n)}/255" if abs(n - round(n)) < 1e-6 and 1 <= n < 50 else f"{eps:.4g}"


def known_words(word: str) -> str:
    """Describe what an attacker knows of the defense's noise (`threat.Knowledge`)."""
    plain = {
        "forward": "the forward noise is fixed and known (DW-Fwd)",
        "reverse": "the noise of the reverse process is fixed and known (DW-Rev)",
        "both": "all noise is fixed and known (DW-box)",
    }
    if word in plain:
        return plain[word]
    count, steps = word.split("-")[1], word.endswith("-steps")
    what = "number that the defense draws is one of" if steps else "path of noise is one of"
    return f"each {what} {count}, which are known (semi-{count})"


def sees(row: AttackEntry) -> str:
    """Describe the view of an attack, and its effort, from its entry in a checked spec."""
    if row.get("name") in PRECOMPUTED:
        return f"unknown, because the images were made elsewhere ({row['path']})"
    if row.get("name") in TRANSFER:
        return f"another classifier, {_options(row['source'])}, never the model (transfer)"
    views = {
        "exact": "the whole model, with its exact gradient",
        "no-elimination": "the whole model without its elimination, with the exact gradient",
        "first-stage": "the scores of its first stage of elimination, with the exact gradient",
        "per-step": "the whole model, with its exact gradient and that of a loss at every step",
        "adjoint": "the whole model, with the adjoint for the purifier's gradient, which is not exact",
        "bfloat16": "the whole model, with its gradient computed in bfloat16",
        "bpda": "the whole model, with the identity for the purifier's gradient (BPDA)",
        "classifier-only": "the classifier alone, not the defense (transfer)",
        "surrogate": "the whole model with fewer purifier steps, on independent noise",
        "surrogate-same-noise": "the whole model with fewer purifier steps, on the same paths of noise",
    }
    view = specs.part("view", row["view"])
    if row.get("name") in GRADIENT_FREE:
        views["exact"] = "the answers of the whole model; no gradient"
        views["no-elimination"] = (
            "the answers of the whole model without its elimination; no gradient"
        )
        views["classifier-only"] = "the answers of the classifier alone, not of the defense"
    effort_words = {
        "steps": "steps",
        "eot": "draws per step",
        "restarts": "restarts",
        "early_stop": "to stop",
    }
    effort = [
        f"{row[key]} {what}"
        for key, what in effort_words.items()
        if row.get(key) not in (None, 0, 1)
    ]
    options = [f"its {key} {value}" for key, value in view.items() if key != "name" and value]
    description = ", ".join([views.get(view["name"]) or str(view["name"]), *options])
    return f"{description} ({', '.join(effort)})".replace(" ()", "")


def _options(part: Part | AttackEntry) -> str:
    excluded = ("name", "view", "label", "bounded", "adversarial", "knows")
    options = ", ".join(
        f"{k} {_options(cast(Part, v)) if isinstance(v, dict) and 'name' in v else v}"
        for k, v in part.items()
        if k not in excluded and v is not None
    )
    return f"{part['name']} ({options})" if options else part["name"]
