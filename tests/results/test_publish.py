"""Publishing a model folder: its files, its page, and the upload to a hub on loopback."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path

import pytest

from unfool.api.load import load_classifier
from unfool.cli.main import run
from unfool.results.export.publish import prepare
from unfool.results.outcome import Condition, Outcome
from unfool.results.run_folder import Run
from whole_run import manifest

ModelCard = pytest.importorskip("huggingface_hub").ModelCard
PGD = {"name": "pgd", "view": "exact", "label": "PGD", "steps": 10}


@pytest.fixture
def mine(elsewhere):
    """The shipped digits classifier, as the folder `mine`."""
    shipped = Path(str(resources.files("unfool.weights").joinpath("digits-classifier")))
    shutil.copytree(shipped, elsewhere / "mine")
    return elsewhere / "mine"


def a_run(folder, weights, asked=2):
    """Make a run of a trained classifier: one of two images is right under attack."""
    spec = {"classifier": {"name": "trained", "weights": weights}, "attacks": [PGD]}
    spec["purifier"] = {"name": "diffpure", "t": 0.1}
    made = Run.begin(folder, manifest(range(asked), spec=spec))
    right, wrong = (Condition([y] * 4, y, 0.1, y) for y in (0, 1))
    for i, robust in enumerate([right, wrong]):
        made.add(
            [Outcome(i, 0, {"clean": right, "random": right, "PGD": robust}, "PGD", 0, {})], {}
        )
    return made


def test_dry_run_prints_the_page_and_the_files(mine, capsys):
    assert run(["publish", "mine", "--license", "apache-2.0", "--repo", "me/digits"]) == 0
    page, _, files = capsys.readouterr().out.partition("would be uploaded to me/digits:")
    assert [line.split()[0] for line in files.splitlines() if line.startswith("  ")] == [
        "README.md",
        "model.safetensors",
        "card.json",
    ]
    assert "nothing was uploaded" in files
    meta = ModelCard(page.strip()).data.to_dict()
    assert (meta["license"], meta["pipeline_tag"]) == ("apache-2.0", "image-classification")
    assert "--local-dir mine" in page
    assert not (mine / "README.md").exists()


def test_page_shows_the_results_of_runs(mine):
    made = a_run(mine.parent / "r", "mine")
    page = prepare("mine", "me/digits", "mit", [made]).readme
    assert "| PGD | 50.0 % [" in page
    assert "behind diffpure" in page
    assert "few-images" in page
    found = {entry.metric_name: entry.metric_value for entry in ModelCard(page).data.eval_results}
    card = json.loads((mine / "card.json").read_text())
    assert found["accuracy"] == card["metrics"]["accuracy"]
    assert found["accuracy per draw, robust (linf 0.1), behind diffpure"] == 0.5


def test_example_code_on_the_page_runs(mine):
    page = prepare("mine", "me/digits").readme
    code = page.partition("```python\n")[2].partition("```")[0]
    given = {}
    exec(code, given)
    assert type(given["model"]) is type(load_classifier("digits-classifier"))


def test_shipped_models_have_a_page():
    for name in ("cifar10-denoiser-small", "cifar10-classifier-purified", "digits-conditional"):
        upload = prepare(name, None, "apache-2.0")
        assert ModelCard(upload.readme).data.license == "apache-2.0"
        assert upload.repository == f"OWNER/{name}"


def test_adapter_folder_publishes_the_adapter_weights(mine):
    card = json.loads((mine / "card.json").read_text()) | {"base": "x"}
    (mine / "card.json").write_text(json.dumps(card))
    (mine / "model.safetensors").rename(mine / "pytorch_lora_weights.safetensors")
    names = [path.name for path in prepare("mine", None).files]
    assert names == ["pytorch_lora_weights.safetensors", "card.json"]


def test_existing_page_is_kept_unchanged(mine, mistake):
    (mine / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    assert prepare("mine", None).readme == "---\nlicense: mit\n---\n# Mine\n"
    assert "README.md already exists" in mistake("publish", "mine", "--license", "mit")


def test_weights_that_do_not_match_the_card_are_refused(mine, mistake):
    with (mine / "model.safetensors").open("ab") as file:
        file.write(b"0")
    assert "sha256" in mistake("publish", "mine")


@pytest.mark.parametrize(
    ("weights", "asked", "said"),
    [
        ("cifar10-classifier", 2, "does not use these weights"),
        ("gone", 2, "does not use these weights"),
        ("mine", 3, "2 of 3 images"),
    ],
)
def test_runs_of_other_models_and_unfinished_runs_are_refused(mine, mistake, weights, asked, said):
    a_run(mine.parent / "r", weights, asked)
    assert said in mistake("publish", "mine", "--run", "r")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repo", "mine"], "'mine'"),
        (["--push"], "--repo OWNER/NAME"),
        (["--push", "--repo", "me/digits"], "--license"),
    ],
)
def test_invalid_publish_options_are_refused(mine, mistake, arguments, said):
    assert said in mistake("publish", "mine", *arguments)


class Hub(BaseHTTPRequestHandler):
    """A hub with the three API calls that an upload needs; it records the requests."""

    asked: list[tuple[str, str | None, bytes]]

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, self.headers["Authorization"], content))
        answer = {"url": f"http://{self.headers['Host']}/me/digits", "id": "me/digits"}
        if "/preupload/" in self.path:
            files = json.loads(content)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file["path"], **regular} for file in files]}
        if "/commit/" in self.path:
            answer = {"commitUrl": f"{answer['url']}/commit/0a", "commitOid": "0a", "success": True}
        refused = self.headers["Authorization"] != "Bearer hf_right"
        body = json.dumps({"error": "not yours"} if refused else answer).encode()
        self.send_response(403 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):  # do not log each request
        pass


@pytest.fixture
def hub(tmp_path):
    """A function that publishes to a hub on loopback, and the requests that the hub got."""
    handler = type("Kept", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"

    def push(token):
        given = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        given |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        kept = {
            k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
        }
        env = kept | given | ({"HF_TOKEN": token} if token else {})
        command = ["publish", "mine", "--repo", "me/digits", "--license", "mit", "--push"]
        return subprocess.run(
            [sys.executable, "-m", "unfool", *command], env=env, capture_output=True, text=True
        )

    yield push, handler.asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_push_uploads_exactly_the_three_files(mine, hub):
    push, asked = hub
    (mine / "optimizer.pt").write_bytes(b"not for the hub")
    done = push("hf_right")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/me/digits/commit/0a")
    lines = [json.loads(line) for line in asked[-1][2].splitlines()]
    files = {line["value"]["path"]: line["value"] for line in lines if line["key"] == "file"}
    assert set(files) == {"README.md", "model.safetensors", "card.json"}
    for name in ("model.safetensors", "card.json"):
        assert base64.b64decode(files[name]["content"]) == (mine / name).read_bytes()
    assert ModelCard(base64.b64decode(files["README.md"]["content"]).decode()).data.license == "mit"


def test_missing_or_wrong_token_is_refused(mine, hub):
    push, asked = hub
    none = push(None)
    assert (none.returncode, asked) == (2, [])
    assert none.stderr.startswith("unfool: ")
    assert "HF_TOKEN" in none.stderr
    wrong = push("hf_wrong")
    assert wrong.returncode == 2
    assert "me/digits was not published" in wrong.stderr
    assert "hf_wrong" not in wrong.stderr
