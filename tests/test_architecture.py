"""The layers: which package may import what, read from the source of every module.

Imports count wherever they stand, also inside a function or as LazyModule("..."), but not under
`if TYPE_CHECKING`, which never runs. Each rule is broken once below, to see that it can fail.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("tune_ssl", "analysis", "benchmarks")

# A package may import itself and the floors below its own, but for what NOT_BELOW takes out.
FLOORS = (
    ("base",),
    ("records", "data"),
    ("models", "storage"),
    ("methods",),
    ("study",),
    ("training", "search", "runs", "cluster"),
    ("artifacts", "viewers"),
    ("tuning",),
    ("cli",),
)
NOT_BELOW = {
    "methods": ("storage",),
    "study": ("storage",),
    "artifacts": ("cluster",),
    "viewers": ("cluster",),
}
ANALYSIS = ("read", "numbers", "words", "plots", "report")  # its floors, one package each
OURS_IN_ANALYSIS = ("tune_ssl.records", "tune_ssl.base.errors", "tune_ssl.base.yaml_file")
# Who may import these at all, packages or single modules. Benchmarks may import everything.
ONLY_IN = {
    "ray": ("tune_ssl.cluster", "tune_ssl.tuning"),
    "optuna": (
        "tune_ssl.search",
        "tune_ssl.tuning",
        "tune_ssl.viewers.dashboard",  # builds the storage that optuna-dashboard reads
        "analysis.numbers.importance",
    ),
    "torch": tuple(
        f"tune_ssl.{name}"
        for name in ("data", "models", "methods", "training", "artifacts", "tuning")
    ),
    "pandas": ("analysis",),
    "plotly": ("analysis",),
}
# What takes long to load, and who loads it with itself: all others only inside a function, so that
# `tune-ssl --help`, the check of a study file and the reading of a run answer at once.
HEAVY = ("torch", "torchvision", "timm", "ray", "optuna", "pandas", "plotly", "sklearn", "scipy")
LOADS_HEAVY = (
    *("analysis", "benchmarks", "tune_ssl.search", "tune_ssl.training", "tune_ssl.tuning"),
    *(f"tune_ssl.data.{name}" for name in ("augment", "loading", "ops", "pixels", "transfer")),
    *(f"tune_ssl.models.{name}" for name in ("cvae", "encoders", "fit", "fitted", "heads")),
    "tune_ssl.models.teacher",
    *(f"tune_ssl.cluster.{name}" for name in ("connect", "nodes", "resources")),
    "tune_ssl.artifacts.galleries",
)
OPENS_TEST_DATA = ("tune_ssl.tuning.test_data", "tune_ssl.data.store")


def rules() -> dict[str, tuple[str, ...]]:
    """package -> the packages and modules of ours that it may import besides itself"""
    found: dict[str, tuple[str, ...]] = {}
    below: tuple[str, ...] = ()
    for floor in FLOORS:
        for name in floor:
            known = [other for other in below if other not in NOT_BELOW.get(name, ())]
            found[f"tune_ssl.{name}"] = tuple(f"tune_ssl.{other}" for other in known)
        below += floor
    for i, name in enumerate(ANALYSIS):
        found[f"analysis.{name}"] = (*(f"analysis.{n}" for n in ANALYSIS[:i]), *OURS_IN_ANALYSIS)
    everything = tuple(found)
    for name in ("tune_ssl", "tune_ssl.cli", "benchmarks"):
        found[name] = everything
    return found | {"analysis": ()}


class Import(NamedTuple):
    target: str  # a module of ours, or a library
    line: int
    in_function: bool


class Module(NamedTuple):
    name: str
    package: str
    path: Path
    tree: ast.Module
    imports: list[Import]


def broken_rules(root: Path) -> list[str]:
    """`file:line: what is wrong` for everything below `root` that the layers do not allow."""
    modules = {module.name: module for module in read_modules(root)}
    return [
        f"{module.path.relative_to(root)}:{line}: {text}"
        for module in modules.values()
        for line, text in sorted({*broken_in(module), *circles(module, modules)})
    ]


def read_modules(root: Path) -> Iterator[Module]:
    paths = {
        module_name(path, root): path for top in TOPS for path in sorted((root / top).rglob("*.py"))
    }
    for name, path in paths.items():
        tree = ast.parse(path.read_text())
        found = [
            Import(target_of(imported, paths), line, in_function)
            for imported, line, in_function in imports(tree, name, path.name == "__init__.py")
            if imported != "tune_ssl.__version__"
        ]
        yield Module(name, package_of(name), path, tree, found)


def broken_in(module: Module) -> Iterator[tuple[int, str]]:
    if module.package not in rules():
        yield 1, f"{module.package} is on no floor"
        return
    allowed = {module.package, *rules()[module.package]}
    light = not within(module.name, LOADS_HEAVY)
    for target, line, in_function in module.imports:
        if target.split(".")[0] in TOPS:
            forbidden = not {target, package_of(target)} & allowed
        else:
            only = ONLY_IN.get(target, ("",))
            forbidden = module.package != "benchmarks" and not within(module.name, only)
        if forbidden:
            yield line, f"{module.name} may not import {target}"
        elif light and not in_function and within(target, (*HEAVY, *LOADS_HEAVY)):
            yield line, f"{module.name} is light and may import {target} in a function only"
    if module.name not in OPENS_TEST_DATA:
        for node in ast.walk(module.tree):
            if "open_test" in named(node):
                yield getattr(node, "lineno", 0), f"{module.name} may not open test data"


def circles(module: Module, modules: dict[str, Module]) -> Iterator[tuple[int, str]]:
    """Each import within the module's package that leads back to the module."""
    for target, line, _ in module.imports:
        ways, seen = [[target]], {module.name, target}
        for way in ways:
            last = modules.get(way[-1])
            if last is None or last.package != module.package or last == module:
                continue
            following = {other.target for other in last.imports}
            if module.name in following:
                way = [module.name, *way, module.name]
                yield line, f"{' imports '.join(way)}: a circle"
                break
            ways += [[*way, other] for other in sorted(following - seen)]
            seen |= following


def imports(
    tree: ast.AST, module: str, package: bool, inside: bool = False
) -> Iterator[tuple[str, int, bool]]:
    """(imported name, line, whether in a function) of everything that a module imports when it runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for branch in node.orelse:
                yield from imports(ast.Module([branch], []), module, package, inside)
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")[: len(module.split(".")) + package - node.level]
                base = ".".join([*parts, *([base] if base else [])])
            yield from ((f"{base}.{alias.name}", node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = named(node.func)
            if called & {"LazyModule", "import_module", "__import__"}:
                yield str(node.args[0].value), node.lineno, True
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from imports(node, module, package, inside or function)


def named(node: ast.AST) -> set[str]:
    """The names that a node itself mentions; a text in it, too."""
    values = [getattr(node, field, None) for field in ("id", "attr", "name", "value")]
    return {value for value in values if isinstance(value, str)}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def target_of(imported: str, known: Collection[str]) -> str:
    """The module that an import names, itself or by a name inside it; of a library, its top."""
    top = imported.split(".")[0]
    if top not in TOPS:
        return top
    return imported if imported in known else imported.rpartition(".")[0] or top


def package_of(module: str) -> str:
    """`tune_ssl.data` of tune_ssl.data.store; `benchmarks` has no packages of its own."""
    return ".".join(module.split(".")[: 1 if module.startswith("benchmarks") else 2])


def within(name: str, places: Iterable[str]) -> bool:
    """Whether `name` is one of these packages and modules, or in one. The place "" holds everything."""
    return any(not place or f"{name}.".startswith(f"{place}.") for place in places)


def test_every_module_keeps_to_its_layer():
    assert broken_rules(ROOT) == []


def test_the_rules_speak_of_every_package_and_of_no_other():
    names = {module.name for module in read_modules(ROOT)}
    packages = {package_of(name) for name in names}
    assert packages == rules().keys()
    places = [place for only in ONLY_IN.values() for place in only]
    spoken_of = {*places, *LOADS_HEAVY, *OPENS_TEST_DATA, *OURS_IN_ANALYSIS, *NOT_BELOW}
    assert {n for n in spoken_of if n not in names and f"tune_ssl.{n}" not in names} == set()


def wrongs_of(folder: Path, module: str, source: str) -> list[str]:
    """What is wrong where a tree that keeps to the rules gets this module too."""
    for package in rules():
        path = folder / package.replace(".", "/")
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text("")
        if "." in package:
            (path / "b.py").write_text("")
    (folder / "tune_ssl" / "data" / "b.py").write_text("from . import a")
    (folder / "tune_ssl" / "data" / "c.py").write_text("from tune_ssl.data.b import x")
    assert broken_rules(folder) == []
    path = folder / f"{module.replace('.', '/')}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    return [wrong.removeprefix(f"{path.relative_to(folder)}:") for wrong in broken_rules(folder)]


@pytest.mark.parametrize(
    "module, source, target",
    [  # each package looks up, sideways, or at what is taken out of the floors below it
        ("tune_ssl.base.a", "import tune_ssl.records.b", "tune_ssl.records.b"),
        ("tune_ssl.records.a", "from ..data import b", "tune_ssl.data.b"),
        ("tune_ssl.data.a", "from tune_ssl import records", "tune_ssl.records"),
        ("tune_ssl.models.a", "def f(): import tune_ssl.storage.b", "tune_ssl.storage.b"),
        ("tune_ssl.storage.a", "from tune_ssl.models.b import x", "tune_ssl.models.b"),
        ("tune_ssl.methods.a", "t = LazyModule('tune_ssl.study.b')", "tune_ssl.study.b"),
        ("tune_ssl.methods.a", "import tune_ssl.storage.b", "tune_ssl.storage.b"),
        ("tune_ssl.study.a", "from tune_ssl.runs.b import x", "tune_ssl.runs.b"),
        ("tune_ssl.training.a", "import tune_ssl.search.b", "tune_ssl.search.b"),
        ("tune_ssl.search.a", "import tune_ssl.runs.b", "tune_ssl.runs.b"),
        ("tune_ssl.runs.a", "def f(): import tune_ssl.cluster.b", "tune_ssl.cluster.b"),
        ("tune_ssl.cluster.a", "def f(): import tune_ssl.training.b", "tune_ssl.training.b"),
        ("tune_ssl.artifacts.a", "import tune_ssl.viewers.b", "tune_ssl.viewers.b"),
        ("tune_ssl.artifacts.a", "def f(): import tune_ssl.cluster.b", "tune_ssl.cluster.b"),
        ("tune_ssl.viewers.a", "import tune_ssl.tuning.b", "tune_ssl.tuning.b"),
        ("tune_ssl.tuning.a", "from tune_ssl.cli import b", "tune_ssl.cli.b"),
        ("tune_ssl.cli.a", "import benchmarks", "benchmarks"),
        ("tune_ssl.cli.a", "from tune_ssl import train", "tune_ssl"),
        ("analysis.read.a", "import analysis.numbers.b", "analysis.numbers.b"),
        ("analysis.words.a", "import tune_ssl.base.b", "tune_ssl.base.b"),
        ("analysis.report.a", "import tune_ssl.runs.b", "tune_ssl.runs.b"),
        # libraries
        ("tune_ssl.training.a", "from ray import tune", "ray"),
        ("tune_ssl.study.a", "def f(): import optuna.trial", "optuna"),
        ("tune_ssl.storage.a", "def f(): import torch", "torch"),
        ("tune_ssl.runs.a", "import pandas as pd", "pandas"),
        ("analysis.read.a", "def f(): import torch", "torch"),
        ("analysis.read.a", "import ray", "ray"),
    ],
)
def test_an_import_that_no_floor_allows_is_reported(tmp_path, module, source, target):
    assert wrongs_of(tmp_path, module, source) == [f"1: {module} may not import {target}"]


@pytest.mark.parametrize(
    "module, source, wrong",
    [
        ("tune_ssl.new.a", "", "1: tune_ssl.new is on no floor"),
        ("tune_ssl.new", "", "1: tune_ssl.new is on no floor"),
        (
            "tune_ssl.data.a",
            "def f():\n    from tune_ssl.data import c",
            "2: tune_ssl.data.a imports tune_ssl.data.c imports tune_ssl.data.b imports "
            "tune_ssl.data.a: a circle",
        ),
        (
            "tune_ssl.methods.a",
            "import torch",
            "1: tune_ssl.methods.a is light and may import torch in a function only",
        ),
        (
            "tune_ssl.cli.a",
            "import tune_ssl.tuning.b",
            "1: tune_ssl.cli.a is light and may import tune_ssl.tuning.b in a function only",
        ),
        (
            "tune_ssl.training.a",
            "from tune_ssl.data.b import open_test",
            "1: tune_ssl.training.a may not open test data",
        ),
        ("tune_ssl.tuning.a", "b.open_test(1)", "1: tune_ssl.tuning.a may not open test data"),
        ("tune_ssl.cli.a", "f('open_test')", "1: tune_ssl.cli.a may not open test data"),
    ],
)
def test_other_broken_rules_are_reported_too(tmp_path, module, source, wrong):
    assert wrong in wrongs_of(tmp_path, module, source)


def test_what_never_runs_or_is_a_word_in_a_docstring_breaks_no_rule(tmp_path):
    path = tmp_path / "tune_ssl" / "methods" / "new.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        '"""Nobody but a confirmation calls open_test."""\n'
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n    from tune_ssl import training\n"
        "else:\n    torch = LazyModule('torch')\n"
        "def f():\n    import torch\n"
    )
    assert broken_rules(tmp_path) == []
