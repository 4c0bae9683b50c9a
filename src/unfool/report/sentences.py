"""The sentences of a report, for readers who know nothing about diffusion models."""

from unfool.report.evaluation_tables import columns, weakest, worst_undefended
from unfool.report.formatting import cell, complement, interval
from unfool.results.attack_roles import EXACT_VIEWS, GRADIENT_FREE, PRECOMPUTED, TRANSFER, roles
from unfool.results.report_json import CertificationSummary, DoubtEntry, Summary
from unfool.results.spec import EvaluationSpec
from unfool.results.threat_model import eps_words
from unfool.spec import part
from unfool.statistics import percent

# What each doubt checks, and no more; the report lists these if no doubt was raised.
CHECKED = {
    "probabilities-for-logits": "the classifier returns logits, not probabilities",
    "zero-gradient": "the gradient that attacks follow is finite and not nearly zero",
    "gradient-disagrees": "a small step raises the loss as the gradient predicts",
    "clamped": "on most images, all but a tenth of the pixels have some gradient",
    "batch-matters": "an answer does not depend on the batch",
    "mixed-versions": "all images were done by the same versions",
    "images-unchanged": "attacks that see the whole model changed the images they did not break",
    "random-model-eot-1": "attacks on a random model average over more than one draw",
    "eot-gradients-disagree": "attacks average over enough draws per step (EOT) for a reliable gradient",
    "weaker-than-random": "no attack is weaker than random noise of its size (paired)",
    "cheap-beats-exact": "no cheaper view beats the exact gradient (paired)",
    "blind-beats-gradient": "no attack without gradients beats those with the exact one (paired)",
    "known-noise-is-harder": "attackers who know the noise do no worse than those who do not (paired)",
    "still-rising": "the loss of no attack still rises when its steps end",
    "low-precision": "neither the model nor an attack's gradient is computed in half precision",
    "no-adaptive-attack": "some attack differentiates through the defense",
    "unknown-attack": "besides attacks of other libraries, there is one of unfool",
    "no-whole-view": "if the classifier drops classes early, some attack works without that",
    "no-better-than-guessing": "the accuracy on clean images is not that of guessing",
    "less-than-stated": "the clean accuracy is not far below what the classifier's source states",
    "more-logits-than-classes": "the model has no more classes than the data set",
    "classes-missing": "there are images of every class, if there are enough images",
    "few-images": "the interval of the robust accuracy is at most 20 points wide",
    "few-draws": (
        "if that interval is wider than 10 points, the number of images is the reason, not the "
        "number of draws"
    ),
}
QUALITY = (
    "The closer an image is to the clean one, the higher are PSNR and SSIM, and the lower are l2 "
    "and LPIPS (if measured); an identical image has 100 dB, 1, and 0. Means over images, for one "
    "draw of the purifier; in brackets, 95 % confidence intervals (Student's t)."
)
KNOWN_NOISE = (
    "The attacker knows what noise the defense will draw, and is evaluated on that noise. The gap "
    "shows how much of the accuracy depends on the attacker not knowing the noise; in brackets, 95 "
    "% confidence intervals over images (Student's t). These rows do not count in the row robust."
)
IMAGE_BY_IMAGE = (
    "How many of the held-out answers to each image are right; ✓ where the true class leads. "
    "In the HTML report, choose what to show, click a heading to sort, or click an image that the run "
    "kept to see it."
)
RESUBMISSION = (
    "How often all answers are right if the same image is submitted this many times; an attacker "
    "needs only one wrong answer. Clean images also fail in some draws: only the drop below the "
    "clean curve is due to the attack. In brackets: 95 % confidence intervals over images and "
    "draws."
)
ROBUST = "for each image, the attack that did best on the attacker's own draws"
COST = "A call is one image through one network once, with every draw, step and restart counted."
ATTACK_CHECKS = (
    "zero-gradient",
    "gradient-disagrees",
    "clamped",
    "images-unchanged",
    "random-model-eot-1",
    "eot-gradients-disagree",
    "weaker-than-random",
    "cheap-beats-exact",
    "blind-beats-gradient",
    "still-rising",
    "low-precision",
    "no-adaptive-attack",
    "unknown-attack",
    "no-whole-view",
)
PROBE_CHECKS = (
    "probabilities-for-logits",
    "zero-gradient",
    "gradient-disagrees",
    "clamped",
    "batch-matters",
    "random-model-eot-1",
    "eot-gradients-disagree",
)


def overline(summary: Summary | CertificationSummary) -> str:
    """Name the defense, the classifier, and the data that were evaluated."""
    spec = summary["spec"]
    model = str(spec["classifier"].get("weights") or spec["classifier"]["name"])
    if purifier := spec.get("purifier"):
        model = f"{purifier['name']} before {model}"
    return f"{model}, on {spec['data']['name']}"


def headline(summary: Summary) -> str:
    """State the result in one sentence."""
    if not summary["attacks"] and "corrupted" in summary:
        kinds, right = len(summary["corruptions"]), summary["corrupted"]["per_draw"]["accuracy"]
        over = "a corruption" if kinds == 1 else f"{kinds} corruptions"
        return f"Under {over} the model is right {percent(right)} of the time."
    if not summary["attacks"] and roles(summary["spec"]["attacks"]).known_noise:
        return "Every attack knew the noise: this run says nothing about an attacker who does not."
    if not summary["attacks"]:
        return "No attack was tried: this run says nothing about robustness."
    threat = summary["threat"]
    change = {
        "linf": f"change every pixel by up to {eps_words(threat['eps'])}",
        "l2": f"change the image by up to {threat['eps']:.4g} in Euclidean length",
        "l1": f"change its values by up to {threat['eps']:.4g} in sum",
        "l0": f"change up to {100 * threat['eps']:.4g} % of the pixels at will",
    }[threat["norm"]]
    attacks = roles(summary["spec"]["attacks"]).attacks
    if not attacks[0].get("bounded", True):
        change = "change the image as " + " or ".join(row["name"] for row in attacks) + " does"
    through = complement(summary["robust"]["per_draw"])["accuracy"]
    what = "images" if _single(summary) else "attempts"
    knows = _knows(summary["spec"])
    return f"An attacker who {knows} and may {change} gets through on {percent(through)} of {what}."


def basis(summary: Summary) -> str:
    """State the basis of the headline: its interval and the number of images."""
    n, k = summary["n"], summary["robust"]["k"]
    answers = "" if k == 1 else f", {k} held-out answers to each"
    if not summary["attacks"] and "corrupted" in summary:
        right = summary["corrupted"]["per_draw"]
        return f"95 % interval {interval(right)}; {_images(n)}{answers}."
    if not summary["attacks"]:
        return f"{_images(n)}{answers}."
    through = complement(summary["robust"]["per_draw"])
    return f"95 % interval {interval(through)}; {_images(n)}{answers}."


def lead(summary: Summary) -> list[str]:
    """Return sentences that a reader must know before quoting the headline."""
    robust, clean = summary["robust"], summary["clean"]["per_draw"]
    if not summary["attacks"]:
        sentences = [f"On clean images the model is right {cell(clean)} of the time."]
        if "corrupted" in summary:
            bare, corrupted = (summary[key].get("undefended") for key in ("clean", "corrupted"))
            if bare and corrupted:
                sentences.append(
                    f"Without its defense the classifier is right on {cell(bare)} of the clean images "
                    f"and {cell(corrupted)} of the corrupted ones."
                )
            sentences.append(
                "No attacker chose these images: they say nothing about robustness to one."
            )
        return sentences
    sentences = [
        f"Without an attack the model is right {cell(clean)} of the time, under attack "
        f"{cell(robust['per_draw'])}."
    ]
    if not _single(summary):
        k = robust["k"]
        worst, majority = complement(robust["all_draws"]), complement(robust["majority"])
        idle = cell(complement(summary["clean"]["all_draws"]))
        sentences.append(
            f"An attacker who may submit the same image {k} times gets through on {cell(worst)} of "
            f"the images (with clean images, on {idle}); if the majority of {k} draws decides (a "
            f"tie counts as wrong), on {cell(majority)}."
        )
    if "undefended" in robust:
        name, bare = worst_undefended(summary)
        sentences.append(
            f"The classifier without its defense is wrong on {cell(complement(bare))} of the images "
            f"under {name}."
        )
    sentences.append(
        "Only the attacks below were tried: a better one can only get through more often."
    )
    return sentences


def warning(summary: Summary | CertificationSummary) -> str | None:
    """Warn not to quote the headline if there are red doubts; None if there are none."""
    doubts: list[DoubtEntry] = summary.get("doubts", [])  # a certification has none
    red = sum(doubt["severity"] == "red" for doubt in doubts)
    if not red:
        return None
    subject = "One red doubt was" if red == 1 else f"{red} red doubts are"
    return f"{subject} raised: the numbers may be wrong or too good. Read it before you quote them."


def unfinished(summary: Summary | CertificationSummary) -> str | None:
    """Say that a run is not finished; None if it is."""
    if summary["n"] >= summary["requested"]:
        return None
    return (
        f"This run is not finished: {summary['n']} of {summary['requested']} images are done, and the "
        "numbers cover only these. Run the same command again to continue; if this is one of "
        "several shards, merge it with the others."
    )


def _scatter(summary: Summary) -> str | None:
    """Say how often the model contradicts itself; None if the report has one reading."""
    if _single(summary):
        return None
    flips = cell(summary["flip_rate"])
    return f"On clean images, {flips} of the answers differ from the majority for the same image."


def _broken(summary: Summary) -> str | None:
    """Say how many images each attack broke; None without attacks."""
    if not summary["attacks"]:
        return None
    counts = ", ".join(f"{attack['name']} {attack['broken']}" for attack in summary["attacks"])
    return (
        "Images that the majority gets right when clean, but wrong under attack, by the attack that "
        f"counts: {counts}."
    )


def about_accuracy(summary: Summary) -> list[str]:
    """Return sentences about the table of accuracies."""
    sentences = [_about_beyond(summary), _about_corrupted(summary), "In brackets: 95 % intervals."]
    if summary["doubts"]:
        sentences.append("Small numbers after the name of a row refer to the doubts about it.")
    return [text for text in (*sentences, _broken(summary), _scatter(summary)) if text]


def about_classes(summary: Summary) -> str:
    """Say which classes the table shows; empty if it shows all of them."""
    shown, many = len(weakest(summary)), len(summary["classes"])
    if shown == many:
        return ""
    return f"These are the {shown} least robust of {many} classes; report.json has all of them."


def about_ladder(summary: Summary) -> str:
    """Explain the table of one attack after another."""
    text = (
        "Each row combines an attack with all attacks above it: for each image, the one that did "
        "best on the attacker's own draws counts."
    )
    if all(rung["attacked"] == summary["n"] for rung in summary.get("by_attack", [])):
        return text
    return (
        f"{text} An attack was tried only on images that no earlier attack had made wrong on all "
        "of these draws; for the others, its row under Accuracy repeats the earlier result."
    )


def _about_beyond(summary: Summary) -> str | None:
    """Explain the rows of attacks beyond the threat; None if there are no such rows."""
    if not summary.get("unbounded"):
        return None
    names = ", ".join(row["name"] for row in summary["unbounded"])
    return f"Attacks whose changes exceed the threat: {names}. They do not count in the row robust."


def _about_corrupted(summary: Summary) -> str | None:
    """Explain the rows of corruptions; None if there are none."""
    if not summary.get("corruptions"):
        return None
    names = ", ".join(row["name"] for row in summary["corruptions"])
    return (
        f"Changes that no attacker chose, and that exceed the threat: {names}. They do not count "
        "in the row robust."
        if summary["attacks"]
        else f"Changes that no attacker chose: {names}."
    )


def checks(summary: Summary) -> tuple[list[str], list[str]]:
    """Return what was checked, and what could not be because no image that the checks use is done."""
    applicable = {
        n: text for n, text in CHECKED.items() if summary["attacks"] or n not in ATTACK_CHECKS
    }
    if not all(row.get("bounded", True) for row in roles(summary["spec"]["attacks"]).attacks):
        del applicable["weaker-than-random"]
    if not summary["attacks"]:
        applicable["few-images"] = "the interval of the accuracy is at most 20 points wide"
    if summary["images_checked"]:
        return list(applicable.values()), []
    done = [text for name, text in applicable.items() if name not in PROBE_CHECKS]
    return done, [text for name, text in applicable.items() if name in PROBE_CHECKS]


def _knows(spec: EvaluationSpec) -> str:
    attacks = [row for row in roles(spec["attacks"]).attacks if row["name"] not in PRECOMPUTED]
    if not attacks:
        return "brings images made elsewhere"
    querying = [row for row in attacks if row["name"] not in TRANSFER]
    if not querying:
        return "knows another classifier, but not the model,"
    views = {part("view", attack["view"])["name"] for attack in querying}
    if all(attack["name"] in GRADIENT_FREE for attack in querying) and views & set(EXACT_VIEWS):
        return "sees the answers of the whole model"
    if not spec.get("purifier"):
        return "knows the whole model"
    if views & {*EXACT_VIEWS, "first-stage"}:
        return "knows the whole model, its defense included,"
    if views & {"adjoint", "bpda", "surrogate-same-noise", "surrogate"}:
        return "knows the defense but not its gradient"
    if views == {"classifier-only"}:
        return "knows the classifier but not its defense"
    return f"sees the model as {', '.join(sorted(views - {'undefended'}))}"


def _single(summary: Summary) -> bool:
    return all(column.key != "all_draws" for column in columns(summary))


def _images(n: int) -> str:
    return "1 image" if n == 1 else f"{n} images"
