"""The playground page in a browser: its results, its widths, its keyboard use, and its links."""

import base64
import importlib.util
import re
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from running import started

from unfool.api.apply import noise_to_classify, noise_to_purify
from unfool.attacks.pgd import PGD
from unfool.cli.main import run
from unfool.data.image_files import png
from unfool.defenses.purified_classifier import predict_draws
from unfool.serve.defense import load_defense
from unfool.serve.limits import Limits
from unfool.threat import Threat

CHANGES = ["purifier.steps=2"]
QUERY = "?votes=6&seed=5&steps=4&eot=2&eps=0.2&purifiers=own,ddim"
SAMPLE = 30


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'unfool[web]'")
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        with started("demo", CHANGES, playground=True) as running:
            running.uploads = folder
            yield running


@pytest.fixture(scope="module")
def model():
    return load_defense("demo", CHANGES, None, "demo", "cpu", 64, Limits()).loaded


@contextmanager
def opened(browser, service, query=QUERY, width=1400, scheme="light"):
    """Open the page and wait for its image. It must contact no other server and log no error."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=False
    )
    page, wrong = context.new_page(), []
    page.set_default_timeout(60_000)
    page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if outside(request.url) else None)

    def outside(url):
        return not url.startswith((service.address, "data:", "blob:"))

    page.goto(service.address + query)
    page.locator("#image img").wait_for()
    yield page
    assert wrong == []
    context.close()


def tab_to(page, target):
    """Press Tab until an element has the focus."""
    for _ in range(120):
        if target.evaluate(
            "e => e === document.activeElement || e.contains(document.activeElement)"
        ):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not lead to {target}")


def press(page, name):
    tab_to(page, page.get_by_role("button", name=name, exact=True))
    page.keyboard.press("Enter")


def shown(page, where, alt):
    """Return the bytes of an image on the page."""
    source = page.locator(where).get_by_alt_text(re.compile(alt)).get_attribute("src")
    return base64.b64decode(source.partition("base64,")[2])


def votes(page, where, place=0):
    """Return the nonzero counts in a table of votes, by class."""
    rows = page.locator(f"{where} table").nth(place).locator("tbody tr")
    found = {}
    for row in rows.all():
        name = row.locator("th").inner_text().split()[0]
        found[name] = int(row.locator("td.number").inner_text().split()[0])
    return {name: count for name, count in found.items() if count}


def expected(model, x, draws=6):
    chosen = predict_draws(model, x, noise_to_classify(5, 0, 1), draws)[0]
    counts = torch.bincount(chosen).tolist()
    most = sorted(range(len(counts)), key=lambda k: -counts[k])[:4]
    return {str(k): counts[k] for k in most if counts[k]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_keyboard_use_gives_the_results_of_the_library(browser, service, model, width, scheme):
    whole, (image, label) = model.model, model.data[first_of(model.data, 3)]
    x = image[None]
    with opened(browser, service, width=width, scheme=scheme) as page:
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 200) == (scheme == "dark")
        sample = page.get_by_role("button", name=f"sample {SAMPLE}: {label}")
        tab_to(page, sample)
        page.keyboard.press("Enter")
        page.locator("#image").get_by_alt_text(f"sample {SAMPLE} ({label})").wait_for()
        assert shown(page, "#image", "sample") == png(x[0])

        press(page, "Purify and classify")
        page.locator("#purified table").nth(1).wait_for()
        pure = whole.purifier(x, noise_to_purify(5, 0, 1))
        assert shown(page, "#purified", "purified$") == png(pure[0])
        assert votes(page, "#purified") == expected(whole, x)
        assert votes(page, "#purified", 1) == expected(whole.classifier, x, 1)

        press(page, "Attack")
        page.locator("#attacked .verdict").wait_for()
        noise, y = noise_to_classify(5, 0, 1).child("attack"), torch.tensor([label])
        x_adv = PGD(4, 2, loss="margin")(whole, x, y, Threat("linf", 0.2), noise)
        assert shown(page, "#attacked", "attacked$") == png(x_adv[0])
        assert votes(page, "#attacked") == expected(whole, x_adv)
        word = "fails" if next(iter(expected(whole, x_adv))) == str(label) else "succeeds"
        assert word in page.locator(".verdict").inner_text()

        tab_to(page, page.get_by_label("the attacked image"))
        page.keyboard.press("Space")
        press(page, "Compare")
        page.locator("#compared .sr").wait_for(state="attached")
        assert page.locator("#compared .card").count() == 2
        pure = whole.purifier(x_adv, noise_to_purify(5, 0, 1))
        assert shown(page, "#compared", "this model's") == png(pure[0])
        assert votes(page, "#compared") == expected(whole, x_adv)

        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sides = "[...document.querySelectorAll('img, table, svg, button, input')]"
        right = page.evaluate(f"Math.max(...{sides}.map(e => e.getBoundingClientRect().right))")
        assert right <= width
        without = "[...document.images].filter(e => !e.alt.trim()).map(e => e.outerHTML)"
        assert page.evaluate("document.images.length") > 15
        assert page.evaluate(without) == []
        blurred = (
            "[...document.images].filter(e => getComputedStyle(e).imageRendering != 'pixelated')"
        )
        assert page.evaluate(f"{blurred}.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_axe_finds_no_violations(browser, service, violations, width, scheme):
    with opened(browser, service, "?steps=50&eot=16", width, scheme) as page:
        assert violations(page) == []
        page.get_by_label("the attacked image").check()
        page.get_by_role("button", name="Compare", exact=True).click()
        page.locator("#compared [role=alert]").wait_for()
        page.get_by_role("button", name="Attack", exact=True).click()
        page.get_by_role("progressbar", name="Steps of the attack").wait_for()
        assert violations(page) == []  # with an error message and a running attack
        page.get_by_role("button", name="Stop", exact=True).click()
    with opened(browser, service, width=width, scheme=scheme) as page:
        for name, shown in (
            ("Purify and classify", "#purified table"),
            ("Attack", "#attacked .verdict"),
            ("Compare", "#compared .sr"),
        ):
            page.get_by_role("button", name=name, exact=True).click()
            page.locator(shown).first.wait_for(state="attached")
        assert violations(page) == []  # with all results


def first_of(data, label):
    return next(i for i in range(len(data)) if data[i][1] == label)


def test_address_is_a_link_to_the_settings(browser, service):
    with opened(browser, service, f"{QUERY}&sample=42") as page:
        page.locator("#image").get_by_alt_text("sample 42").wait_for()
        page.get_by_label("number input for Votes").fill("9")
        page.keyboard.press("Tab")
        page.get_by_label("classifier only").check()
        page.wait_for_url("**votes=9*gradient=classifier-only*")
        assert page.locator("#link textarea").input_value() == page.url
        spec, query = page.locator("#spec textarea").input_value(), page.url.partition("/?")[2]
        assert "draws: 9" in spec
        assert "classifier-only" in spec
    with opened(browser, service, f"?{query}") as page:
        page.locator("#image").get_by_alt_text("sample 42").wait_for()
        page.wait_for_function("document.querySelector('#spec textarea').value")
        assert page.locator("#spec textarea").input_value() == spec


def test_uploaded_file_is_shown_and_not_kept(browser, service, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with opened(browser, service) as page:
        file = page.locator("#file input[type=file]")
        file.set_input_files(tmp_path / "mine.png")
        page.locator("#image").get_by_alt_text("your image").wait_for()
        press(page, "Purify and classify")
        page.locator("#purified table").first.wait_for()
        page.locator("#file input[type=file]").set_input_files(tmp_path / "broken.png")
        page.locator("#image [role=alert]").wait_for()
        assert "PNG" in page.locator("#image").inner_text()
        assert page.locator("#purified img").count() == 0
        kept = [path for path in service.uploads.rglob("*.png") if path.is_file()]
        assert kept == []


def test_attack_can_be_stopped_and_comparing_without_one_is_refused(browser, service):
    with opened(browser, service, "?steps=50&eot=16") as page:
        page.get_by_label("the attacked image").check()
        page.get_by_role("button", name="Compare", exact=True).click()
        page.locator("#compared [role=alert]").wait_for()
        assert "Attack" in page.locator("#compared").inner_text()
        page.get_by_role("button", name="Attack", exact=True).click()
        progress = page.get_by_role("progressbar", name="Steps of the attack")
        progress.wait_for()
        page.get_by_role("button", name="Stop", exact=True).click()
        page.wait_for_timeout(1500)
        done = progress.get_attribute("value")
        page.wait_for_timeout(1500)
        assert progress.get_attribute("value") == done
        assert int(done) < 50


def test_service_routes_work_beside_the_page(service):
    assert service.client.get("/health").json() == {"status": "ok"}
    assert service.client.get("/nothing").status_code == 404
    answer = service.client.post("/classify", json={"images": [[[0.5] * 8] * 8], "seed": 0})
    assert answer.json()["votes"] == 8
    told = service.client.get("/config").text + service.client.get("/").text
    assert str(service.uploads) not in told
    assert "/site-packages/" not in told


@pytest.mark.parametrize("address", [False, True])
def test_client_cannot_name_a_server_file_or_a_url(service, tmp_path, address):
    victim = tmp_path / "victim.png"
    victim.write_bytes(png(torch.zeros(1, 8, 8)))
    events = service.client.get("/config").json()["dependencies"]
    (upload,) = [each["id"] for each in events if each["targets"][0][1] == "upload"]
    path = "https://example.org/victim.png" if address else str(victim)
    named = {"path": path, "orig_name": "mine.png", "meta": {"_type": "gradio.FileData"}}
    asked = {"data": [named], "fn_index": upload, "session_hash": path}
    joined = service.client.post("/gradio_api/queue/join", json=asked)
    assert joined.status_code == 200
    told = service.client.get("/gradio_api/queue/data", params={"session_hash": path}).text
    assert '"success":false' in told
    assert "data:image" not in told
    assert "Traceback" not in told
    assert "/site-packages/" not in told
    assert victim.is_file()
    assert not list(service.uploads.rglob("victim.png"))
    assert service.client.get(f"/gradio_api/file={path}", follow_redirects=False).status_code >= 400


def test_open_page_does_not_delay_shutdown(browser):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'unfool[web]'")
    with started("demo", CHANGES, playground=True) as service:
        page = browser.new_page()
        page.goto(service.address)
        page.locator("#image img").wait_for()
        began = time.monotonic()
        service.stop()
        assert time.monotonic() - began < 10
        with pytest.raises(httpx.HTTPError):
            service.client.get("/health")
        page.close()


def test_missing_gradio_is_named_in_the_error(mistake):
    if importlib.util.find_spec("gradio"):
        pytest.skip("gradio is installed")
    assert "unfool[web]" in mistake("serve", "demo", "--playground", "--port", 0)


def test_help_names_the_playground(capsys):
    assert run(["serve", "--help"]) == 0
    assert "--playground" in capsys.readouterr().out
