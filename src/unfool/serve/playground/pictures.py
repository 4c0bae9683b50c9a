"""Renders results as HTML: images with alt texts, bars of votes, the progress of an attack."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from torch import Tensor

from unfool.data.image_files import png
from unfool.serve.playground.lab import (
    Attacked,
    AttackStep,
    Compared,
    Lab,
    Picture,
    Purification,
    Votes,
)
from unfool.statistics import percent

SHOWN = 4  # classes with a bar, besides the true class
SMALL = 160  # an image of fewer pixels per side is enlarged without blur


def picture_html(lab: Lab, picture: Picture) -> str:
    """Render the image as the model sees it."""
    channels, height, width = picture.x.shape[1:]
    kind = "gray" if channels == 1 else "color"
    what = _named(lab, picture)
    told = f"{what}, {width} x {height}, {kind}: what the model sees"
    notes = "".join(f"<p class='note'>{escape(note)}.</p>" for note in picture.notes)
    return _figures([_figure(picture.x[0], told, told)], "alone") + notes


def purification_html(lab: Lab, picture: Picture, found: Purification) -> str:
    """Render the steps of purification as a strip, and the votes with and without the defense."""
    what = _named(lab, picture)
    cells = [_figure(picture.x[0], "the image", f"{what}, before the purifier")]
    for place, (t, x) in enumerate(found.path):
        last = place == len(found.path) - 1
        name = "purified" if last else f"noised, t = {t:.3g}" if not place else f"back, t = {t:.3g}"
        cells.append(_figure(x, name, f"{what}, {name}"))
    if not found.path and found.pure is not None:
        cells.append(_figure(found.pure[0], "purified", f"{what}, purified"))
    strip = _figures(cells, "strip") if found.pure is not None else ""
    return strip + _both(lab, picture.label, found.defended, found.alone)


def step_html(lab: Lab, picture: Picture, step: AttackStep, losses: Sequence[float]) -> str:
    """Render the progress of an attack, and the image that it queried last."""
    if step.number <= step.steps:
        told = f"Step {step.number} of {step.steps}: "
    else:
        told = "Comparing the attacked image with the original: "
    told += f"loss {step.loss:.2f}, {percent(step.wrong, 0)} of the draws misclassified"
    done = min(step.number, step.steps)
    bar = (
        f"<progress max='{step.steps}' value='{done}' aria-label='Steps of the attack'></progress>"
    )
    return (
        f"<div class='live'>{bar}<p role='status'>{told}</p></div>"
        + _changed(lab, picture, step.x)
        + _loss(losses[: step.steps])
    )


def attacked_html(lab: Lab, picture: Picture, found: Attacked, losses: Sequence[float]) -> str:
    """Render the adversarial image, the perturbation, and the votes on held-out noise."""
    fooled = found.defended.winner != found.label
    verdict = _verdict(lab, found)
    size = found.size * lab.choices.unit
    unit = "/255" if lab.choices.unit == 255 else ""
    more = f"The perturbation has size {size:.3g}{unit} in {lab.choices.norm}."
    return (
        f"<p class='verdict {'wrong' if fooled else 'right'}' role='status'>{verdict} {more} The "
        "votes use noise that the attack has not seen.</p>"
        + _changed(lab, picture, found.x)
        + _loss(losses)
        + _both(lab, found.label, found.defended, found.alone)
    )


def _verdict(lab: Lab, found: Attacked) -> str:
    name, now = (escape(lab.label(k)) for k in (found.label, found.defended.winner))
    if found.before.winner != found.label:
        before = escape(lab.label(found.before.winner))
        return f"The model answered {before} <b>before</b> the attack, and now {now}; it is {name}."
    if found.defended.winner != found.label:
        return f"The attack <b>succeeds</b>: the model now answers {now}, not {name}."
    return f"The attack <b>fails</b>: the model still answers {name}."


def compared_html(
    lab: Lab, picture: Picture, found: Sequence[Compared], chosen: Sequence[str]
) -> str:
    """Render a card for each purifier that is done, side by side."""
    what, cards = _named(lab, picture), []
    for each in found:
        name = lab.choices.purifiers[each.key].name
        figure = _figure(each.pure[0], "", f"{what}, purified by {name}")
        facts = f"RMS change {each.distance:.3f} &middot; {1000 * each.seconds:.0f} ms a pass"
        cards.append(
            f"<section class='card'><h3>{escape(name)}</h3>{figure}<p class='note'>{facts}</p>"
            f"{_bars(lab, each.defended, picture.label, 'Votes behind it')}</section>"
        )
    left = len(chosen) - len(found)
    bar = f"<progress max='{len(chosen)}' value='{len(found)}' aria-label='Purifiers'></progress>"
    told = f"<div class='live'>{bar}<p role='status'>{left} to go</p></div>" if left else ""
    done = "" if left else f"<p class='sr' role='status'>{len(found)} purifiers compared</p>"
    return f"{told}{done}<div class='cards'>{''.join(cards)}</div>"


def error_html(why: str) -> str:
    """Render a refusal as one sentence."""
    return f"<p class='refused' role='alert'>{escape(why[:1].upper() + why[1:])}.</p>"


def thumbnail_html(lab: Lab, number: int) -> str:
    """Render a sample as a thumbnail."""
    sample = lab.samples[number]
    alt = f"sample {number}: {sample.classes[sample.label]}"
    return f"<img class='thumb' alt='{escape(alt)}' src='{_data(sample.x)}'>"


def _named(lab: Lab, picture: Picture) -> str:
    if picture.label is None:
        return picture.name
    return f"{picture.name} ({lab.label(picture.label)})"


def _changed(lab: Lab, picture: Picture, x: Tensor) -> str:
    """Render the image, the attacked image, and the perturbation, scaled to the full range."""
    clean, what = picture.x[0], _named(lab, picture)
    change = x[0].cpu() - clean
    most = float(change.abs().max())
    factor = 0.5 / most if most > 0 else 1.0
    return _figures(
        [
            _figure(clean, "the image", f"{what}, before the attack"),
            _figure(x[0], "attacked", f"{what}, attacked"),
            _figure(
                0.5 + factor * change,
                f"perturbation, x {factor:.3g}",
                f"the perturbation of {what}, magnified {factor:.3g} times; gray means no change",
            ),
        ]
    )


def _both(lab: Lab, label: int | None, defended: Votes, alone: Votes | None) -> str:
    if alone is None:
        return f"<div class='pair'>{_bars(lab, defended, label, 'The model')}</div>"
    return (
        f"<div class='pair'>{_bars(lab, defended, label, 'With the defense')}"
        f"{_bars(lab, alone, label, 'Without the defense')}</div>"
    )


def _bars(lab: Lab, votes: Votes, label: int | None, title: str) -> str:
    """Render the votes as a table with bars, with the interval of each share as a whisker."""
    order = sorted(range(len(votes.counts)), key=lambda k: -votes.counts[k])
    shown = [k for k in order[:SHOWN] if votes.counts[k]]
    shown += [label] if label is not None and label not in shown else []
    rows = []
    for k in shown:
        share, own = votes.share(k), k == label
        name = escape(lab.label(k)) + (" <small>(true class)</small>" if own else "")
        whisker, told = "", f"{votes.counts[k]} of {votes.passes}"
        if votes.random:
            low, high = 100 * share.low, 100 * share.high
            style = f"left:{low:.1f}%;width:{high - low:.1f}%"
            whisker = f"<span class='whisker' style='{style}'></span>"
            told += f" <small>[{low:.0f}, {high:.0f}] %</small>"
        kind = "right" if own else "wrong" if label is not None else ""
        rows.append(
            f"<tr><th scope='row'>{name}</th><td class='track'><div>"
            f"<span class='bar {kind}' style='width:{100 * share.value:.1f}%'></span>{whisker}"
            f"</div></td><td class='number'>{told}</td></tr>"
        )
    tie = " (undecided)" if votes.undecided else ""
    how = (
        "votes, 95 % interval" if votes.random else "deterministic: all passes give the same answer"
    )
    return (
        f"<table class='bars'><caption><b>{title}: {escape(lab.label(votes.winner))}</b>{tie} "
        f"<small>{how}</small></caption><tbody>{''.join(rows)}</tbody></table>"
    )


def _loss(losses: Sequence[float]) -> str:
    """Render the loss by step as a line; above 0, the image is misclassified on average."""
    if len(losses) < 2:
        return ""
    low, high = min(0.0, *losses), max(0.0, *losses)
    span = (high - low) or 1.0

    def y(value: float) -> float:
        return 4 + 52 * (high - value) / span

    points = " ".join(
        f"{4 + 292 * i / (len(losses) - 1):.1f},{y(loss):.1f}" for i, loss in enumerate(losses)
    )
    told = f"The loss from {losses[0]:.2f} at the first step to {losses[-1]:.2f} at the last"
    return (
        f"<figure class='loss'><svg viewBox='0 0 300 60' role='img' aria-label='{told}'>"
        f"<line x1='4' x2='296' y1='{y(0):.1f}' y2='{y(0):.1f}'/>"
        f"<polyline points='{points}'/></svg><figcaption>loss of the attacker by step, from "
        f"{losses[0]:.2f} to {losses[-1]:.2f}; above the dashed line (0) the image is misclassified"
        "</figcaption></figure>"
    )


def _figures(cells: Iterable[str], kind: str = "") -> str:
    return f"<div class='figures {kind}'>{''.join(cells)}</div>"


def _figure(x: Tensor, caption: str, alt: str) -> str:
    kind = "pixels" if max(x.shape[1:]) < SMALL else "photo"
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><img class='{kind}' alt='{escape(alt)}' src='{_data(x)}'>{told}</figure>"


def _data(x: Tensor) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(x)).decode()}"
