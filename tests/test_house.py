"""The architecture: modules import only from lower layers, and files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).parents[1] / "src" / "unfool"
FLOORS = [
    {"errors", "lazy", "ranges"},
    {"noise", "statistics", "runtime", "networks"},
    {"spec"},
    {"diffusion", "distances", "threat"},
    {"protocols", "argument_checks"},
    {"batching"},
    {"data"},
    {"defenses", "attacks", "models"},
    {"toy", "compatibility"},
    {"training", "results"},
    {"evaluation"},
    {"certification"},
    {"analysis"},
    {"report"},
    {"api"},
    {"serve"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imports(path: Path) -> set[str]:
    tree = ast.walk(ast.parse(path.read_text()))
    found = set()
    for node in tree:
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        if isinstance(node, ast.ImportFrom) and module == "unfool":
            found |= {alias.name for alias in node.names}
        elif module.startswith("unfool."):
            found.add(module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("unfool.")}
    return found - {"__version__"}


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def test_modules_import_only_from_lower_layers():
    for path in HOUSE.rglob("*.py"):
        here = room_of(path)
        if here in ("__init__", "specs", "weights"):
            continue
        for there in imports(path) - {here}:
            assert LEVEL[there] < LEVEL[here], f"{path.relative_to(HOUSE)} reaches up to {there}"


def test_files_have_fewer_than_400_lines():
    for path in HOUSE.rglob("*.py"):
        lines = len(path.read_text().splitlines())
        assert lines < 400, f"{path.relative_to(HOUSE)} has {lines} lines"


def test_importing_the_package_or_its_command_does_not_load_torch():
    code = "import sys, unfool, unfool.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_can_be_imported():
    import unfool

    for name in dir(unfool):
        assert getattr(unfool, name) is not None


def test_every_menu_entry_can_be_found():
    from unfool.spec import menu

    for kind, names in menu.MENU.items():
        for name in names:
            assert callable(menu.find(kind, name))
