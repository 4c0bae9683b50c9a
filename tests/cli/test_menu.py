"""`unfool menu`, `unfool init`, and the help of the commands."""

import pytest

import unfool
from unfool import spec
from unfool.cli.main import run
from unfool.evaluation import run as evaluation
from unfool.runtime.downloads import cache_folder
from unfool.spec import menu
from unfool.spec.describe import describe


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def said(capsys):
    def call(*arguments):
        code = run(list(arguments))
        out, wrong = capsys.readouterr()
        return code, out, wrong

    return call


def test_every_part_of_the_menu_is_described():
    for kind, names in menu.MENU.items():
        for name in names:
            part = describe(kind, name)
            assert part.text, (kind, name)
            assert all(option.type for option in part.options)
            assert [option.name for option in part.options if not option.text] == [], (kind, name)


def test_ranges_inside_lists_are_shown(said):
    assert "widths: list of whole number (1 or more);" in said("menu", "unet")[1]


def test_option_has_type_range_default_and_text():
    options = {option.name: option for option in describe("attack", "pgd").options}
    assert options["steps"].type == "whole number, 1 or more"
    assert options["steps"].default == "20"
    assert options["steps"].text == "Gradient steps."
    assert options["loss"].type == "ce | margin | dlr"
    assert options["step_size"].type == "number or null, above 0, in units of eps"
    assert options["step_size"].default == "null"


def test_options_filled_in_by_the_caller_are_hidden():
    assert "denoiser" not in {option.name for option in describe("purifier", "coup").options}
    assert [option.name for option in describe("view", "bpda").options] == []
    assert [option.name for option in describe("view", "surrogate").options] == ["steps"]


def test_menu_prints_parts_kinds_and_specs(said):
    code, out, _ = said("menu", "diffpure")
    assert code == 0
    assert "t: number, from 0.0001 to 1, 0.1 is 100 of 1000; default 0.1" in out
    _, out, _ = said("menu", "purifier")
    assert all(name in out for name in menu.MENU["purifier"])
    _, out, _ = said("menu", "trained")
    assert "classifier trained" in out
    assert "denoiser trained" in out
    _, out, _ = said("menu", "demo")
    assert "purifier: {name: diffpure" in out


def test_unknown_word_is_refused_with_a_suggestion(said):
    code, _, wrong = said("menu", "pgdd")
    assert code == 2
    assert "did you mean 'pgd' (attack)?" in wrong


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("Purified", "'purifier' (kind of parts)"),
        ("PurifiedCopies", "'purified' (objective)"),
        ("DiffPure", "'diffpure' (purifier)"),
        ("traininx", "'training' (section)"),
        ("digits-addd", "'digits-addt' (spec)"),
    ],
)
def test_suggestion_says_what_kind_of_thing_it_is(said, word, meant):
    assert f"did you mean {meant}?" in said("menu", word)[2]


def test_keys_shared_by_all_attacks_are_shown(said):
    out = said("menu", "attacks")[1]
    assert all(f"  {key}: " in out for key in ("view", "label", "knows"))
    assert "unfool menu attacks" in said("menu", "fgsm")[1]


def test_sections_of_a_training_are_shown(said):
    out = said("menu", "training")[1]
    assert "  steps: whole number, 1 or more; required" in out
    assert "  grow: table or null; default null" in out
    assert "  rank: " in said("menu", "training.lora")[1]
    assert "  save_every: " in said("menu", "machine")[1]


def test_init_writes_a_valid_spec_and_overwrites_nothing(said, tmp_path):
    code, out, _ = said("init")
    assert code == 0
    assert "unfool evaluate unfool.yaml" in out
    text = (tmp_path / "unfool.yaml").read_text()
    checked = evaluation.check(spec.load("unfool.yaml"))
    assert checked.get("purifier", {}).get("name") == "diffpure"
    (tmp_path / "unfool.yaml").write_text("mine")
    code, _, wrong = said("init")
    assert code == 2
    assert "unfool.yaml already exists" in wrong
    assert (tmp_path / "unfool.yaml").read_text() == "mine"
    assert said("init", "other.yaml")[0] == 0
    assert (tmp_path / "other.yaml").read_text() == text


def test_initial_spec_runs(said, tmp_path):
    said("init")
    few = [f"--set=attacks.{i}.steps=1" for i in range(2)]
    few += ["--set=evaluation.images=2", "--set=evaluation.draws=2", "--set=attacks.1.eot=1"]
    code, out, _ = said("evaluate", "unfool.yaml", "--quiet", *few)
    assert code == 0
    assert "adaptive PGD + EOT" in out


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_is_printed_with_and_without_its_option(arguments, said):
    code, out, wrong = said(*arguments)
    assert (code, wrong) == (0, "")
    assert "Commands:" in out
    assert "selftest" in out


@pytest.mark.parametrize("command", ["evaluate", "menu", "init", "analyze gradients", "doctor"])
def test_commands_have_the_short_help_option(command, said):
    code, out, _ = said(*command.split(), "-h")
    assert code == 0
    assert out.startswith(f"Usage: unfool {command}")


def test_group_without_a_command_prints_its_help(said):
    code, out, _ = said("analyze")
    assert code == 0
    assert "trajectories" in out


def test_version_is_printed(said):
    assert said("--version") == (0, f"unfool {unfool.__version__}\n", "")


def test_help_offers_shell_completion(said):
    assert "--install-completion" in said("-h")[1]


def test_menu_lists_downloads(said):
    code, out, _ = said("menu", "downloads")
    assert code == 0
    assert "256x256_diffusion_uncond.pt" in out
    assert "2,211 MB, MIT" in out
    assert str(cache_folder()) in out


def test_every_option_of_a_section_has_a_text():
    from unfool.cli.menu import about, sections
    from unfool.spec.describe import describe_section

    for name, told in ((name, one) for name, several in sections().items() for one in several):
        section = describe_section(name, *told)
        assert [option.name for option in section.options if not option.text] == []
        assert any(f"  {section.options[0].name}: " in line for line in about(name))
