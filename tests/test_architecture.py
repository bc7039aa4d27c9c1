"""docs/architecture.md and the code agree: layers, files, where heavy libraries are used, what stays light."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import replaylab

PACKAGE = Path(replaylab.__file__).parent
REPOSITORY = PACKAGE.parent

LAYERS = {
    **dict.fromkeys(("errors", "timestamps", "paths", "params", "config", "records", "compiled", "fsio"), 0),
    **dict.fromkeys(("logging", "frames", "history", "features", "plots"), 1),
    **dict.fromkeys(("trading", "sessions", "importers", "archive", "barriers"), 2),
    **dict.fromkeys(("sweep", "ml", "testing"), 3),
    "replay": 4,
    **dict.fromkeys(("notebook", "health"), 5),
    "lab": 6,
    "demo": 7,
    **dict.fromkeys(("cli", "server"), 8),
}
HOMES = {
    "filelock": {"fsio"},
    "psutil": {"fsio"},
    "numba": {"barriers", "compiled", "features", "frames", "ml", "sweep"},
    "ipywidgets": {"notebook"},
    "anywidget": {"notebook"},
    "plotly": {"notebook", "plots"},
    "tornado": {"server"},
    "jupyter_server": {"server"},
    "typer": {"cli"},
}
MOST_FILES = 150
MOST_LINES = 800
# A file name says which concept it holds.
VAGUE = {
    *("base", "cells", "common", "helpers", "inputs", "kinds", "leaving", "meter", "misc", "pieces", "quick"),
    *("rows", "running", "stuff", "tools", "util", "utils", "words"),
}
# Modules that are public as a whole, besides the faces: kernels compile the formulas; the generated market is optional.
OPEN = {
    "replaylab.trading.formulas",
    "replaylab.features.formulas",
    "replaylab.features.score_state",
    "replaylab.importers.synthetic",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    return ".".join(("replaylab", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


@cache
def module_names() -> frozenset[str]:
    return frozenset(dotted(path) for path in modules())


@cache
def imports(path: Path, *, with_types: bool = False) -> set[str]:
    """Every module that a file imports anywhere, inside functions too; in TYPE_CHECKING blocks where asked for."""
    tree = ast.parse(path.read_text())
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in only_types and not with_types:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(
                    submodule if submodule in module_names() or node.module == "replaylab" else node.module
                )
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
            continue  # the ground floor builds on itself: without circles, as the test below proves
        assert LAYERS[there] < LAYERS[here], f"{here} (layer {LAYERS[here]}) imports {there}"


def test_no_import_circles() -> None:
    """No module imports itself by way of others: imports inside functions and, in one package, of types counted."""
    graph: dict[str, set[str]] = {}
    for path in modules():
        here = dotted(path)
        inside = {name for name in imports(path, with_types=True) if name.split(".")[1:2] == [room(path)]}
        graph[here] = ((imports(path) | inside) & module_names()) - {here}
    found: set[str] = set()
    while True:
        try:
            TopologicalSorter(graph).prepare()
            break
        except CycleError as problem:
            circle = problem.args[1]
            found.add(" -> ".join(circle))
            # graphlib lists each module after one that it is a predecessor of.
            graph[circle[1]].discard(circle[0])
    assert not found


def test_packages_are_imported_through_their_faces() -> None:
    """A package's `__init__` is its only face; what it does not offer is private to it."""
    inner: set[tuple[str, str]] = set()
    for path in modules():
        for name in imports(path) & module_names():
            parts = name.split(".")
            if len(parts) < 3 or parts[1] == room(path) or name in OPEN:
                continue
            offered = getattr(importlib.import_module(f"replaylab.{parts[1]}"), "__all__", [])
            # A function of the face may have the name of its module.
            if parts[2] not in offered:
                inner.add((str(path.relative_to(PACKAGE)), name))
    assert not inner


@pytest.mark.parametrize("library", sorted(HOMES))
def test_heavy_library_stays_in_its_rooms(library: str) -> None:
    for path in modules():
        used = any(name.split(".")[0] == library for name in imports(path))
        assert not used or room(path) in HOMES[library], f"{path} imports {library}"


def test_files_stay_readable() -> None:
    """No module is longer than 800 lines, and there are at most 150."""
    long = {str(path): n for path in modules() if (n := len(path.read_text().splitlines())) > MOST_LINES}
    assert not long
    assert len(modules()) <= MOST_FILES


def test_no_record_outlives_its_array() -> None:
    """In compiled code a record holds no reference: ``np.zeros(1, dtype=T)[0]`` points into memory that was freed."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr in ("zeros", "empty", "ones", "full")
    ]
    assert not found


def test_file_names_say_what_is_in_them() -> None:
    assert {str(path.relative_to(PACKAGE)) for path in modules() if path.stem in VAGUE} == set()


def test_the_architecture_page_names_the_files_that_there_are() -> None:
    """Each path on the page exists, and its table lists every module of every package."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    for name in re.findall(r"`(replaylab/[\w/.-]+|tests/\w+\.py)`", page):
        assert (REPOSITORY / name).exists(), name
    rows = dict(
        re.findall(r"^\| ((?:`\w+/`(?:, )?)+) \| (.*) \|$", page.split("## Files")[1], flags=re.MULTILINE)
    )
    for packages, text in rows.items():
        listed = set(re.findall(r"`(\w+)`", text))
        there = {
            path.stem
            for package in re.findall(r"`(\w+)/`", packages)
            for path in (PACKAGE / package).glob("[a-z]*.py")
        }
        assert listed == there, f"{packages}: the page lists {sorted(listed ^ there)} wrongly or not at all"


def packages() -> list[str]:
    """The package and its public packages and modules, by their dotted names."""
    folders = [path for path in modules() if path.name == "__init__.py"]
    files = [
        PACKAGE / f"{name}.py" for name in ("config", "demo", "errors", "health", "lab", "params", "testing")
    ]
    return [dotted(path) for path in [*folders, *files]]


# Their keywords are the names of parameters, or of the arguments of a user's function.
OWN_NAMES = (".replace", ".with_values", ".exit_rule", ".level_rule")
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def is_record(value: Any) -> bool:
    """Plain data with named fields, which is made by name."""
    return inspect.isclass(value) and (
        dataclasses.is_dataclass(value) or issubclass(value, msgspec.Struct) or hasattr(value, "_fields")
    )


def public_callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function, class, and public method of these, with its dotted name."""
    for place in packages():
        module = importlib.import_module(place)
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            is_protocol = getattr(value, "_is_protocol", False)
            if is_protocol or not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            yield f"{place}.{name}", value
            if inspect.isclass(value) and value.__module__.startswith("replaylab."):
                for inner, method in inspect.getmembers(value, inspect.isroutine):
                    home = getattr(method, "__module__", None) or ""
                    if not inner.startswith("_") and home.startswith("replaylab."):
                        yield f"{place}.{name}.{inner}", method


def test_functions_take_few_positional_arguments() -> None:
    """At most 6, else a structure or names. Not counted: compiled code, the feature arithmetic that is compiled too,
    and commands, whose arguments typer passes by name."""
    crowded = set()
    for path in modules():
        if room(path) == "cli" or path.name in ("formulas.py", "score_state.py", "state.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            compiled = {ast.unparse(one).split("(")[0] for one in node.decorator_list} & {
                "compiled",
                "inlined",
                "merged",
            }
            names = [
                one.arg for one in [*node.args.posonlyargs, *node.args.args] if one.arg not in ("self", "cls")
            ]
            if len(names) > 6 and not compiled:
                crowded.add(f"{path.relative_to(PACKAGE)}:{node.name}")
    assert not crowded


def test_public_signatures_are_explicit() -> None:
    """What `?` shows is what can be given: no ``**options``, at most 6 positional arguments.

    Only ``replace(**changes)`` of parameters and the values of exit rules take any name.
    """
    unseen, crowded = set(), set()
    for name, value in public_callables():
        try:
            found = inspect.signature(value).parameters.values()
        except (ValueError, TypeError):
            continue  # a class without an `__init__` that Python can read, such as an exception; a cached property
        if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in found) and not name.endswith(OWN_NAMES):
            unseen.add(name)
        positional = [one for one in found if one.kind in POSITIONAL and one.name not in ("self", "cls")]
        if len(positional) > 6 and not is_record(value):
            crowded.add(name)
    assert not unseen
    assert not crowded


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


def test_the_panel_loads_the_chart_later() -> None:
    """The chart's library comes when the chart is first shown."""
    assert not loaded_by("from replaylab.notebook import Panel; Panel") & {"bokeh", "anywidget"}


def test_public_surface_is_complete() -> None:
    """`__all__` is sorted, every name in it exists, and each documents itself."""
    names = replaylab.__all__
    assert names == sorted(names)
    for name in set(names) - {"__version__"}:
        assert getattr(replaylab, name).__doc__


@pytest.mark.parametrize(("file", "extra"), [("environment.yml", None), ("environment-dev.yml", "dev")])
def test_conda_environments_and_pyproject_agree(file: str, extra: str | None) -> None:
    """Packages, bounds and extras of the user's and of the developer's environment are those of `pyproject.toml`.

    conda-forge names arch "arch-py"."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    tools = project["optional-dependencies"][extra] if extra else []
    listed = yaml.safe_load((REPOSITORY / file).read_text())["dependencies"]
    assert listed == [
        f"python{project['requires-python']}",
        "pip",
        *(re.sub("^arch>", "arch-py>", one) for one in project["dependencies"]),
        {"pip": [*tools, "-e ."]},
    ]


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
