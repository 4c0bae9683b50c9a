"""Reports of runs whose numbers are known."""

import base64
import inspect
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from scipy import stats

from unfool import spec as specs
from unfool.cli.main import run
from unfool.evaluation import run as running
from unfool.report import sentences
from unfool.report.document import DOUBTS_URL, Document, Paragraph, Table
from unfool.report.evaluation import brief, write_report
from unfool.report.render_html import to_fragment, to_html
from unfool.report.render_markdown import quote, to_markdown
from unfool.report.render_terminal import plain_text, print_document
from unfool.results.doubts import model as model_doubts
from unfool.results.doubts import run as run_doubts
from unfool.results.doubts.attacks import blind_beats_gradient, cheap_beats_exact
from unfool.results.outcome import Condition, Outcome
from unfool.results.report_json import Summary
from unfool.results.run_folder import Run

K = 4
ATTACKS = [
    {"name": "pgd", "steps": 10, "eot": 4, "view": "exact", "label": "strong"},
    {"name": "pgd", "steps": 10, "eot": 4, "view": "classifier-only", "label": "weak"},
]


def a_run(
    folder: Path,
    n: int = 40,
    of: int | None = None,
    defended: bool = True,
    attacks: list[dict] | None = None,
    classes: tuple[str, ...] = ("cat", "<b>", "a|b $x_1$"),
    pictures: int = 2,
    shape: tuple[int, int, int] = (3, 4, 4),
    draws: int = K,
) -> Run:
    """Make a run in which the attack `strong` fools every fourth image, at 3 of 4 draws.

    So 1 - 3/16 = 81.25 % of draws are right, and 75 % of images by the majority and by all draws. All
    clean and noisy images are right. The classifier alone is wrong on every second attacked image.
    """
    attacks = ATTACKS if attacks is None else attacks
    spec = {
        "data": {"name": "mine:Data"},
        "classifier": {"name": "mine:Net"},
        **({"purifier": {"name": "diffpure", "t": 0.1}} if defended else {}),
        "threat": {"norm": "linf", "eps": 8 / 255},
        "attacks": attacks,
        "evaluation": {
            "images": of or n,
            "subset_seed": 0,
            "seed": 0,
            "draws": draws,
            "examples": pictures,
            "skip_broken": False,
            "lpips": False,
        },
        "machine": {
            "device": "cpu",
            "batch_size": 256,
            "images_per_block": 32,
            "execution": "plain",
            "engine": "local",
        },
    }
    asked: Any = {
        "identity": "0123456789",
        "images": "0" * 64,
        "code": "0" * 64,
        "spec": spec,
        "indices": list(range(of or n)),
        "classes": list(classes),
        "versions": {"python": "3.11", "torch": "2.6"},
    }
    run = Run.begin(folder, asked)
    for first in range(0, n, 16):
        block = range(first, min(first + 16, n))
        shown = [i for i in block if i < pictures]
        outcomes = [_outcome(i, len(classes), defended, attacks, draws) for i in block]
        run.add(outcomes, _pictures(shown, len(classes), defended, shape) if shown else {})
    return run


def _outcome(i: int, classes: int, defended: bool, attacks: list[dict], draws: int) -> Outcome:
    label, other = i % classes, (i + 1) % classes
    right = Condition([label] * draws, label if defended else None, 0.0, 0.0)
    conditions = {"clean": right} | ({"random": right} if attacks else {})
    for attack in attacks:
        falls = i % 4 == 0 and attack["label"] == "strong"
        answers = [other] * (draws - draws // 4) + [label] * (draws // 4) if falls else right.draws
        answers = answers[:1] if attack.get("knows") == "both" else answers
        bare = (other if i % 2 == 0 else label) if defended else None
        conditions[attack["label"]] = Condition(answers, bare, 8 / 255, 0.75 if falls else 0.0)
    chosen = attacks[0]["label"] if attacks else "clean"
    cost = {"nfe_forward": 100.0, "nfe_vjp": 50.0, "peak_bytes": 3 * 2**30}
    probe = {"probabilities": False, "random": True, "alike": True, "slope": [1.0, 1.0]}
    probe["gradients"] = {"ce": 1.0, "margin": 1.0}
    return Outcome(i, label, conditions, chosen, 0.5, cost, probe)


def _pictures(
    shown: list[int], classes: int, defended: bool, shape: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    ramp = np.linspace(0.1, 0.9, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    clean = np.stack([ramp for _ in shown])
    label = np.array([i % classes for i in shown])
    kept = {"index": np.array(shown), "label": label, "clean": clean}
    kept |= {"attacked": clean + np.float32(8 / 255)}
    kept |= {"clean_answer": label, "attacked_answer": label + 1}  # one of them is no known class
    if defended:
        for name in ("clean", "attacked"):
            kept[f"{name}_bare"] = label
            kept[f"{name}_purified"] = clean
            kept[f"{name}_sure"] = np.full((len(shown), 3), 0.8)
        kept["times"] = np.array([0.1, 0.05, 0.0])
    return kept


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    """The folder and the summary of a run by `a_run`, with a report written once."""
    folder = tmp_path_factory.mktemp("standard")
    return folder, write_report(a_run(folder, pictures=10))


def wilson(hits: int, n: int) -> tuple[float, float]:
    interval = stats.binomtest(hits, n).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def printed(summary: Summary, folder: Path, width: int = 200) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    print_document(brief(summary), console, folder / "report.html")
    return out.getvalue()


class Page(HTMLParser):
    """The parts of a page that a browser would load and show."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.scripts = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "srcset", "data") and v]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts += data
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(folder: Path) -> tuple[dict, str, Page]:
    page = Page((folder / "report.html").read_text("utf-8"))
    assert page.open == []
    report = json.loads((folder / "report.json").read_text("utf-8"))
    return report, (folder / "report.md").read_text("utf-8"), page


def test_all_outputs_show_the_known_numbers(standard):
    folder, summary = standard
    report, text, page = read(folder)
    assert report == json.loads(json.dumps(summary))
    robust = report["robust"]
    assert robust["per_draw"]["accuracy"] == 1 - 3 / 16
    for reading, hits in (("majority", 30), ("all_draws", 30), ("undefended", 20)):
        low, high = wilson(hits, 40)
        assert robust[reading]["accuracy"] == hits / 40
        assert robust[reading]["low"] == pytest.approx(low)
        assert robust[reading]["high"] == pytest.approx(high)
        cell = f"{100 * hits / 40:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        assert cell in text.replace("\\", "")
        assert cell in page.text
        assert cell in printed(summary, folder)
    low, high = wilson(40, 40)
    assert f"100.0 % [{100 * low:.1f}, {100 * high:.1f}]" in page.text
    headline = (
        "An attacker who knows the whole model, its defense included, and may change every pixel by "
        "up to 8/255 gets through on 18.8 % of attempts."
    )
    low, high = robust["per_draw"]["low"], robust["per_draw"]["high"]
    interval = f"95 % interval {100 * (1 - high):.1f} to {100 * (1 - low):.1f} %; 40 images"
    for shown in (text, page.text, printed(summary, folder)):
        assert headline in shown
        assert interval in shown
    assert "strong 10, weak 0" in page.text
    assert "not finished" not in page.text + text


def test_interval_of_wrong_answers_is_mirrored(standard):
    low, high = wilson(10, 40)  # 10 of 40 images are wrong at some draw
    _, _, page = read(standard[0])
    assert f"gets through on 25.0 % [{100 * low:.1f}, {100 * high:.1f}] of the images" in page.text


def test_page_is_self_contained(standard):
    folder, summary = standard
    _, _, page = read(folder)
    assert page.tags.count("script") == 1
    assert "link" not in page.tags
    assert page.tags.count("figure") == 5
    loaded = [source for source in page.sources if source.startswith("data:")]
    others = set(page.sources) - set(loaded)
    beside = {source for source in others if not source.startswith(("http", "#"))}
    assert beside == {path.name for path in folder.glob("*.*")} - {"report.html", "run.json"}
    sizes = []
    for source in loaded:
        head, _, data = source.partition(",")
        assert head == "data:image/png;base64"
        sizes.append(Image.open(io.BytesIO(base64.b64decode(data))).size)
    pictures = [size for size in sizes if size == (4, 4)]
    # Eight in a grid, and all ten on demand: clean, attacked, the difference, and both purified.
    assert len(pictures) == len(sizes) == (8 + 10) * 5
    raw = (folder / "report.html").read_text("utf-8")
    assert raw.count("<svg") == raw.count('role="img" aria-label=') == 4
    doubts = {f"{DOUBTS_URL}#{doubt['name']}" for doubt in summary["doubts"]}
    assert {link for link in others if link.startswith("http")} == doubts
    assert "default-src 'none'" in raw
    assert "@import" not in raw
    assert raw.startswith("<!doctype html>")


def test_class_names_are_escaped(standard):
    folder, _ = standard
    _, text, page = read(folder)
    assert "&lt;b&gt;" in (folder / "report.html").read_text("utf-8")
    assert "<b>" in page.text
    assert "| &lt;b&gt; | 13 |" in text
    assert "a\\|b" in text
    assert quote("[x](y) *z*\n<i>") == "\\[x\\](y) \\*z\\* &lt;i&gt;"


def test_attack_names_are_escaped(tmp_path):
    label = '"><script>alert(1)</script>[red]$\\bad{'
    attacks = [{**ATTACKS[0], "label": label}]
    summary = write_report(a_run(tmp_path, attacks=attacks))
    _, _, page = read(tmp_path)
    assert page.tags.count("script") == 1
    assert "alert" not in page.scripts
    assert label in page.text
    assert label in printed(summary, tmp_path)


@pytest.mark.parametrize(("n", "of", "says"), [(17, 40, True), (40, 40, False), (1, 2, True)])
def test_unfinished_run_is_reported_as_such(tmp_path, n, of, says):
    summary = write_report(a_run(tmp_path, n=n, of=of))
    _, text, page = read(tmp_path)
    for shown in (text, page.text, printed(summary, tmp_path)):
        assert (f"{n} of {of} images are done" in shown) is says


def test_report_without_a_purifier_shows_no_undefended_accuracy(tmp_path):
    summary = write_report(a_run(tmp_path, defended=False))
    _, text, page = read(tmp_path)
    assert "undefended" not in summary["robust"]
    for shown in (text, page.text, printed(summary, tmp_path)):
        assert "undefended" not in shown.replace("undefended; 10 steps", "").replace(
            "view: classifier-only", ""
        )
        assert "An attacker who knows the whole model and may" in shown
    assert page.tags.count("figure") == 4  # no figure of the confidence along the purification


def test_single_draw_per_image_is_reported_in_one_column(tmp_path):
    summary = write_report(a_run(tmp_path, defended=False, draws=1))
    shown = printed(summary, tmp_path)
    assert "majority" not in shown
    assert "accuracy: how often the model is right" in shown
    assert "gets through on 25.0 % of images" in shown
    _, text, _ = read(tmp_path)
    low, high = wilson(30, 40)
    row = f"75.0 % [{100 * low:.1f}, {100 * high:.1f}]"
    assert row in text.replace("\\", "")


def test_report_without_sanity_checks_says_they_are_missing(tmp_path, edited):
    run = a_run(tmp_path, pictures=0, n=400)

    def unchecked(text):
        tables = [json.loads(line) | {"sanity": {}} for line in text.splitlines()]
        return "".join(json.dumps(table) + "\n" for table in tables)

    for path in list((tmp_path / "outcomes").glob("*")):
        edited(path, unchecked)
    summary = write_report(run)
    _, text, page = read(tmp_path)
    assert summary["doubts"] == []
    assert page.tags.count("figure") == 3
    for shown in (text, page.text):
        assert "No doubts were raised" in shown
        assert "Not checked yet" in shown
    assert "No doubts were raised" in printed(summary, tmp_path)


@pytest.mark.parametrize("attacks", [0, 9])
def test_reports_with_no_and_with_many_attacks(tmp_path, attacks):
    rows = [{**ATTACKS[0], "label": f"strong-{i}"} for i in range(attacks)]
    summary = write_report(a_run(tmp_path, attacks=rows))
    _, text, page = read(tmp_path)
    for shown in (text, page.text, printed(summary, tmp_path)):
        assert ("No attack was tried" in shown) is (attacks == 0)
        assert all(f"strong-{i}" in shown for i in range(attacks))


def test_known_noise_attacks_alone_are_not_reported_as_no_attack(tmp_path):
    summary = write_report(a_run(tmp_path, attacks=[{**ATTACKS[0], "knows": "both"}]))
    _, text, page = read(tmp_path)
    for shown in (text, page.text, printed(summary, tmp_path)):
        assert "Every attack knew the noise" in shown
        assert "No attack was tried" not in shown


def test_doubts_are_shown_beside_the_numbers(tmp_path):
    summary = write_report(a_run(tmp_path, attacks=[ATTACKS[1]]))
    _, text, page = read(tmp_path)
    assert [doubt["name"] for doubt in summary["doubts"]][:1] == ["no-adaptive-attack"]
    shown = printed(summary, tmp_path)
    assert re.search(r"robust \[1\].*%", shown)
    assert "[1] red doubt no-adaptive-attack: no attack" in shown
    for each in (text.replace("*", ""), page.text):
        assert "red: no-adaptive-attack" in each
        assert "before you quote" in each
    assert "knows the classifier but not its defense" in page.text


def test_doubts_without_attacks_are_marked_at_the_clean_row(tmp_path):
    summary = write_report(a_run(tmp_path, attacks=[]))
    assert summary["doubts"]
    assert re.search(r"clean \[1\].*%", printed(summary, tmp_path))


def test_every_doubt_has_a_sentence():
    parts = (run_doubts, model_doubts, cheap_beats_exact, blind_beats_gradient)
    source = "".join(map(inspect.getsource, parts))
    names = set(re.findall(r'Doubt\(\s*"([a-z0-9-]+)"', source))
    assert names == set(sentences.CHECKED)


def test_spec_in_the_report_is_the_spec_of_the_run(standard):
    folder, _ = standard
    _, text, _ = read(folder)
    found = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert found
    assert yaml.safe_load(found[1]) == Run.open(folder).manifest["spec"]
    assert "unfool evaluate spec.yaml --out" in text


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 6), (2, 5, 5)])
def test_image_figure_supports_any_shape(tmp_path, shape):
    write_report(a_run(tmp_path, shape=shape, pictures=3))
    with Image.open(tmp_path / "figures" / "images.png") as picture:
        assert picture.size[0] > 600


def test_report_files_depend_only_on_the_run(tmp_path):
    """The same run gives the same bytes; another run gives other bytes."""
    first, second = tmp_path / "a", tmp_path / "b"
    write_report(a_run(first))
    write_report(a_run(second))
    names = sorted(path.name for path in (first / "figures").iterdir())
    drawn = ["accuracy", "classes", "confidence", "images", "resubmission"]
    assert names == [f"{name}.png" for name in drawn]
    for name in (*(f"figures/{name}" for name in names), "report.html", "report.md", "report.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    before = (first / "figures" / "accuracy.png").read_bytes()
    other = tmp_path / "c"
    write_report(a_run(other, n=20))
    assert (other / "figures" / "accuracy.png").read_bytes() != before


def test_attack_by_attack_and_resubmissions_are_reported(standard):
    """Every fourth image is fooled by `strong`, the first attack, at 3 of 4 draws."""
    report, markdown, page = read(standard[0])
    rungs = [(rung["name"], rung["attacked"]) for rung in report["by_attack"]]
    assert rungs == [("strong", 40), ("weak", 40)]
    for rung in report["by_attack"]:
        assert rung["robust"]["per_draw"]["accuracy"] == pytest.approx(1 - 3 / 16)
    robust = [share["accuracy"] for share in report["resubmission"]["robust"]]
    assert robust == pytest.approx([1 - 3 / 16, 0.75, 0.75, 0.75])
    again = markdown.partition("## Submitted again")[2].partition("## ")[0]
    heads, _, *lines = (line for line in again.splitlines() if line.startswith("|"))
    assert heads == "| submissions | clean | random noise | robust |"
    assert [line.split(" | ")[0] for line in lines] == ["| 1", "| 2", "| 4"]
    assert "| 75.0 %" in lines[1]
    assert "Submitted again" in page.text
    assert "Attack by attack" in page.text
    assert "tried only on" not in page.text  # every attack was tried on every image


def test_long_table_of_classes_is_cut_with_a_note(tmp_path):
    write_report(a_run(tmp_path, n=80, classes=tuple(f"class-{i}" for i in range(40))))
    report, _, page = read(tmp_path)
    assert len(report["classes"]) == 40
    assert "the 30 least robust of 40 classes" in page.text


def test_run_without_outcomes_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="no results yet"):
        write_report(a_run(tmp_path, n=0, of=4))


def test_damaged_example_file_is_refused(tmp_path):
    run = a_run(tmp_path)
    next((tmp_path / "examples").iterdir()).write_bytes(b"PK no zip")
    with pytest.raises(RuntimeError, match="damaged"):
        write_report(run)


def test_toy_world_from_spec_to_report(tmp_path):
    spec = running.check(specs.load("blobs", ["data.size=16", "attacks.1.steps=3"]))
    summary = write_report(running.run(spec, tmp_path, quiet=True))
    _, text, page = read(tmp_path)
    assert summary["n"] == summary["requested"] == 16
    assert page.tags.count("figure") == 6
    for attack in ("pgd-classifier-only", "pgd-exact"):
        assert attack in page.text
        assert attack in text
    assert not list(tmp_path.rglob("*.tmp"))
    narrow = printed(summary, tmp_path, width=80)
    assert max(map(len, narrow.splitlines()[:-1])) <= 80


def test_images_have_alt_text_and_tables_have_headings(standard):
    raw = (standard[0] / "report.html").read_text("utf-8")
    for image in re.findall(r"<img [^>]*>", raw):
        assert re.search(r'alt="[^"]+"', image), image[:60]
    for table in re.findall(r"<table.*?</table>", raw, re.DOTALL):
        heads = len(re.findall(r'<th scope="col"[^>]*>[^<]+</th>', table))
        lines = re.findall(r"<tr.*?</tr>", table, re.DOTALL)[1:]
        assert lines
        for line in lines:
            assert line.count('<th scope="row"') == 1
            assert line.count("<td") == heads - 1


def test_all_renderers_show_the_same_cells():
    rows = [["a|b <i>", "71.7 % [64.9, 77.6]"], ["`c`", "-"]]
    shown = Document("It is", [Table(["which", "how often"], rows, {1: "failed"}, {0: [1, 2]})])
    assert "| a\\|b &lt;i&gt; \\[1\\] \\[2\\] | 71.7 % \\[64.9, 77.6\\] |" in to_markdown(shown)
    assert "| \\`c\\` | - |" in to_markdown(shown)
    page = Page(to_html(shown))
    assert "a|b <i> 1,2 71.7 % [64.9, 77.6]" in page.text
    assert Page(to_fragment(shown)).text in page.text
    assert re.search(r"a\|b <i> \[1\] \[2\] +71\.7 % \[64\.9, 77\.6\]", plain_text(shown))


def test_only_words_in_backticks_are_code():
    said = "Save it as `a<b>_c`, then *run* `unfool`"
    shown = Document("Title", [Paragraph(said)])
    assert r"Save it as `a<b>_c`, then \*run\* `unfool`" in to_markdown(shown)
    assert "Save it as <code>a&lt;b&gt;_c</code>, then *run* <code>unfool</code>" in to_html(shown)
    assert said in plain_text(shown)


def test_piped_output_does_not_wrap_lines(capsys):
    words = "word " * 60
    print_document(Document("Title", [Paragraph(words), Table(["a", "b"], [[words, "1"]])]))
    assert capsys.readouterr().out.count(words.strip()) == 2


def test_missing_font_characters_give_one_message(elsewhere, capsys, recwarn):
    changes = ["attacks=[{name: fgsm, label: 攻撃}]", "evaluation.images=2", "evaluation.draws=1"]
    words = [word for change in (*changes, "purifier=null") for word in ("--set", change)]
    assert run(["evaluate", "blobs", *words, "--out", "run", "--quiet"]) == 0
    assert "font of the figures lacks" in capsys.readouterr().err
    assert not [told for told in recwarn if "missing from font" in str(told.message)]
