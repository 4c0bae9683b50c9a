"""What a summary says, in sentences that a reader who knows no diffusion model understands."""

from collections.abc import Mapping
from typing import Any

from defuse.evaluation.verdict import eps_words
from defuse.report.cells import cell, columns, complement, percent, weakest_bare

# What each doubt asks, no more than it asks; told where none was raised.
CHECKED = {
    "probabilities-for-logits": "the classifier returns logits, not probabilities",
    "zero-gradient": "the gradient that attacks climb is finite and not nearly zero",
    "gradient-disagrees": "over a small step the loss rises as the gradient says",
    "batch-matters": "an answer does not depend on the batch",
    "mixed-versions": "all pictures were done by the same versions",
    "images-unchanged": "attacks that see the whole model changed the pictures they did not break",
    "random-model-eot-1": "attacks on a random model average over more than one draw",
    "weaker-than-random": "no attack is weaker than random noise of its size (paired)",
    "cheap-beats-exact": "no attack beats those with the exact gradient (paired)",
    "no-adaptive-attack": "some attack differentiates through the defence",
    "no-better-than-guessing": "the classifier is better than guessing on clean pictures",
    "few-images": "the interval of the robust accuracy is at most 20 points wide",
}
PROBED = (
    "probabilities-for-logits",
    "zero-gradient",
    "gradient-disagrees",
    "batch-matters",
    "random-model-eot-1",
)


def kicker(summary: Mapping[str, Any]) -> str:
    """What was evaluated: the defence, the classifier and the data, by name."""
    spec = summary["spec"]
    model = str(spec["classifier"].get("weights") or spec["classifier"]["name"])
    if spec.get("purifier"):
        model = f"{spec['purifier']['name']} before {model}"
    return f"{model}, on {spec['data']['name']}"


def headline(summary: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    if not summary["attacks"]:
        return "No attack was tried: this run says nothing about robustness."
    threat = summary["threat"]
    change = (
        f"change every pixel by up to {eps_words(threat['eps'])}"
        if threat["norm"] == "linf"
        else f"change the picture by up to {threat['eps']:.4g} in Euclidean length"
    )
    through = complement(summary["robust"]["mean"])["accuracy"]
    what = "pictures" if _single(summary) else "attempts"
    knows = _knows(summary["spec"])
    return f"An attacker who {knows} and may {change} gets through on {percent(through)} of {what}."


def basis(summary: Mapping[str, Any]) -> str:
    """What the headline rests on: its interval and the number of pictures."""
    n, k = summary["n"], summary["robust"]["k"]
    answers = "" if k == 1 else f", {k} held-out answers to each"
    if not summary["attacks"]:
        return f"{_pictures(n)}{answers}."
    through = complement(summary["robust"]["mean"])
    interval = f"{100 * through['low']:.1f} to {100 * through['high']:.1f} %"
    return f"95 % interval {interval}; {_pictures(n)}{answers}."


def lead(summary: Mapping[str, Any]) -> list[str]:
    """What else a reader must know before quoting the headline, a sentence each."""
    robust, clean = summary["robust"], summary["clean"]["mean"]
    if not summary["attacks"]:
        return [f"On clean pictures the model is right {cell(clean)} of the time."]
    said = [
        f"Without an attack the model is right {cell(clean)} of the time, under attack "
        f"{cell(robust['mean'])}."
    ]
    if not _single(summary):
        k = robust["k"]
        worst, majority = complement(robust["worst"]), complement(robust["majority"])
        idle = cell(complement(summary["clean"]["worst"]))
        said.append(
            f"An attacker who may submit the same picture {k} times gets through on {cell(worst)} of "
            f"the pictures (with clean ones, on {idle}); if the class with most of {k} "
            f"draws is the answer (a tie is none), he gets through on {cell(majority)}."
        )
    if "bare" in robust:
        name, bare = weakest_bare(summary)
        said.append(
            f"The classifier without its defence is wrong on {cell(complement(bare))} of the pictures "
            f"under {name}."
        )
    said.append("These are the attacks that were tried: a better one can only raise the number.")
    return said


def warning(summary: Mapping[str, Any]) -> str | None:
    """What stands beside the headline when it must not be quoted as it is."""
    red = sum(doubt["severity"] == "red" for doubt in summary["doubts"])
    if not red:
        return None
    told = "One red doubt is" if red == 1 else f"{red} red doubts are"
    return (
        f"{told} raised: the numbers are not what they seem. Do not quote them before reading it."
    )


def unfinished(summary: Mapping[str, Any]) -> str | None:
    """What stands at the top of the report of a run that is not done."""
    if summary["n"] >= summary["of"]:
        return None
    return (
        f"This run is not finished: {summary['n']} of {summary['of']} pictures are done. The numbers "
        "are of those alone. Run the same command again to go on where it stopped; if it is one of "
        "several shards, merge it with the others."
    )


def scatter(summary: Mapping[str, Any]) -> str | None:
    """How far the model contradicts itself; None if it always answers alike."""
    if _single(summary):
        return None
    flips = cell(summary["flip_rate"])
    return (
        f"On clean pictures, {flips} of the answers differ from most answers to the same picture."
    )


def broken(summary: Mapping[str, Any]) -> str | None:
    """Which attack broke how many pictures; None without attacks."""
    if not summary["attacks"]:
        return None
    each = ", ".join(f"{attack['name']} {attack['broken']}" for attack in summary["attacks"])
    return (
        "Pictures answered rightly by the majority when clean and wrongly under the attack that "
        f"counts: {each}."
    )


def about_robust(summary: Mapping[str, Any]) -> str | None:
    """What the row `robust` is; None without attacks."""
    if not summary["attacks"]:
        return None
    return "robust: of each picture, the attack that did best on the attacker's own draws"


def checks(probed: bool) -> tuple[list[str], list[str]]:
    """What was checked, and what could not be.

    Args:
        probed: Whether the run looked at the model itself on some pictures.
    """
    done = [text for name, text in CHECKED.items() if probed or name not in PROBED]
    return done, [] if probed else [CHECKED[name] for name in PROBED]


def _knows(spec: Mapping[str, Any]) -> str:
    views = {attack["view"] for attack in spec["attacks"]}
    if not spec.get("purifier"):
        return "knows the whole model"
    if "exact" in views:
        return "knows the whole model, its defence included,"
    if "bpda" in views:
        return "knows the defence but not its gradient"
    if views == {"undefended"}:
        return "knows the classifier but not its defence"
    return f"sees the model as {', '.join(sorted(views - {'undefended'}))}"


def _single(summary: Mapping[str, Any]) -> bool:
    return all(column.key != "worst" for column in columns(summary))


def _pictures(n: int) -> str:
    return "1 picture" if n == 1 else f"{n} pictures"
