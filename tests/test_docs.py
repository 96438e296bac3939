"""The docs keep up: each logged key has its sentence, each YAML its measured header."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

import tune_ssl
from tests.support.helpers import small_spec
from tests.support.runs import COMMAND, CONFIRMED, write_study
from tests.test_architecture import FLOORS
from tune_ssl.methods import method_names
from tune_ssl.training.loop import train

ROOT = Path(__file__).parents[1]
STUDIES = sorted((ROOT / "search_spaces").glob("**/*.yaml"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OURS = "tune_ssl|analysis|benchmarks|tests"
MAP = (ROOT / "docs/architecture.md").read_text()


@pytest.mark.parametrize("name", method_names())
def test_every_logged_key_has_a_sentence_in_the_docs(name):
    documented = set(re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/metrics.md").read_text(), re.M))
    spec = small_spec(name, **{"budget.steps": 2, "budget.eval_every": 2})
    for key in list(train(spec))[-1].metrics:
        prefix, _, rest = key.rpartition("/")
        known = {key, rest if prefix == "val" else key, f"{prefix}/<term>"}
        assert known & documented, f"{key} is not in docs/metrics.md"


@pytest.mark.parametrize("name", method_names())
def test_every_method_is_described_and_has_a_study(name):
    assert f"## `{name}`" in (ROOT / "docs/methods.md").read_text()
    assert (ROOT / "search_spaces" / f"{name}.yaml").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_names_only_files_modules_and_functions_that_exist(page):
    text = page.read_text()
    paths = re.findall(rf"(?<![\w/.])(?:docs|search_spaces|{OURS})/[\w/.-]*\w", text)
    missing = [name for name in paths if "entropy_min" not in name and not (ROOT / name).exists()]
    assert missing == [], "files"
    missing = [
        name for name in re.findall(rf"\b(?:{OURS})(?:\.(?!md\b)\w+)+", text) if not is_there(name)
    ]
    assert missing == [], "modules, or names in them"


def is_there(dotted: str) -> bool:
    """Whether a module has that name, or defines its last part."""
    path = ROOT.joinpath(*dotted.split("."))
    homes = (path.parent.with_suffix(".py"), path.parent / "__init__.py")
    text = "\n".join(home.read_text() for home in homes if home.exists())
    defined = re.search(rf"^(?:def |class )?{path.name}\b", text, re.M)
    return path.is_dir() or path.with_suffix(".py").exists() or defined is not None


def test_the_map_has_every_package_on_its_floor_and_names_modules_that_exist():
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|.*\| (`.*) \|$", MAP, re.M)
    floors = [(str(i), name) for i, floor in enumerate(FLOORS, 1) for name in floor]
    assert [(floor, package) for floor, package, _ in rows] == floors
    named = [f"{package}/{file}" for _, package, files in rows for file in files.split("`")[1::2]]
    named += re.findall(r"`(\w+/\w+\.py)`", MAP)
    places = ("tune_ssl", ".")
    assert [n for n in named if not any((ROOT / p / n).exists() for p in places)] == []


TRACE = """
import os, sys, threading, time
seen = set()
def first_call(frame, event, arg):  # of a module's functions, not of its own text and classes
    code = frame.f_code
    name = code.co_filename.removeprefix(os.environ["TRACED"])
    plain = code.co_flags & 2 and not code.co_name.startswith("<")
    if name != code.co_filename and name not in seen and plain:
        seen.add(name)
        with open(os.environ["TRACE"], "a") as log:
            log.write(f"{time.time():.6f} {name}\\n")
sys.settrace(first_call)
threading.settrace(first_call)
"""


@pytest.mark.slow
def test_a_study_goes_the_way_that_the_map_shows(tmp_path):
    """Every process of a search, its workers too, notes when it first calls a function of each module."""
    (tmp_path / "sitecustomize.py").write_text(TRACE)
    traced = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "TRACED": f"{ROOT / 'tune_ssl'}{os.sep}",
        "TRACE": str(tmp_path / "trace"),
    }
    study = write_study(tmp_path, CONFIRMED.replace("num_trials: 3", "num_trials: 1"))
    command = (*COMMAND, "search", study, "--no-confirm", "--no-report")
    options = dict(cwd=tmp_path, env=os.environ | traced, capture_output=True, text=True)
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    calls = [line.split() for line in (tmp_path / "trace").read_text().splitlines()]
    gone = list(dict.fromkeys(module for _, module in sorted(calls)))

    lines = re.findall(r"^\d+\. .*", MAP.split("## A study's way")[1], re.M)
    shown = re.findall(r"`(\w+/\w+\.py)`", "".join(lines))
    assert len(lines) == 10 and shown == [module for module in gone if module in shown]
    assert {m.split("/")[0] for m in gone} == {m.split("/")[0] for m in shown}


def test_docs_and_examples_import_from_tune_ssl_itself():
    for path in [*PAGES, *(ROOT / "docs").rglob("*.py")]:
        assert not re.search(r"^\s*(?:from|import) tune_ssl\.", path.read_text(), re.M), path
    for tree in map(ast.parse, (path.read_text() for path in (ROOT / "docs").rglob("*.py"))):
        found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names = {a.name for node in found if node.module == "tune_ssl" for a in node.names}
        assert names <= set(tune_ssl.__all__)


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_opens_with_its_command_its_time_and_its_number(path):
    header = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    assert f"tune-ssl search {path.relative_to(ROOT)}" in header
    assert re.search(r"Expect: .*(min|s) on .*;", header), "measured time and machine"
    assert re.search(r"\d\d\.\d %|not measured", header), "measured result"


def test_the_example_of_the_analysis_docs_runs_on_two_runs(tmp_path, monkeypatch, capsys):
    from tests.analysis.conftest import write_run

    for name in ("fixmatch", "supervised"):
        write_run(tmp_path / "runs" / name, method=name, labels=(50,), shift=0.1 * (name[0] == "f"))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/analysis.md").read_text(), re.S)
    exec(code, {})
    out = capsys.readouterr().out
    assert "fixmatch - supervised: +10.0 [+10.0, +10.0]" in out
    assert "supervised: 83.0 [" in out and ", 5 seeds" in out
