"""Imports go one way, from the entry points down to the kernels, and are never circular.

The imports are read from the source, including those inside functions and under ``TYPE_CHECKING``.
"""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

_BELOW_ENGINE = {"conf", "data", "kernels", "losses", "models"}
_ENGINE = (
    "runtime", "guards", "drawing", "checkpoints", "resuming", "evaluation", "prediction", "app", "training", "sweeps",
    "commands",
)  # low to high  # fmt: skip
_ENGINE = [f"engine.{room}" for room in _ENGINE]

# Package -> the packages that it may import from, besides itself. Entry points may import from all of them.
ALLOWED = {
    "conf": set(),
    "kernels": set(),
    "losses": set(),
    "data": set(),
    "models": {"conf", "kernels"},
    **{room: {*_BELOW_ENGINE, *_ENGINE[:level]} for level, room in enumerate(_ENGINE)},
    "engine": {*_ENGINE},
    "benchmarks": {*_BELOW_ENGINE, "engine", *_ENGINE},
}

# Number of modules in a package, without its ``__init__.py``.
SMALLEST, LARGEST = 4, 12
EXCEPTIONS = {
    ".": "the entry points",
    "conf": "YAML files",
    "data/sets": "one module per data set",
    "engine": "holds rooms and no modules",
}


def sources() -> dict[str, Path]:
    """Return every module of the project by its name without ``ccnet.``; a stub is listed as ``NAME:stub``."""
    found = {}
    for folder, inside, names in os.walk(ROOT):
        inside[:] = [name for name in inside if (Path(folder) / name / "__init__.py").is_file()]
        for name in names:
            path = Path(folder) / name
            if path.suffix in (".py", ".pyi"):
                parts = path.relative_to(ROOT).with_suffix("").parts
                module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                found[module + (":stub" if path.suffix == ".pyi" else "")] = path
    return found


def imported(source: str, module: str, *, is_package: bool, modules: set[str]) -> Iterator[tuple[str, int]]:
    """Return the modules of this project that ``source``, the text of ``module``, imports, with line numbers."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*(["ccnet", *filter(None, inside)] if node.level else []), *filter(None, [node.module])])
            # `from .package import name`: the module `package.name` if it exists, else a name that `package` defines.
            targets = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if name.removeprefix("ccnet.") in modules else base for name in targets]
        else:
            continue
        for target in targets:
            if target == "ccnet" or target.startswith("ccnet."):
                yield target.removeprefix("ccnet").removeprefix("."), node.lineno


def arrows(files: dict[str, Path]) -> list[tuple[str, str, str]]:
    """Return (importing module, imported module, location) of every import inside the project."""
    modules = {name for name in files if not name.endswith(":stub")}
    found = []
    for name, path in files.items():
        module, is_package = name.removesuffix(":stub"), path.stem == "__init__"
        for target, line in imported(path.read_text(), module, is_package=is_package, modules=modules):
            found.append((module, target, f"{path.relative_to(ROOT)}:{line}"))
    return found


def room_of(module: str) -> str:
    """Return the package that contains a module; "" for the entry points and the top-level package."""
    return max((room for room in ALLOWED if f"{module}.".startswith(f"{room}.")), key=len, default="")


def wrong_ways(found: list[tuple[str, str, str]]) -> list[str]:
    """Return one line per import that violates the order of the packages."""
    return [
        f"{place}: {importing} imports {target or 'ccnet'}"
        for importing, target, place in found
        if (room := room_of(importing)) and room_of(target) not in {room, *ALLOWED[room]}
    ]


def circles(found: list[tuple[str, str, str]]) -> list[str]:
    """Return the imports along each import cycle, found by depth-first search."""
    graph: dict[str, list[str]] = {}
    for importing, target, _ in found:
        if importing != target:
            graph.setdefault(importing, []).append(target)
    done, trail, lines = set(), [], []

    def visit(module: str) -> None:
        if module in trail:
            lines.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            trail.append(module)
            for target in graph.get(module, []):
                visit(target)
            done.add(trail.pop())

    for module in list(graph):
        visit(module)
    return lines


FILES = sources()


@pytest.fixture(scope="module")
def all_imports() -> list[tuple[str, str, str]]:
    """Return every import inside the project; parsing all of it is not worth a second of every other test's start."""
    return arrows(FILES)


def test_all_modules_are_found(all_imports):
    assert {"train", "kernels.operator", "models.factory", "data.build"} <= FILES.keys()
    assert ("models.criss_cross", "kernels") in {(importing, target) for importing, target, _ in all_imports}


def test_packages_import_only_from_lower_packages(all_imports):
    assert wrong_ways(all_imports) == []


def test_no_circular_imports(all_imports):
    assert circles(all_imports) == []


def test_nothing_imports_an_entry_point(all_imports):
    entry_points = {name for name in FILES if name and room_of(name) == ""}
    # An entry point started as a file imports itself by its full name, for the processes of a launcher.
    assert [arrow for arrow in all_imports if arrow[1] in entry_points and arrow[0] != arrow[1]] == []


@pytest.mark.parametrize("folder", sorted({str(path.parent.relative_to(ROOT)) for path in FILES.values()}))
def test_packages_have_a_readable_size(folder):
    number = sum(path.stem != "__init__" for path in FILES.values() if path.parent == ROOT / folder)
    within = SMALLEST <= number <= LARGEST
    assert within or folder in EXCEPTIONS, f"{folder} has {number} modules: split it, or merge it with its neighbour"
    assert not within or folder not in EXCEPTIONS or folder == ".", f"{folder} no longer needs an exception"


@pytest.mark.parametrize(
    ("importing", "source", "place"),
    [
        ("kernels.launches.plan", "import ccnet.models.layers", "models.layers"),
        ("losses.ohem", "def f():\n    from ..kernels import reference", "kernels.reference"),
        ("data.loader", "from ..engine.runtime.devices import choose_device", "engine.runtime.devices"),
        ("engine.guards.settings", "if TYPE_CHECKING:\n    from ..training import loop", "engine.training.loop"),
        ("engine.drawing.tables", "from ccnet.train import main", "train"),
    ],
)
def test_an_import_against_the_order_is_detected(importing, source, place):
    modules = {*FILES, place}
    found = [
        (importing, target, "here") for target, _ in imported(source, importing, is_package=False, modules=modules)
    ]
    assert wrong_ways(found) == [f"here: {importing} imports {place}"]


def test_a_circular_import_is_detected():
    found = [(*pair, "here") for pair in (("a", "b"), ("b", "c"), ("c", "b"), ("a", "c"))]
    assert circles(found) == ["b -> c -> b"]
