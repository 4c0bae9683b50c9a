"""The table of claims reports what the run folders and the file of claims contain."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from unfool import spec as specs
from unfool.cli.main import run
from unfool.evaluation import run as evaluation
from unfool.report.formatting import cell
from unfool.results.run_folder import Run
from unfool.results.summary import summarize_run

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import claims
import claims_rows

ROOT = Path(__file__).parents[1]
SPECS = sorted((ROOT / "experiments" / "claims").glob("*.yaml"))
ATTACKS = """attacks=[{name: pgd, label: transfer, view: classifier-only, steps: 2},
  {name: pgd, label: weak, view: bpda, steps: 1},
  {name: pgd, label: strong, view: bpda, steps: 4, loss: margin},
  {name: pgd, label: exact, view: exact, steps: 3, eot: 2, loss: margin},
  {name: pgd, label: DW-box, knows: both, steps: 3, loss: margin},
  {name: pgd, label: DW-Fwd, knows: forward, steps: 1},
  {name: square, label: Square, queries: 6}, {name: stadv, label: StAdv, steps: 2}]"""
LABELS = {"exact": "exact", "dw-box": "DW-box", "square": "Square", "unbounded": "StAdv"}
CLAIMED = {
    "first": {
        "title": "First (2020)",
        "differs": "All.",
        "claims": [
            {"robust": 61.5, "clean": 90, "attack": "BPDA", "like": "bpda"}
            | {"threat": "linf", "network": "a net", "images": 500, "source": "table 9"},
            {"robust": 0, "attack": "PGD", "like": "exact"}
            | {"threat": "l2", "network": "a net", "source": "elsewhere"},
        ],
    },
    "second": {"title": "Second (2021)", "differs": "Nothing.", "note": "Not claimed."},
    "third": {"title": "Third (2022)", "differs": "It was not run."},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two tiny runs on the same images, and a file of claims."""
    home = tmp_path_factory.mktemp("claims")
    (home / "claims.yaml").write_text(yaml.safe_dump(CLAIMED, sort_keys=False))
    small = ["--set", "data.size=4", "--set", "evaluation.draws=2", "--set", ATTACKS, "--quiet"]
    for name, steps in (("first", 2), ("second", 3)):
        given = [*small, "--set", f"purifier.steps={steps}", "--out", str(home / "runs" / name)]
        assert run(["evaluate", "blobs", *given]) == 0
    return home


@pytest.fixture
def folders(made, monkeypatch):
    """The folder with both runs, made the current folder."""
    monkeypatch.chdir(made)
    return made


def test_numbers_of_the_page_match_the_run_folders_and_the_claims(folders, capsys):
    claimed = ["--claims", "claims.yaml", "--rows", "rows"]
    claims.main(["runs/first", "runs/second", *claimed, "--write", "docs"])
    page = (folders / "docs" / "claims.md").read_text()
    assert (folders / "docs" / "claims.png").stat().st_size > 10_000
    first_sentence = page.split("\n\n")[1]
    assert "cannot say" in first_sentence
    assert "small" in first_sentence
    rows = {
        line.split(" | ")[0].removeprefix("| "): line.removesuffix(" |").split(" | ")[1:]
        for line in page.splitlines()
        if re.match(r"\| (First|Second|Third)", line)
    }
    for name, title in (("first", "First (2020)"), ("second", "Second (2021)")):
        found = summarize_run(Run.open(Path("runs", name)))
        listed = [*found["attacks"], *found["unbounded"], *found["known_noise"]]
        shares = {row["name"]: row["robust"]["per_draw"] for row in listed}
        bpda = min(shares["weak"], shares["strong"], key=lambda share: share["accuracy"])
        ours = {"bpda": bpda} | {kind: shares[label] for kind, label in LABELS.items()}
        expected = [cell(ours[kind]) for kind in claims.COLUMNS] + [cell(found["clean"])]
        told = [text.replace("\\", "") for text in rows[f"{title}, 4 images"]]
        assert told[2:8] == expected
        kinds = [d["severity"] for d in found["doubts"]]
        assert told[8] == ", ".join(
            f"{kinds.count(k)} {k}" for k in ("red", "yellow") if k in kinds
        )
        for doubt in found["doubts"]:
            assert doubt["why"].split("`")[0] in page.replace("\\", "")
        cost = found["cost"]
        assert told[9] == f"{(cost['nfe_forward'] + cost['nfe_vjp']) / 4:,.0f}"
        assert told[10] == f"{cost['seconds'] / 4:.1f}"
        if name == "first":
            assert told[:2] == ["61.5 % (1)", f"BPDA: {cell(bpda)}"]
        else:
            assert told[:2] == ["-", "-"]
    assert set(rows["Third (2022)"]) == {"-"}
    assert "Not run yet: third." in page
    assert (
        "(1) First (2020): 61.5 % under BPDA, clean 90 %; linf, a net, 500 images; table 9" in page
    )
    assert "(2) First (2020): 0 % under PGD; l2, a net; elsewhere" in page
    assert "Not claimed." in page
    claims.main(claimed)  # from the kept rows
    assert capsys.readouterr().out == page
    claims.main(["runs/second", *claimed])
    assert capsys.readouterr().out == page


def test_row_of_another_run_replaces_the_kept_one(folders, capsys):
    claimed = ["--claims", "claims.yaml", "--rows", "kept"]
    claims.main(["runs/first", "runs/second", *claimed, "--write", "docs"])
    asked = ["data.size=4", "evaluation.draws=3", "attacks=[]"]
    given = [word for each in asked for word in ("--set", each)]
    assert run(["evaluate", "blobs", *given, "--quiet", "--out", "new/second"]) == 0
    capsys.readouterr()
    claims.main(["new/second", *claimed])
    page = capsys.readouterr().out
    assert page.count("3 held-out draws") == 1
    assert "First (2020): transfer (steps 2" in page


@pytest.mark.parametrize("change", ["data.size=3", "evaluation.seed=1", "threat.eps=0.05"])
def test_run_that_is_not_comparable_is_refused(folders, change):
    out = f"{change}/second"
    asked = ["data.size=4", change, "evaluation.draws=1", "attacks=[]"]
    given = [word for each in asked for word in ("--set", each)]
    assert run(["evaluate", "blobs", *given, "--quiet", "--out", out]) == 0
    with pytest.raises(SystemExit, match="has other images"):
        claims.main(["runs/first", out, "--claims", "claims.yaml", "--rows", "none"])


def test_folder_without_a_claimed_run_is_refused(folders):
    for folder, named in (("runs", "'runs'"), ("nowhere/first", "first")):
        with pytest.raises(SystemExit, match=named):
            claims.main([folder, "--claims", "claims.yaml", "--rows", "none"])


@pytest.mark.parametrize(
    ("change", "named"), [({"robust": 101}, "101"), ({"like": "fgsm"}, "fgsm"), ({"odd": 1}, "odd")]
)
def test_invalid_claim_is_refused_by_name(tmp_path, change, named):
    wrong = CLAIMED["first"] | {"claims": [CLAIMED["first"]["claims"][0] | change]}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump({"first": wrong}))
    with pytest.raises(SystemExit, match=named):
        claims_rows.read_claims(tmp_path / "claims.yaml")


def test_every_entry_has_a_spec_and_a_claim_or_a_note():
    entries = claims_rows.read_claims(claims.DATA)
    assert sorted(entries) == [path.stem for path in SPECS]
    for name, entry in entries.items():
        assert entry.claims or entry.note, name


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_specs_share_the_same_images_and_attacks(path):
    row, model = (
        evaluation.check(specs.load(at), "anywhere")
        for at in (path, path.with_name("diffpure.yaml"))
    )
    for key in ("data", "threat"):
        assert row[key] == model[key]
    for key in ("images", "seed", "subset_seed"):
        assert row["evaluation"][key] == model["evaluation"][key]
    assert row["evaluation"]["images"] == claims.ENOUGH
    if path.stem == "diffusion-classifier":  # without a purifier, BPDA does not apply
        kinds = {claims_rows.kind_of(attack) for attack in row["attacks"]}
        assert kinds == {"transfer", *claims.COLUMNS} - {"bpda"}
    elif "purifier" in row:
        eot = (
            {} if path.stem != "flowpure" else {"eot": 1, "early_stop": 0, "label": ""}
        )  # it is deterministic
        assert [attack | eot for attack in row["attacks"]] == [
            attack | eot for attack in model["attacks"]
        ]
        kinds = [claims_rows.kind_of(attack) for attack in row["attacks"]]
        assert kinds == ["transfer", *claims.COLUMNS]


def test_damaged_kept_row_is_named(folders):
    claims.main(["runs/first", "--claims", "claims.yaml", "--rows", "kept", "--write", "docs"])
    row = Path("kept/first.json")
    row.write_text(row.read_text("utf-8")[:100], "utf-8")
    with pytest.raises(SystemExit, match=r"kept/first\.json.*restore the file"):
        claims.main(["runs/second", "--claims", "claims.yaml", "--rows", "kept"])
