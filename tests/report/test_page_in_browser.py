"""Report pages in a browser: on wide and narrow screens, sorted and filtered, and printed."""

import csv
import io
import json
from importlib import resources
from pathlib import Path

import pytest

from unfool.cli.main import run
from unfool.results.export.records import flat

pytestmark = pytest.mark.timeout(900)  # the first test waits for all runs
SMALL = ["--set", "attacks.0.steps=2", "--set", "attacks.1.steps=2", "--quiet"]
PAGES = {
    "evaluate": "run/report.html",
    "certify": "certified/report.html",
    "compare": "compared/compare.html",
    "sweep": "swept/sweep.html",
    "analyze": "gradients/gradients.html",
    "attack": "kept/adaptive-PGD-EOT-sheet.html",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small run of each kind with its pages."""
    folder = tmp_path_factory.mktemp("made")
    six = ["demo", *SMALL, "--set", "evaluation.images=6"]
    few = ["--set", "evaluation.images=3", "--set", "evaluation.draws=4"]
    spec = resources.files("unfool.specs").joinpath("demo.yaml").read_text("utf-8")
    (folder / "sweep.yaml").write_text(f"sweep: {{purifier.t: [0.1, 0.2]}}\n{spec}")
    certify = ["--set", "certification.images=3", "--set", "certification.n=40"]
    certify += ["--set", "certification.n0=10"]

    def make(*words: str) -> None:
        *command, out = words
        assert run([*command, "--out", str(folder / out)]) == 0

    make("evaluate", *six, "run")
    make("certify", "digits-certify", *certify, "--quiet", "certified")
    make("sweep", str(folder / "sweep.yaml"), *SMALL, *few, "swept")
    make("compare", *map(str, sorted((folder / "swept" / "cells").iterdir())), "compared")
    make("analyze", "gradients", "blobs", "--images", "2", "--draws", "2", "--quiet", "gradients")
    make("attack", "demo", *SMALL, *few, "--png", "kept")
    return folder


@pytest.fixture
def show(browser, made):
    """A function that opens a page, which must load no other file and write nothing to the console."""
    contexts, said = [], []

    def open_page(name: str, width: int = 1400, scheme: str = "light"):
        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda asked: said.append(asked.url) if loads(asked.url) else None)
        page.goto((made / PAGES[name]).as_uri())
        return page

    def loads(url: str) -> bool:
        return not url.startswith(("file:", "data:"))

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def colors(page, selector: str, key: str) -> set[str]:
    script = "([s, k]) => [...document.querySelectorAll(s)].map(e => getComputedStyle(e)[k])"
    return set(page.evaluate(script, [selector, key]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_violations_and_nothing_overflows(show, violations, name, width, scheme):
    page = show(name, width, scheme)
    for details in page.query_selector_all("details"):
        details.evaluate("e => e.open = true")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_figures_follow_the_color_scheme_and_print_on_white(show):
    dark, light = show("evaluate", scheme="dark"), show("evaluate")
    assert colors(light, "svg.figure text", "fill") == {"rgb(28, 28, 28)"}
    shades = colors(dark, "svg.figure text", "fill")
    assert shades == {"rgb(228, 228, 224)"}
    assert colors(dark, "body", "backgroundColor") == {"rgb(23, 24, 26)"}
    dark.emulate_media(media="print")
    assert colors(dark, "body", "backgroundColor") == {"rgb(255, 255, 255)"}
    assert colors(dark, "svg.figure text", "fill") == {"rgb(0, 0, 0)"}
    assert not dark.is_visible("nav, .copy, .choices")
    assert dark.is_visible("th button")


def test_small_images_are_enlarged_without_blur(show):
    for name, selector in (("evaluate", ".grid img, .small img"), ("attack", ".grid img")):
        page = show(name, 400)
        page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert colors(page, selector, "imageRendering") == {"pixelated"}
        sizes = page.evaluate(
            f"[...document.querySelectorAll('{selector}')].map(e => [e.naturalWidth, e.width])"
        )
        assert {natural for natural, _ in sizes} == {8}
        assert min(shown for _, shown in sizes) > 60


def test_images_can_be_sorted_and_filtered(show, made):
    records = json.loads((made / "run" / "images.json").read_text())
    attack = "adaptive PGD + EOT"
    right = [record["conditions"][attack]["correct"] for record in records]
    page = show("evaluate")
    column = list(records[0]["conditions"]).index(attack) + 3  # from 1, after index and class
    cells = f".images tbody tr:not([hidden]) > :nth-child({column})"

    def answers() -> list[int]:
        return [
            int(text.strip("\u2713\u2717 ").split()[0])
            for text in page.locator(cells).all_inner_texts()
        ]

    assert answers() == right
    button = page.get_by_role("button", name=attack)
    button.press("Enter")
    assert answers() == sorted(right)
    button.click()
    assert answers() == sorted(right, reverse=True)
    assert page.locator(".images th[aria-sort=descending]").inner_text().startswith(attack)
    choices = page.locator(".images select")
    choices.nth(0).select_option(label=f"wrong: {attack}")
    wrong = sum(not record["conditions"][attack]["majority"] for record in records)
    assert 0 < wrong < len(records)
    assert len(answers()) == wrong
    assert page.locator(".images output").inner_text() == f"{wrong} of {len(records)} images"
    choices.nth(1).select_option(index=1)
    assert len(answers()) <= 1
    choices.nth(0).select_option(label="all")
    choices.nth(1).select_option(label="all")
    page.locator(".images summary").first.click()
    assert page.locator(".images details[open] img").count() == 5


def test_listings_can_be_copied(show, made):
    page = show("evaluate")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".listing", has_text="classifier:").get_by_role("button").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert "name: diffpure" in page.evaluate("navigator.clipboard.readText()")


def test_every_link_leads_to_a_file_or_a_doubt(show, made):
    headings = (Path(__file__).parents[2] / "docs" / "doubts.md").read_text("utf-8")
    for name, place in PAGES.items():
        page, folder = show(name), (made / place).parent
        for link in page.locator("a").all():
            target = link.get_attribute("href") or ""
            if "docs/doubts.md#" in target:
                assert f"### {target.partition('#')[2]}\n" in headings
            else:
                assert (folder / target).is_file(), f"{name} links {target}"


@pytest.mark.parametrize(
    ("stem", "records"),
    [
        ("run/images", lambda told: told),
        ("certified/images", lambda told: told),
        ("compared/images", lambda told: told),
        ("certified/report", lambda told: told["certified"]),
        ("compared/compare", lambda told: told["rows"]),
        ("gradients/gradients", lambda told: told["variants"]),
    ],
)
def test_csv_equals_json(made, stem, records):
    told = records(json.loads((made / f"{stem}.json").read_text("utf-8")))
    rows = list(csv.DictReader(io.StringIO((made / f"{stem}.csv").read_text("utf-8"))))
    assert len(rows) == len(told) > 0
    for row, record in zip(rows, told, strict=True):
        whole = {key: "" if value is None else str(value) for key, value in flat(record)}
        assert whole.items() <= row.items()
        assert all(value == "" for key, value in row.items() if key not in whole)


def test_table_of_accuracies_is_also_written_as_csv(made):
    told = json.loads((made / "run" / "report.json").read_text("utf-8"))
    rows = list(csv.DictReader(io.StringIO((made / "run" / "report.csv").read_text("utf-8"))))
    found = {(row["condition"], row["reading"]): float(row["accuracy"]) for row in rows}
    for reading in ("per_draw", "majority", "all_draws"):
        assert found["clean", reading] == told["clean"][reading]["accuracy"]
        assert found["robust", reading] == told["robust"][reading]["accuracy"]
        for attack in told["attacks"]:
            assert found[attack["name"], reading] == attack["robust"][reading]["accuracy"]
