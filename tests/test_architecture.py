"""The picture in docs/architecture.md and the code agree: layers, where heavy libraries live, what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import replaylab

PACKAGE = Path(replaylab.__file__).parent
REPOSITORY = PACKAGE.parent

LAYERS = {
    "errors": 0,
    "timestamps": 0,
    "paths": 0,
    "params": 0,
    "config": 0,
    "records": 0,
    "compiled": 0,
    "logging": 1,
    "frames": 1,
    "history": 1,
    "features": 1,
    "plots": 1,
    "trading": 2,
    "sessions": 2,
    "importers": 2,
    "archive": 2,
    "barriers": 2,
    "sweep": 3,
    "ml": 3,
    "testing": 3,
    "replay": 4,
    "health": 5,
    "notebook": 5,
    "lab": 6,
    "demo": 7,
    "cli": 8,
    "server": 8,
}
# Inside the ground floor, modules build on each other in this order.
GROUND_ORDER = ["errors", "timestamps", "paths", "params", "config", "records", "compiled"]
HOMES = {
    "numba": {"barriers", "compiled", "features", "frames", "ml", "sweep"},
    "ipywidgets": {"notebook"},
    "tornado": {"server"},
    "jupyter_server": {"server"},
    "typer": {"cli"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, inside functions too; TYPE_CHECKING blocks excepted."""
    tree = ast.parse(path.read_text())
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            if node.module == "replaylab":
                found.update(f"replaylab.{alias.name}" for alias in node.names)
            else:
                found.add(node.module)
    return found


def test_every_room_has_a_layer() -> None:
    rooms = {room(path) for path in modules()} - {"__init__", "__main__"}
    assert rooms <= set(LAYERS), f"give these a layer: {sorted(rooms - set(LAYERS))}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_layers_below(path: Path) -> None:
    """A layer imports only from those under it, never sideways between packages of one layer."""
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    for name in imports(path):
        if not name.startswith("replaylab."):
            continue
        there = name.split(".")[1]
        if there == here or there == "__version__":
            continue
        if LAYERS[here] == LAYERS[there] == 0:
            assert GROUND_ORDER.index(there) < GROUND_ORDER.index(here), f"{here} imports {there}"
        else:
            assert LAYERS[there] < LAYERS[here], f"{here} (layer {LAYERS[here]}) imports {there}"


@pytest.mark.parametrize("library", sorted(HOMES))
def test_heavy_library_stays_in_its_rooms(library: str) -> None:
    for path in modules():
        used = any(name.split(".")[0] == library for name in imports(path))
        assert not used or room(path) in HOMES[library], f"{path} imports {library}"


def test_files_stay_readable() -> None:
    """No module is longer than 400 lines."""
    long = {str(path): n for path in modules() if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_replaylab_is_light() -> None:
    """Heavy parts load when first used."""
    assert not loaded_by("import replaylab") & {"pandas", "polars", "numba", "numpy", "matplotlib", "IPython"}


def test_the_logger_alone_is_light() -> None:
    """A bot that only records needs neither pandas, polars, numba nor Jupyter."""
    loaded = loaded_by("import replaylab.logging; replaylab.logging.Logger")
    assert not loaded & {"pandas", "polars", "numba", "numpy", "IPython", "jupyter_server", "ipywidgets"}


def test_public_surface_is_complete() -> None:
    """`__all__` is sorted, every name in it exists, and each documents itself."""
    names = replaylab.__all__
    assert names == sorted(names)
    for name in set(names) - {"__version__"}:
        assert getattr(replaylab, name).__doc__


def test_conda_environment_and_pyproject_agree() -> None:
    """`environment.yml` lists the same packages and bounds as `pyproject.toml`."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["dev"]}
    wanted = {requirement.replace("[server]", "").replace("[python]", "") for requirement in wanted}
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    listed = {item for item in environment["dependencies"] if isinstance(item, str)}
    pip_only = {
        item for part in environment["dependencies"] if isinstance(part, dict) for item in part["pip"]
    }
    python = f"python{project['requires-python']}"
    assert listed | pip_only == {*wanted, python, "pip", "-e ."}


def test_every_dependency_is_explained() -> None:
    """`docs/dependencies.md` has a line for each."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    text = (REPOSITORY / "docs" / "dependencies.md").read_text()
    extras = [item for group in project["optional-dependencies"].values() for item in group]
    for requirement in [*project["dependencies"], *extras]:
        name = requirement.split(">")[0].split("[")[0]
        assert f"| {name} |" in text, f"docs/dependencies.md says nothing of {name}"


def test_no_module_hides_a_public_name() -> None:
    """With every module imported, what a package offers by name is still that and not a module."""
    code = (
        "import importlib, pkgutil, sys, types, replaylab\n"
        "for found in pkgutil.walk_packages(replaylab.__path__, 'replaylab.'):\n"
        "    if not found.name.endswith('__main__'):\n"
        "        importlib.import_module(found.name)\n"
        "for place, module in sorted(sys.modules.items()):\n"
        "    if place.split('.')[0] == 'replaylab':\n"
        "        for name in getattr(module, '__all__', []):\n"
        "            if isinstance(getattr(module, name), types.ModuleType):\n"
        "                print(place, name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
