"""The layers: which module may import what, read from the source of every module.

Imports count wherever they stand, also inside a function or as LazyModule("..."), but not under
`if TYPE_CHECKING`, which never runs. Every rule is broken once below, to see that it can fail.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

SPECS = ("tune_ssl.base.spec", "tune_ssl.base.errors", "tune_ssl.base.lazy")
DATA = (*SPECS, "tune_ssl.data", "tune_ssl.data.*")
METHODS = (
    *SPECS,
    "tune_ssl.methods",
    "tune_ssl.methods.*",
    "tune_ssl.data.batch",
    "tune_ssl.training.metrics",
)
STUDY = (
    *SPECS,
    *(f"tune_ssl.{name}" for name in ("trial", "space", "study", "checks", "overrides", "grammar")),
    *(
        "tune_ssl.base.yaml_file",
        "tune_ssl.training.metrics",
        "tune_ssl.methods",
        "tune_ssl.models",
    ),
    *(
        "tune_ssl.methods.plugins",
        "tune_ssl.data.datasets",
        "tune_ssl.study.variants",
        "tune_ssl.records.log",
    ),
)
# What of ours a module may import; the first pattern that fits counts.
MAY_IMPORT = {
    "tune_ssl.base.errors": (),
    "tune_ssl.base.lazy": (),
    "tune_ssl.records.log": ("tune_ssl.base.errors", "tune_ssl.records.fields"),
    "tune_ssl.records.fields": (),
    "tune_ssl.training.schedules": (),
    "tune_ssl.training.metrics": (),
    "tune_ssl.base.spec": ("tune_ssl.base.errors",),
    "tune_ssl.base.yaml_file": ("tune_ssl.base.errors",),
    "tune_ssl.study.messages": ("tune_ssl.base.errors",),
    "tune_ssl.data": DATA,
    "tune_ssl.data.*": DATA,
    "tune_ssl.models": (*SPECS, "tune_ssl.data.batch", "tune_ssl.models", "tune_ssl.models.*"),
    "tune_ssl.models.*": (*SPECS, "tune_ssl.data.batch", "tune_ssl.models", "tune_ssl.models.*"),
    "tune_ssl.methods": METHODS,
    "tune_ssl.methods.*": (*METHODS, "tune_ssl.models", "tune_ssl.models.*"),
    "tune_ssl.methods.plugins": (*SPECS, "tune_ssl.methods", "tune_ssl.methods.*"),
    "tune_ssl.study.trial": STUDY,
    "tune_ssl.study.domains": STUDY,
    "tune_ssl.study.study": STUDY,
    "tune_ssl.study.checks": STUDY,
    "tune_ssl.study.overrides": STUDY,
    "tune_ssl.study.editor_schema": STUDY,
    "tune_ssl.study.variants": STUDY,
    "analysis": (
        "analysis",
        "analysis.*",
        "tune_ssl.records.log",
        "tune_ssl.base.errors",
        "tune_ssl.base.yaml_file",
    ),
    "analysis.*": (
        "analysis",
        "analysis.*",
        "tune_ssl.records.log",
        "tune_ssl.base.errors",
        "tune_ssl.base.yaml_file",
    ),
    "tune_ssl.cli.main": ("*",),
    "tune_ssl*": ("tune_ssl", "tune_ssl.*"),
}
# Who may import these at all, and who only inside a function.
ONLY_IN = {
    "ray": tuple(
        f"tune_ssl.{name}"
        for name in (
            "trainable",
            "tuning",
            "confirm",
            "searcher",
            "scheduler",
            "live",
            "clusters",
            "resources",
            "submitting",
            "relay",
            "probing",
        )
    ),
    "optuna": (
        *(f"tune_ssl.{name}" for name in ("searcher", "studies", "rebuilding", "journals")),
        *("tune_ssl.search.retrying", "tune_ssl.search.readonly", "analysis", "analysis.*"),
    ),
    "sqlalchemy": (
        "tune_ssl.search.storage",
        "tune_ssl.search.retrying",
        "tune_ssl.search.readonly",
    ),
    "torch": ("tune_ssl", "tune_ssl.*"),
    "pandas": ("analysis", "analysis.*"),
    "plotly": ("analysis", "analysis.*"),
}
HEAVY = ("torch", "torchvision", "timm", "ray", "optuna", "pandas", "plotly", "sklearn", "scipy")
LIGHT = (
    *("tune_ssl", "tune_ssl.data", "tune_ssl.models", "tune_ssl.methods", "tune_ssl.methods.*"),
    *(
        f"tune_ssl.data.{name}"
        for name in ("batch", "datasets", "folder", "sets", "splits", "store")
    ),
    *(f"tune_ssl.{name}" for name in ("cli", "errors", "jobs", "lazy", "metrics", "records")),
    *(f"tune_ssl.{name}" for name in ("runfolder", "schedules", "spec", "yamlfile", "grammar")),
    *(f"tune_ssl.{name}" for name in ("trial", "space", "study", "checks", "overrides", "schema")),
    *(
        "tune_ssl.methods.plugins",
        "tune_ssl.artifacts.model_files",
        "tune_ssl.artifacts.neighbors",
        "tune_ssl.study.variants",
    ),
    *(
        f"tune_ssl.{name}"
        for name in ("options", "commands", "listing", "standing", "winner", "exporting")
    ),
    *(f"tune_ssl.{name}" for name in ("predicting", "dashboards", "eventfiles", "repeats")),
    *("tune_ssl.cli.submit", "tune_ssl.cluster.submit_job", "tune_ssl.cluster.ray_client"),
)
OPENS_TEST_DATA = ("tune_ssl.tuning.confirm", "tune_ssl.data.store")


class Import(NamedTuple):
    name: str
    line: int
    in_function: bool


def broken_rules(root: Path) -> list[str]:
    """`file:line: what is wrong` for every import below `root` that the layers do not allow."""
    paths = [p for package in ("tune_ssl", "analysis") for p in (root / package).rglob("*.py")]
    known = {module_name(path, root) for path in paths}
    found = []
    for path in sorted(paths):
        module, tree = module_name(path, root), ast.parse(path.read_text())
        for line, text in broken_in(module, tree, path.name == "__init__.py", known):
            found.append(f"{path.relative_to(root)}:{line}: {text}")
    return found


def broken_in(
    module: str, tree: ast.Module, package: bool, known: set[str]
) -> Iterator[tuple[int, str]]:
    allowed = next(may for pattern, may in MAY_IMPORT.items() if fits(module, (pattern,)))
    for name, line, in_function in imports(tree, module, package):
        top = name.split(".")[0]
        if top in ("tune_ssl", "analysis"):
            ours = name if name in known else name.rpartition(".")[0]  # a name inside a module
            bare = ours == "tune_ssl" and name == "tune_ssl.__version__"
            if ours == "tune_ssl.cli.main" or not (bare or fits(ours, allowed)):
                yield line, f"{module} may not import {ours}"
        elif top in ONLY_IN and not fits(module, ONLY_IN[top]):
            yield line, f"{module} may not import {top}"
        if top in HEAVY and not in_function and fits(module, LIGHT):
            yield line, f"{module} is light and may import {top} in a function only"
    if module not in OPENS_TEST_DATA:
        for node in ast.walk(tree):
            if "open_test" in named(node):
                yield getattr(node, "lineno", 0), f"{module} may not open test data"


def imports(tree: ast.AST, module: str, package: bool, inside: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for branch in node.orelse:
                yield from imports(ast.Module([branch], []), module, package, inside)
            continue
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")[: len(module.split(".")) + package - node.level]
                base = ".".join([*parts, *([base] if base else [])])
            yield from (Import(f"{base}.{alias.name}", node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = named(node.func)
            if called & {"LazyModule", "import_module", "__import__"}:
                yield Import(f"{node.args[0].value}._", node.lineno, True)
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from imports(node, module, package, inside or function)


def named(node: ast.AST) -> set[str]:
    """The names that a node itself mentions; a text in it, too."""
    values = [getattr(node, field, None) for field in ("id", "attr", "name", "value")]
    return {value for value in values if isinstance(value, str)}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def test_every_module_keeps_to_its_layer():
    assert broken_rules(ROOT) == []


def test_the_rules_speak_of_modules_that_exist():
    names = {module_name(p, ROOT) for p in (ROOT / "tune_ssl").rglob("*.py")} | {
        "analysis.read.load"
    }
    patterns = [*MAY_IMPORT, *LIGHT, *OPENS_TEST_DATA, *ONLY_IN["ray"]]
    assert [p for p in patterns if p != "analysis" and not any(fits(n, (p,)) for n in names)] == []


@pytest.mark.parametrize(
    "file, source, expected",
    [
        ("tune_ssl/spec.py", "import tune_ssl.trial", "1: tune_ssl.spec may not import tune_ssl.t"),
        ("tune_ssl/records.py", "from . import spec", "1: tune_ssl.records may not import tune"),
        ("tune_ssl/metrics.py", "from tune_ssl.spec import Size", "1: tune_ssl.metrics may not im"),
        ("tune_ssl/data/batch.py", "from tune_ssl import trial", "1: tune_ssl.data.batch may not"),
        ("tune_ssl/data/batch.py", "from ..methods import base", "may not import tune_ssl.methods"),
        (
            "tune_ssl/models/heads.py",
            "\ndef f():\n    import tune_ssl.training",
            "3: tune_ssl.models",
        ),
        (
            "tune_ssl/methods/new.py",
            "from tune_ssl.trial import override",
            "may not import tune_ss",
        ),
        (
            "tune_ssl/methods/new.py",
            "t = LazyModule('tune_ssl.training.loop')",
            "may not import tune_ss",
        ),
        ("tune_ssl/methods/new.py", "import torch", "is light and may import torch in a function"),
        ("tune_ssl/methods/new.py", "from torch import nn", "is light and may import torch in a f"),
        (
            "tune_ssl/study.py",
            "from tune_ssl.data.store import prepare",
            "may not import tune_ssl.d",
        ),
        (
            "tune_ssl/study.py",
            "def f():\n    import optuna",
            "2: tune_ssl.study may not import optu",
        ),
        ("tune_ssl/training.py", "from ray import tune", "1: tune_ssl.training may not import ray"),
        (
            "tune_ssl/training.py",
            "import optuna.trial",
            "1: tune_ssl.training may not import optuna",
        ),
        ("tune_ssl/training.py", "from tune_ssl import cli", "may not import tune_ssl.cli"),
        ("tune_ssl/jobs.py", "import ray", "1: tune_ssl.jobs may not import ray"),
        ("tune_ssl/evaluation.py", "import pandas as pd", "may not import pandas"),
        ("tune_ssl/training.py", "from tune_ssl.data.store import open_test", "may not open test"),
        (
            "tune_ssl/training.py",
            "store.open_test(1)",
            "1: tune_ssl.training may not open test data",
        ),
        ("tune_ssl/training.py", "getattr(store, 'open_test')", "may not open test data"),
        ("analysis/load.py", "from tune_ssl.spec import digest", "1: analysis.load may not import"),
        ("analysis/load.py", "def f():\n    import torch", "2: analysis.load may not import torch"),
        ("analysis/load.py", "import ray", "1: analysis.load may not import ray"),
    ],
)
def test_a_broken_rule_is_reported_with_its_file_and_line(tmp_path, file, source, expected):
    for name in ("spec", "trial", "training", "errors", "cli", "methods/base", "data/store"):
        path = tmp_path / "tune_ssl" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    for folder in ("", "methods", "data"):
        (tmp_path / "tune_ssl" / folder / "__init__.py").write_text("")
    assert broken_rules(tmp_path) == []
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    message = broken_rules(tmp_path)[0]
    assert message.startswith(f"{file}:") and expected in message


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
