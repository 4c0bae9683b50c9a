"""The table of a run's images and their answers, which a page can sort and filter."""

from collections.abc import Mapping, Sequence

from unfool.report.document import ImageRow, ImageTable, SmallImage
from unfool.results.image_records import ConditionRecord, ImageRecord, PairedImage
from unfool.results.report_json import CertifiedImage
from unfool.statistics import percent

MAX_IMAGES = 2000  # images on a page; the files beside it hold all of them
TITLES = {"random": "random noise"}
Versions = Mapping[int, Sequence[tuple[str, SmallImage]]]


def image_table(records: Sequence[ImageRecord], versions: Versions) -> ImageTable:
    """Tabulate how many answers to each image are right under each condition.

    Args:
        records: What `image_records` returned.
        versions: Index to the versions of that image that the run kept, with headings.
    """
    names = list(records[0]["conditions"])
    attacks = [name for name in names if name not in ("clean", "random")]
    answer_filters = {
        "broken": "right when clean, wrong when changed",
        "held": "right under everything",
    }
    answer_filters |= {
        f"wrong-{i}": f"wrong: {TITLES.get(name, name)}" for i, name in enumerate(names)
    }
    rows = []
    for record in records[:MAX_IMAGES]:
        conditions = [record["conditions"][name] for name in names]
        wrong = {
            f"wrong-{i}" for i, condition in enumerate(conditions) if not condition["majority"]
        }
        broken = record["conditions"]["clean"]["majority"] and any(
            not record["conditions"][name]["majority"] for name in attacks
        )
        rows.append(
            ImageRow(
                [str(record["index"]), record["class_name"], *map(_answers, conditions)],
                [record["index"], record["class_name"], *map(_rate, conditions)],
                [None, None, *(condition["majority"] for condition in conditions)],
                {f"class-{record['label']}", *wrong}
                | ({"broken"} if broken else set())
                | (set() if wrong else {"held"}),
                versions.get(record["index"], ()),
            )
        )
    filters = {
        "answers": answer_filters,
        "class": _classes([(r["label"], r["class_name"]) for r in records]),
    }
    heads = ["image", "class", *(TITLES.get(name, name) for name in names)]
    return ImageTable(heads, rows, filters, "images", len(records))


def paired_table(images: Sequence[PairedImage]) -> ImageTable:
    """Tabulate how many answers to each image are right in run A and in run B."""
    names = list(images[0]["conditions"])
    answer_filters = {
        f"{kind}-{i}": f"{words}: {TITLES.get(name, name)}"
        for i, name in enumerate(names)
        for kind, words in (("a", "only A right"), ("b", "only B right"))
    }
    rows = []
    for image in images[:MAX_IMAGES]:
        pairs = [(condition["a"], condition["b"]) for condition in image["conditions"].values()]
        texts = [f"{a['correct']} \u2192 {b['correct']} of {b['draws']}" for a, b in pairs]
        tags = {
            f"{'a' if a['majority'] else 'b'}-{i}"
            for i, (a, b) in enumerate(pairs)
            if a["majority"] != b["majority"]
        }
        rows.append(
            ImageRow(
                [str(image["index"]), image["class_name"], *texts],
                [image["index"], image["class_name"], *(_rate(b) - _rate(a) for a, b in pairs)],
                [None] * (2 + len(pairs)),
                {f"class-{image['label']}", *tags},
            )
        )
    classes = _classes([(image["label"], image["class_name"]) for image in images])
    heads = ["image", "class", *(TITLES.get(name, name) for name in names)]
    return ImageTable(
        heads, rows, {"answers": answer_filters, "class": classes}, "images", len(images)
    )


def certified_table(images: Sequence[CertifiedImage], classes: Sequence[str]) -> ImageTable:
    """Tabulate the smoothed classifier's certified answer to each image."""
    rows = []
    for row in images[:MAX_IMAGES]:
        answer = "abstains" if row["answer"] is None else _name(classes, row["answer"])
        right = row["answer"] == row["label"]
        state = "right" if right else "abstains" if row["answer"] is None else "wrong"
        name = _name(classes, row["label"])
        rows.append(
            ImageRow(
                [
                    str(row["index"]),
                    name,
                    answer,
                    f"{row['radius']:.3f}",
                    percent(row["share"]),
                ],
                [row["index"], name, answer, row["radius"], row["share"]],
                [None, None, right, None, None],
                {state, f"class-{row['label']}"},
            )
        )
    states = {"right": "certified and right", "wrong": "certified, but wrong"}
    pairs = [(row["label"], _name(classes, row["label"])) for row in images]
    filters = {"answers": states | {"abstains": "abstains"}, "class": _classes(pairs)}
    heads = ["image", "class", "answer", "radius (l2)", "noisy draws right"]
    return ImageTable(heads, rows, filters, "images", len(images))


def _answers(condition: ConditionRecord) -> str:
    return f"{condition['correct']} of {condition['draws']}"


def _rate(condition: ConditionRecord) -> float:
    return condition["correct"] / condition["draws"]


def _classes(pairs: Sequence[tuple[int, str]]) -> dict[str, str]:
    return {f"class-{label}": name for label, name in sorted(set(pairs))}


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label] if label < len(classes) else f"class {label}"
