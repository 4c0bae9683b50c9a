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
    what = _name_and_label(lab, picture)
    caption = f"{what}, {width} x {height}, {kind}: what the model sees"
    notes = "".join(f"<p class='note'>{escape(note)}.</p>" for note in picture.notes)
    return _figures([_figure(picture.x[0], caption, caption)], "alone") + notes


def purification_html(lab: Lab, picture: Picture, result: Purification) -> str:
    """Render the steps of purification as a strip, and the votes with and without the defense."""
    what = _name_and_label(lab, picture)
    cells = [_figure(picture.x[0], "the image", f"{what}, before the purifier")]
    for index, (t, x) in enumerate(result.path):
        last = index == len(result.path) - 1
        name = "purified" if last else f"noised, t = {t:.3g}" if not index else f"back, t = {t:.3g}"
        cells.append(_figure(x, name, f"{what}, {name}"))
    if not result.path and result.purified is not None:
        cells.append(_figure(result.purified[0], "purified", f"{what}, purified"))
    strip = _figures(cells, "strip") if result.purified is not None else ""
    return strip + _vote_tables(lab, picture.label, result.defended, result.undefended)


def step_html(lab: Lab, picture: Picture, step: AttackStep, losses: Sequence[float]) -> str:
    """Render the progress of an attack, and the image that it queried last."""
    if step.number <= step.steps:
        status = f"Step {step.number} of {step.steps}: "
    else:
        status = "Comparing the attacked image with the original: "
    status += f"loss {step.loss:.2f}, {percent(step.wrong, 0)} of the draws misclassified"
    done = min(step.number, step.steps)
    bar = (
        f"<progress max='{step.steps}' value='{done}' aria-label='Steps of the attack'></progress>"
    )
    return (
        f"<div class='live'>{bar}<p role='status'>{status}</p></div>"
        + _changed(lab, picture, step.x)
        + _loss(losses[: step.steps])
    )


def attacked_html(lab: Lab, picture: Picture, result: Attacked, losses: Sequence[float]) -> str:
    """Render the adversarial image, the perturbation, and the votes on held-out noise."""
    fooled = result.defended.winner != result.label
    verdict = _verdict(lab, result)
    size = result.size * lab.choices.unit
    unit = "/255" if lab.choices.unit == 255 else ""
    more = f"The perturbation has size {size:.3g}{unit} in {lab.choices.norm}."
    return (
        f"<p class='verdict {'wrong' if fooled else 'right'}' role='status'>{verdict} {more} The "
        "votes use noise that the attack has not seen.</p>"
        + _changed(lab, picture, result.x)
        + _loss(losses)
        + _vote_tables(lab, result.label, result.defended, result.undefended)
    )


def _verdict(lab: Lab, result: Attacked) -> str:
    name, now = (escape(lab.label(k)) for k in (result.label, result.defended.winner))
    if result.before.winner != result.label:
        before = escape(lab.label(result.before.winner))
        return f"The model answered {before} <b>before</b> the attack, and now {now}; it is {name}."
    if result.defended.winner != result.label:
        return f"The attack <b>succeeds</b>: the model now answers {now}, not {name}."
    return f"The attack <b>fails</b>: the model still answers {name}."


def compared_html(
    lab: Lab, picture: Picture, results: Sequence[Compared], chosen: Sequence[str]
) -> str:
    """Render a card for each purifier that is done, side by side."""
    what, cards = _name_and_label(lab, picture), []
    for result in results:
        name = lab.choices.purifiers[result.key].name
        figure = _figure(result.purified[0], "", f"{what}, purified by {name}")
        facts = f"RMS change {result.distance:.3f} &middot; {1000 * result.seconds:.0f} ms a pass"
        cards.append(
            f"<section class='card'><h3>{escape(name)}</h3>{figure}<p class='note'>{facts}</p>"
            f"{_bars(lab, result.defended, picture.label, 'Votes behind it')}</section>"
        )
    remaining = len(chosen) - len(results)
    bar = f"<progress max='{len(chosen)}' value='{len(results)}' aria-label='Purifiers'></progress>"
    progress = (
        f"<div class='live'>{bar}<p role='status'>{remaining} to go</p></div>" if remaining else ""
    )
    done = "" if remaining else f"<p class='sr' role='status'>{len(results)} purifiers compared</p>"
    return f"{progress}{done}<div class='cards'>{''.join(cards)}</div>"


def error_html(why: str) -> str:
    """Render a refusal as one sentence."""
    return f"<p class='refused' role='alert'>{escape(why[:1].upper() + why[1:])}.</p>"


def thumbnail_html(lab: Lab, number: int) -> str:
    """Render a sample as a thumbnail."""
    sample = lab.samples[number]
    alt = f"sample {number}: {sample.classes[sample.label]}"
    return f"<img class='thumb' alt='{escape(alt)}' src='{_data(sample.x)}'>"


def _name_and_label(lab: Lab, picture: Picture) -> str:
    if picture.label is None:
        return picture.name
    return f"{picture.name} ({lab.label(picture.label)})"


def _changed(lab: Lab, picture: Picture, x: Tensor) -> str:
    """Render the image, the attacked image, and the perturbation, scaled to the full range."""
    clean, what = picture.x[0], _name_and_label(lab, picture)
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


def _vote_tables(lab: Lab, label: int | None, defended: Votes, undefended: Votes | None) -> str:
    if undefended is None:
        return f"<div class='pair'>{_bars(lab, defended, label, 'The model')}</div>"
    return (
        f"<div class='pair'>{_bars(lab, defended, label, 'With the defense')}"
        f"{_bars(lab, undefended, label, 'Without the defense')}</div>"
    )


def _bars(lab: Lab, votes: Votes, label: int | None, title: str) -> str:
    """Render the votes as a table with bars, with the interval of each share as a whisker."""
    order = sorted(range(len(votes.counts)), key=lambda k: -votes.counts[k])
    classes = [k for k in order[:SHOWN] if votes.counts[k]]
    classes += [label] if label is not None and label not in classes else []
    rows = []
    for k in classes:
        share, is_true_class = votes.share(k), k == label
        name = escape(lab.label(k)) + (" <small>(true class)</small>" if is_true_class else "")
        whisker, count_text = "", f"{votes.counts[k]} of {votes.passes}"
        if votes.random:
            low, high = 100 * share.low, 100 * share.high
            style = f"left:{low:.1f}%;width:{high - low:.1f}%"
            whisker = f"<span class='whisker' style='{style}'></span>"
            count_text += f" <small>[{low:.0f}, {high:.0f}] %</small>"
        kind = "right" if is_true_class else "wrong" if label is not None else ""
        rows.append(
            f"<tr><th scope='row'>{name}</th><td class='track'><div>"
            f"<span class='bar {kind}' style='width:{100 * share.value:.1f}%'></span>{whisker}"
            f"</div></td><td class='number'>{count_text}</td></tr>"
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
    description = f"The loss from {losses[0]:.2f} at the first step to {losses[-1]:.2f} at the last"
    return (
        f"<figure class='loss'><svg viewBox='0 0 300 60' role='img' aria-label='{description}'>"
        f"<line x1='4' x2='296' y1='{y(0):.1f}' y2='{y(0):.1f}'/>"
        f"<polyline points='{points}'/></svg><figcaption>loss of the attacker by step, from "
        f"{losses[0]:.2f} to {losses[-1]:.2f}; above the dashed line (0) the image is misclassified"
        "</figcaption></figure>"
    )


def _figures(cells: Iterable[str], kind: str = "") -> str:
    return f"<div class='figures {kind}'>{''.join(cells)}</div>"


def _figure(x: Tensor, caption: str, alt: str) -> str:
    kind = "pixels" if max(x.shape[1:]) < SMALL else "photo"
    figcaption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><img class='{kind}' alt='{escape(alt)}' src='{_data(x)}'>{figcaption}</figure>"


def _data(x: Tensor) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(x)).decode()}"
